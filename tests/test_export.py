"""What is exported loads elsewhere, without optative, and is the same model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from optative.core.errors import InputError, OptativeError
from optative.core.files import read_json, write_json
from optative.generators.language.adapters import LoraOptions, add_lora, load_adapter, lora_parameters
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.template import ChatTemplate
from optative.runs.export import export_adapter, export_model, front_matter, is_run, open_run
from tiny_models import save_tiny_model

IDS = [256, 10, 20, 30, 257, 40, 50, 60, 70, 258]

# Run by a Python that is told nothing of optative: imports of it fail.
ELSEWHERE = """
import json, sys
sys.modules["optative"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, out, ids, *folders = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), *sys.argv[4:]
found = {}
for folder in folders:
    adapter = folder.endswith("adapter")
    model = AutoModelForCausalLM.from_pretrained(base if adapter else folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder) if adapter else model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits
    found[folder] = logits, tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
torch.save(found, out)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTATIVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("someones home") / "tiny base: v1")


def elsewhere(folders: list[Path], base: Path, out: Path, ids: list[int] = IDS) -> list[tuple[torch.Tensor, str]]:
    """Logits, and a rendered conversation, of each folder, from a process without optative."""
    command = [sys.executable, "-c", ELSEWHERE, str(base), str(out), json.dumps(ids), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(out)
    return [found[str(folder)] for folder in folders]


def steered(base: Path, dtype: str = "float32", template: str | None = None, **options: Any) -> LanguageModel:
    lm = load_language_model(str(base), dtype=dtype, template=template)
    add_lora(lm, LoraOptions(rank=4, **options), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora_parameters(lm).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * 0.2)
    return lm


def logits(lm: LanguageModel, ids: list[int] = IDS) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids], device=lm.device)).logits.cpu()


def texts(folder: Path) -> str:
    return "\n".join(f.read_text("utf-8") for f in folder.rglob("*") if f.suffix in {".json", ".md", ".jinja", ".txt"})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file()}


def test_both_exports_are_the_model_in_memory_in_a_process_without_optative(tiny: Path, tmp_path: Path) -> None:
    before = bytes_of(tiny)
    lm = steered(tiny)
    expected = logits(lm)
    export_adapter(lm, tmp_path / "adapter")
    difference = export_model(lm, tmp_path / "model")
    assert difference < 1e-4
    assert torch.equal(logits(lm), expected), "exporting leaves the model as it was"
    elsewhere_folder = tmp_path / "elsewhere"
    base = Path(shutil.copytree(tiny, elsewhere_folder / "b"))
    moved = [Path(shutil.move(tmp_path / kind, elsewhere_folder / kind)) for kind in ("adapter", "model")]
    for found, rendered in elsewhere(moved, base, tmp_path / "out.pt"):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert (found - logits(load_language_model(str(tiny), dtype="float32"))).abs().max() > 0.1
        assert rendered == "<|im_start|>user\nhi<|im_end|>\n"
    assert bytes_of(tiny) == before
    merged = load_language_model(str(elsewhere_folder / "model"), dtype="float32")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)


def test_a_model_that_runs_in_bfloat16_is_exported_on_its_unrounded_base(tiny: Path, tmp_path: Path) -> None:
    expected = logits(steered(tiny))
    lm = steered(tiny, dtype="bfloat16")
    assert export_model(lm, tmp_path / "model") < 1e-4
    assert lm.dtype is torch.bfloat16 is lm.model.get_base_model().dtype
    from transformers import AutoModelForCausalLM

    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert written.dtype is torch.float32
    with torch.no_grad():
        torch.testing.assert_close(written(torch.tensor([IDS])).logits, expected, rtol=0, atol=1e-4)


def test_a_base_that_changed_meanwhile_is_not_merged(tiny: Path, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "b")
    lm = steered(base, dtype="bfloat16")
    save_tiny_model(base, seed=9)
    with pytest.warns(UserWarning, match="other weights"), pytest.raises(InputError, match="has changed since"):
        export_model(lm, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def two_by_two(folder: Path) -> Path:
    """The case's model: vocabulary 2, width 2, tied W the identity, a body that changes nothing."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=2,
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tensors = {n: torch.zeros_like(t) for n, t in load_file(folder / "model.safetensors").items()}
    tensors["model.embed_tokens.weight"] = torch.eye(2)
    tensors["model.norm.weight"] = torch.ones(2)
    assert "lm_head.weight" not in tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), eos_token="b"
    )
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    words.save_pretrained(folder)
    return folder


def test_case_26_a_trained_head_that_was_tied(tmp_path: Path) -> None:
    base = two_by_two(tmp_path / "base")
    before = bytes_of(base)
    lm = load_language_model(str(base), dtype="float32")
    add_lora(lm, LoraOptions(rank=1, alpha=1, targets=("lm_head",)), seed=0)
    with torch.no_grad():
        for name, parameter in lora_parameters(lm).items():  # B A = [[0, 1], [0, 0]]
            parameter.copy_(torch.tensor([[0.0, 1.0]]) if "lora_A" in name else torch.tensor([[1.0], [0.0]]))
    hidden = torch.tensor([1.0, 2.0], device=lm.device)
    head = lm.model.get_base_model().lm_head
    assert head(hidden).tolist() == [3.0, 2.0]
    difference = export_model(lm, tmp_path / "model")
    assert difference < 1e-5

    code = (
        "import sys, torch; sys.modules['optative'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(m.lm_head.weight.tolist(), m.get_input_embeddings().weight.tolist(),"
        " m.lm_head(torch.tensor([1.0, 2.0])).tolist())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[[1.0, 1.0], [0.0, 1.0]] [[1.0, 0.0], [0.0, 1.0]] [3.0, 2.0]", done.stderr
    from safetensors import safe_open

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as stored:
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(stored.keys())
    assert read_json(tmp_path / "model" / "config.json")["tie_word_embeddings"] is False
    assert bytes_of(base) == before
    assert torch.equal(head.base_layer.weight.cpu(), torch.eye(2))
    assert head.base_layer.weight is lm.model.get_input_embeddings().weight, "tied again in memory"


def test_case_26_weights_that_stay_tied_are_stored_once(tiny: Path, tmp_path: Path) -> None:
    export_model(steered(tiny), tmp_path / "model")
    from safetensors import safe_open

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
    assert "lm_head.weight" not in names
    assert not any("lora" in name or "base_layer" in name for name in names)
    assert read_json(tmp_path / "model" / "config.json")["tie_word_embeddings"] is True


@pytest.mark.filterwarnings("ignore")
def test_case_26_a_head_replaced_as_a_whole(tiny: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), config).eval()
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    model.save_pretrained(tmp_path / "theirs")
    lm = load_language_model(str(tiny), dtype="float32")
    load_adapter(lm, tmp_path / "theirs")
    expected = logits(lm)
    assert export_model(lm, tmp_path / "model") < 1e-4
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        found = written(torch.tensor([IDS])).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert read_json(tmp_path / "model" / "config.json")["tie_word_embeddings"] is False


def test_a_merge_that_goes_wrong_is_noticed_and_nothing_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optative.runs import export

    lm = steered(tiny)
    honest = export._plain_state

    def planted(base: Any) -> dict[str, Any]:
        state = honest(base)
        state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].clone()
        return state

    monkeypatch.setattr(export, "_plain_state", planted)
    with pytest.raises(OptativeError, match=r"differs from the one in memory by .* nothing was written"):
        export_model(lm, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []
    monkeypatch.undo()
    assert export_model(lm, tmp_path / "model") < 1e-4


def test_case_27_no_local_path_travels_and_the_card_parses(tiny: Path, tmp_path: Path) -> None:
    lm = steered(tiny)
    expected = logits(lm)
    export_adapter(lm, tmp_path / "adapter")
    export_model(lm, tmp_path / "model")
    for folder in (tmp_path / "adapter", tmp_path / "model"):
        everything = texts(folder)
        for path in (str(tiny), str(tiny.parent), str(tmp_path), "someones home"):
            assert path not in everything
        assert lm.fingerprint in everything
        head = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
        assert head["library_name"] == {"adapter": "peft", "model": "transformers"}[folder.name]
        assert "base_model" not in head
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == "tiny base: v1"
    assert read_json(tmp_path / "adapter" / "optative.json")["base"]["fingerprint"] == lm.fingerprint
    lm.hub_id = "owner/name: with colon"
    assert yaml.safe_load(front_matter(lm, "peft").strip("-\n"))["base_model"] == "owner/name: with colon"

    moved = Path(shutil.copytree(tiny, tmp_path / "another place" / "same base"))
    again = load_language_model(str(moved), adapter=tmp_path / "adapter", dtype="float32")
    assert again.notes == ()
    assert torch.equal(logits(again), expected)
    with pytest.raises(InputError, match=r"base_model_name_or_path: .*not here.*'tiny base: v1'"):
        load_language_model(str(tmp_path / "adapter"))


def test_case_29_the_template_of_the_training_travels(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    in_config = "{% for m in messages %}A<{{ m.content }}>{% endfor %}"
    in_file = in_config.replace("A<", "B<")
    base = save_tiny_model(tmp_path / "base", template=None)
    config = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", {**config, "chat_template": in_config})
    (base / "chat_template.jinja").write_text(in_file)
    lm = steered(base)
    messages = [{"role": "user", "content": "hi"}]
    assert lm.template.render(messages, add_generation_prompt=False) == "B<hi>"
    export_adapter(lm, tmp_path / "adapter")
    export_model(lm, tmp_path / "model")
    for kind in ("adapter", "model"):
        theirs = AutoTokenizer.from_pretrained(tmp_path / kind)
        assert theirs.apply_chat_template(messages, tokenize=False) == "B<hi>"
        assert read_json(tmp_path / kind / "tokenizer_config.json")["chat_template"] == in_file, "for older tools"
        assert ChatTemplate.of(tmp_path / kind).hash == lm.template.hash
    (base / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="another chat template") as warned:
        plain = load_language_model(str(base), adapter=tmp_path / "adapter", dtype="float32", template="plain")
    assert lm.template.hash[:16] in str(warned[0].message)
    assert plain.template.hash[:16] in str(warned[0].message)
    again = load_language_model(str(base), adapter=tmp_path / "adapter", dtype="float32")
    assert again.template.render(messages, add_generation_prompt=False) == "B<hi>", "not the base's own A"


def test_case_29_a_named_template_for_tools_travels_too(tmp_path: Path) -> None:
    default = "{% for m in messages %}D<{{ m.content }}>{% endfor %}"
    tools = default.replace("D<", "T<")
    base = save_tiny_model(tmp_path / "base", template=None)
    config = read_json(base / "tokenizer_config.json")
    named = [{"name": "default", "template": default}, {"name": "tool_use", "template": tools}]
    write_json(base / "tokenizer_config.json", {**config, "chat_template": named})
    lm = steered(base)
    export_adapter(lm, tmp_path / "adapter")
    export_model(lm, tmp_path / "model")
    for again in (
        load_language_model(str(tmp_path / "model"), dtype="float32"),
        load_language_model(str(base), adapter=tmp_path / "adapter", dtype="float32"),
    ):
        messages = [{"role": "user", "content": "hi"}]
        assert again.template.render(messages, add_generation_prompt=False) == "D<hi>"
        assert again.template.render(messages, add_generation_prompt=False, tools=[{"name": "t"}]) == "T<hi>"


def test_every_end_token_is_written_and_odd_generation_settings_do_not_stop_the_export(
    tiny: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    given = {"eos_token_id": [11, 12], "temperature": 0.6, "top_p": 0.9, "do_sample": False}
    write_json(base / "generation_config.json", given)
    export_model(steered(base), tmp_path / "model")
    written = read_json(tmp_path / "model" / "generation_config.json")
    assert written["eos_token_id"] == [11, 12, 258]
    assert written["temperature"] == 0.6
    assert load_language_model(str(tmp_path / "model"), dtype="float32").eos_ids == (11, 12, 258)


def test_a_run_folder_opens_as_its_steered_model(tiny: Path, tmp_path: Path) -> None:
    lm = steered(tiny)
    run = tmp_path / "run"
    with pytest.raises(InputError, match="has no adapter/: no run folder"):
        open_run(run)
    export_adapter(lm, run / "adapter")
    with pytest.raises(InputError, match="--adapter"):
        open_run(run)
    for options in ({"generator": {"model": str(tiny)}}, {"model": str(tiny), "file": "pairs.jsonl"}):
        write_json(run / "resolved.json", {"options": options})
        assert torch.equal(logits(open_run(run, dtype="float32")), logits(lm))
    write_json(run / "resolved.json", {"options": {"model": "/gone"}})
    with pytest.raises(InputError, match="/gone"):
        open_run(run)
    assert is_run(run)
    assert not is_run(tiny)
    assert not is_run(run / "adapter")


@pytest.mark.model
def test_the_default_model_is_exported_exactly(
    default_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTATIVE_CACHE", str(default_model_folder.parents[1]))
    lm = load_language_model("smollm2-135m-instruct", dtype="float32")
    add_lora(lm, LoraOptions(), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lora_parameters(lm).items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * 0.01)
    ids = lm.tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    expected = logits(lm, ids)
    export_adapter(lm, tmp_path / "adapter")
    assert export_model(lm, tmp_path / "model") < 1e-4
    folders = [tmp_path / "adapter", tmp_path / "model"]
    for folder, (found, rendered) in zip(
        folders, elsewhere(folders, default_model_folder, tmp_path / "out.pt", ids), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert "<|im_start|>user\nhi<|im_end|>" in rendered
        assert str(default_model_folder.parent) not in texts(folder)
