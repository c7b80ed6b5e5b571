"""Loading models: what is found, what is refused and with which words, what a fingerprint tells apart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from optative.core.errors import InputError
from optative.core.files import read_json, write_json
from optative.generators.language import load
from optative.generators.language.adapters import LoraOptions, add_lora, has_adapter, lora_parameters, save_adapter
from optative.generators.language.load import fingerprint, load_language_model, open_language_model
from optative.generators.options import LanguageModelOptions
from tiny_models import CHATML, save_tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of its own; the one test of the real default model takes the user's through its fixture."""
    monkeypatch.setenv("OPTATIVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny base")


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def edit(file: Path, **changes: object) -> None:
    write_json(file, {**read_json(file), **changes})


def test_a_folder_loads_frozen_in_evaluation_mode_under_its_last_name(tiny: Path) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    assert lm.name == "tiny base"
    assert lm.hub_id is None
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert lm.dtype is torch.float32 is next(lm.model.parameters()).dtype
    assert lm.dtype_reason == "float32 as asked"
    assert (lm.eos_ids, lm.pad_id, lm.context_length) == ((258,), 258, 256)
    assert lm.template.source == CHATML
    assert str(tiny.parent) not in lm.name + lm.fingerprint + " ".join(lm.notes)


def test_bfloat16_is_for_frozen_weights_and_not_for_adapters(tiny: Path) -> None:
    lm = load_language_model(str(tiny), dtype="bfloat16")
    add_lora(lm, LoraOptions(rank=2), seed=0)
    assert {p.dtype for n, p in lm.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert {p.dtype for p in lora_parameters(lm).values()} == {torch.float32}


def test_all_end_tokens_join(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[11, 12])
    edit(folder / "config.json", eos_token_id=14)
    assert load_language_model(str(folder), dtype="float32").eos_ids == (11, 12, 14, 258)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (["config.json"], ["config.json"]),
        (["model.safetensors"], ["no weights", "model.safetensors"]),
        (["tokenizer.json", "tokenizer_config.json"], ["no tokenizer", "tokenizer.json"]),
        (["chat_template.jinja"], ["template"]),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(
    tiny: Path, tmp_path: Path, removed: list[str], words: list[str]
) -> None:
    folder = copy(tiny, tmp_path / "m")
    for name in removed:
        (folder / name).unlink()
    with pytest.raises(InputError) as caught:
        load_language_model(str(folder), dtype="float32")
    for word in [str(folder), *words]:
        assert word in str(caught.value)


def test_missing_tensors_are_an_error_and_not_random_numbers(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(tiny, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 tensors.*layers\.1\.mlp\.up_proj"):
        load_language_model(str(folder), dtype="float32")


def test_damaged_or_foreign_weights_are_an_input_error(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut"):
        load_language_model(str(folder), dtype="float32")
    with pytest.raises(InputError, match="ends early"):
        fingerprint(folder)
    folder = copy(tiny, tmp_path / "shape")
    edit(folder / "config.json", intermediate_size=80)
    with pytest.raises(InputError, match="shape"):
        load_language_model(str(folder), dtype="float32")
    folder = copy(tiny, tmp_path / "kind")
    edit(folder / "config.json", model_type="nothing-known")
    with pytest.raises(InputError, match="nothing-known"):
        load_language_model(str(folder), dtype="float32")
    folder = copy(tiny, tmp_path / "quantised")
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="quantization_config"):
        load_language_model(str(folder), dtype="float32")
    folder = copy(tiny, tmp_path / "json")
    (folder / "config.json").write_text('{"model_type": "llama",\n oops}')
    with pytest.raises(InputError, match=r"config\.json:2: not JSON"):
        load_language_model(str(folder), dtype="float32")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = copy(tiny, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|one_more|>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"260.*at most 259"):
        load_language_model(str(folder), dtype="float32")


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nearest built-in model is 'smollm2-135m-instruct'"):
        load_language_model("smollm2-135m-instrct")
    with pytest.raises(InputError, match=r"'some-owner/some-model'.*hub cannot be reached or offline"):
        load_language_model("some-owner/some-model")
    with pytest.raises(InputError, match=r"no such folder"):
        load_language_model(str(tmp_path / "absent"))
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="this is a file"):
        load_language_model(str(tmp_path / "file.gguf"))
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"did you mean .*/run/model"):
        load_language_model(str(run))


def test_a_hub_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    """Not offline mode: the name of the hub resolves, but nobody listens there."""
    code = (
        "import sys; from optative.core.errors import InputError\n"
        "from optative.generators.language.load import load_language_model\n"
        "try: load_language_model('owner/model')\n"
        "except InputError as e: print(e); sys.exit(e.exit_code)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "OPTATIVE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "'owner/model'" in done.stdout
    assert "hub cannot be reached" in done.stdout


def test_fingerprint_is_of_tensors_and_settings_not_of_files(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    same = fingerprint(tiny)
    sharded = copy(tiny, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(sharded, max_shard_size="50KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert fingerprint(sharded) == same
    pickled = copy(tiny, tmp_path / "pickled")
    torch.save(load_file(tiny / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert fingerprint(pickled) == same
    idle = copy(tiny, tmp_path / "idle")
    edit(idle / "config.json", _name_or_path="/home/someone/model", transformers_version="4.0.0")
    assert fingerprint(idle) == same

    other = copy(tiny, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(other) != same
    settings = copy(tiny, tmp_path / "settings")
    edit(settings / "config.json", rms_norm_eps=1e-4)
    assert fingerprint(settings) != same


def test_a_remembered_fingerprint_is_dropped_when_the_file_changes(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "m")
    before = fingerprint(folder)
    (memory,) = (tmp_path / "cache" / "fingerprints").iterdir()
    remembered = read_json(memory)
    edit(memory, tensors="planted")
    assert fingerprint(folder) != before, "the remembered hash is not used"
    write_json(memory, remembered)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert fingerprint(folder) != before


def test_an_adapter_folder_loads_the_base_it_records(tiny: Path, tmp_path: Path) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    add_lora(lm, LoraOptions(rank=2), seed=1)
    save_adapter(lm, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tiny))
    again = load_language_model(str(tmp_path / "adapter"), dtype="float32")
    assert again.name == "tiny base"
    assert has_adapter(again)
    shutil.copytree(tiny, tmp_path / "adapter" / "base")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="base")
    assert load_language_model(str(tmp_path / "adapter"), dtype="float32").fingerprint == lm.fingerprint


@pytest.mark.parametrize(
    "recorded", ["/srv/models/tiny base: v1", "tiny base", "../elsewhere/base", "some-owner/model"]
)
def test_case_27_an_adapter_whose_base_is_not_here(tiny: Path, tmp_path: Path, recorded: str) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    add_lora(lm, LoraOptions(rank=2), seed=1)
    save_adapter(lm, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=recorded)
    with pytest.raises(InputError) as caught:
        load_language_model(str(tmp_path / "adapter"))
    message = str(caught.value)
    for word in ("adapter_config.json", "base_model_name_or_path", recorded, "--adapter"):
        assert word in message
    assert has_adapter(load_language_model(str(tiny), adapter=tmp_path / "adapter", dtype="float32"))


def test_the_name_of_a_folder_elsewhere_is_not_looked_up_at_the_hub(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def from_hub(name: str, hint: str) -> Path:
        looked_up.append(name)
        return tiny

    lm = load_language_model(str(tiny), dtype="float32")
    add_lora(lm, LoraOptions(rank=2), seed=1)
    save_adapter(lm, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="gpt2")
    monkeypatch.setattr(load, "_from_hub", from_hub)
    with pytest.raises(InputError, match="'gpt2'"):
        load_language_model(str(tmp_path / "adapter"))
    assert looked_up == []
    edit(tmp_path / "adapter" / "optative.json", base={"name": "gpt2", "hub_id": "gpt2", "fingerprint": lm.fingerprint})
    again = load_language_model(str(tmp_path / "adapter"), dtype="float32")
    assert (again.hub_id, set(looked_up)) == ("gpt2", {"gpt2"})


def test_other_weights_or_another_template_than_in_training_are_warned_about(tiny: Path, tmp_path: Path) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    add_lora(lm, LoraOptions(rank=2), seed=1)
    save_adapter(lm, tmp_path / "adapter")
    quiet = load_language_model(str(tiny), adapter=tmp_path / "adapter", dtype="float32")
    assert quiet.notes == ()
    other = save_tiny_model(tmp_path / "other", seed=5)
    with pytest.warns(UserWarning, match=f"other weights.*{lm.fingerprint[:16]}.*{fingerprint(other)[:16]}"):
        load_language_model(str(other), adapter=tmp_path / "adapter", dtype="float32")
    with pytest.warns(UserWarning, match=f"another chat template: hash {lm.template.hash[:16]}") as warned:
        plain = load_language_model(str(tiny), adapter=tmp_path / "adapter", dtype="float32", template="plain")
    assert plain.template.hash[:16] in str(warned[0].message)
    assert len(plain.notes) == 1


def test_options_that_cannot_act_together_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot act beside `adapter`"):
        open_language_model(LanguageModelOptions(model=str(tiny), adapter="a", lora=LoraOptions(rank=4)))
    with pytest.raises(InputError, match=r"device.*'tpu9'"):
        load_language_model(str(tiny), device="tpu9")


def test_loading_leaves_the_global_random_state_alone(tiny: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    add_lora(load_language_model(str(tiny), dtype="auto"), LoraOptions(rank=2), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_missing_or_wrong_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "planted_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    model = load.BuiltIn("planted_model", "m.gguf", "0" * 64, "pip install planted==1", "")
    monkeypatch.setitem(load.BUILT_IN, "planted", model)
    with pytest.raises(InputError, match=r"not installed\n.*pip install planted==1"):
        load.default_model("planted")
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(InputError, match=r"m\.gguf: missing from its package"):
        load.default_model("planted")
    (package / "m.gguf").write_bytes(b"GGUF but another one")
    with pytest.raises(InputError, match=r"SHA-256.*expected 0000"):
        load.default_model("planted")
    assert not list((tmp_path / "cache" / "models").glob("*v1")), "nothing half-made is left"


def planted_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "site" / "another_planted_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "m.gguf").write_bytes(b"GGUF")
    sha = hashlib.sha256(b"GGUF").hexdigest()
    monkeypatch.setitem(
        load.BUILT_IN, "planted", load.BuiltIn(package.name, "m.gguf", sha, "pip install planted==1", "")
    )
    monkeypatch.syspath_prepend(str(package.parent))
    return load.built_in_folder("planted")


def test_two_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = planted_package(tmp_path, monkeypatch)
    converting, second = threading.Event(), threading.Event()
    conversions: list[str] = []

    def convert(source: Path, folder: Path, name: str) -> None:
        conversions.append(name)
        converting.set()
        assert second.wait(20)
        folder.mkdir()

    monkeypatch.setattr(load, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(load.default_model, "planted")
        assert converting.wait(20)
        two = pool.submit(load.default_model, "planted")
        second.set()
        assert one.result() == two.result() == folder
    assert conversions == ["planted"]


def test_what_a_killed_conversion_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = planted_package(tmp_path, monkeypatch)
    left = folder.with_name(f".{folder.name}.abc.part")
    left.mkdir(parents=True)
    (left / "model.safetensors").touch()
    monkeypatch.setattr(load, "_convert", lambda source, folder, name: folder.mkdir())
    assert load.default_model("planted") == folder
    assert not left.exists()


@pytest.mark.model
def test_the_default_model(default_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTATIVE_CACHE", str(default_model_folder.parents[1]))
    lm = load_language_model("smollm2-135m-instruct", dtype="float32")
    assert "dequantised from Q4_1" in lm.notes[0]
    assert lm.fingerprint == "c6921a68c1099f09eabfbc9e91534449c8bc4b61d975837c0463549b2144152a"
    assert lm.eos_ids == (2,)
    assert lm.context_length == 8192
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = lm.tokenizer(lm.template.render(messages, add_generation_prompt=True), return_tensors="pt").input_ids
    answer = lm.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in lm.tokenizer.decode(answer)
    assert "path" not in json.dumps(read_json(default_model_folder / "config.json"))
