"""The model card: front matter that parses, figures that stand in the evaluation, code that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from optative.runs.card import _fenced, _plain, card, write_card
from report_folder import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "demo-1a2b3c4d", prompts=60, unseen=20, steps=40)


def head(text: str) -> dict[str, object]:
    assert text.startswith("---\n")
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_front_matter_names_the_base_only_with_a_hub_id(folder: Path, tmp_path: Path) -> None:
    found = head(card(folder))
    assert found["library_name"] == "peft"
    assert found["license"] == "apache-2.0"
    assert "dpo" in found["tags"]  # type: ignore[operator]
    assert "base_model" not in found
    run = build(tmp_path / "run", prompts=10, unseen=4, steps=8)
    (run / "adapter").mkdir()
    base = {"name": "org/Tiny: v1", "hub_id": "org/Tiny: v1", "fingerprint": "ab"}
    (run / "adapter" / "optative.json").write_text(json.dumps({"base": base}))
    assert head(card(run))["base_model"] == "org/Tiny: v1"
    assert 'from_pretrained("org/Tiny: v1")' in card(run)


def test_no_local_path_stands_in_it(tmp_path: Path) -> None:
    run = build(tmp_path / "own", kind="align", steps=8)
    text = write_card(run).read_text("utf-8")
    assert "base_model" not in head(text)
    for leak in ("/home", "/srv", "secret project", "somebody", str(tmp_path)):
        assert leak not in text
    assert "tiny base: v1" in text


def test_figures_are_those_of_the_evaluation_with_intervals_and_costs(folder: Path) -> None:
    text = card(folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    row = evaluation["metrics"][0]
    expected = f"{100 * row['base']:.1f} % | {100 * row['steered']:.1f} % | {100 * row['difference']:+.1f} points"
    assert expected in text.replace("\u00a0", " ").replace("−", "-")
    for words in (
        "Right before, wrong after",
        "Answer length",
        "Fluency",
        "Repetition",
        "Kinds of instruction that fell",
    ):
        assert words in text
    flips = evaluation["flips"]["held_out"]
    assert f"{flips['gained']} went from wrong to right and {flips['lost']} from right to wrong" in text
    assert "the rule that training used, on prompts that training never saw" in text
    assert "float32 (no fast bfloat16 on this CPU)" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_texts_of_others_stay_text(folder: Path) -> None:
    text = card(folder)
    assert "<script>" not in re.sub(r"```.*?```", "", text, flags=re.S).replace("\\<script", "")
    assert not re.search("[\u202a-\u202e\u200b\u2028]", text)
    assert _plain("a | b\n# c `d` <e> snake_case _f_") == r"a \| b \# c \`d\` \<e\> snake_case \_f\_"
    assert _fenced("```\nx", "yaml") == "````yaml\n```\nx\n````"


def test_half_a_run_gets_an_honest_card(tmp_path: Path) -> None:
    run = build(tmp_path / "run", prompts=10, unseen=4, steps=8)
    (run / "evaluation.json").unlink()
    (run / "samples.jsonl").unlink()
    text = card(run)
    assert "Not measured: the run was not evaluated." in text
    assert "lacked evaluation.json, samples.jsonl" in text
    assert head(text)["library_name"] == "peft"


def test_the_code_in_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, its adapter and the merged weights, loaded by the card's own lines."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    run = build(tmp_path / "run", prompts=4, unseen=2, steps=8)
    vocabulary = {chr(i): i - 32 for i in range(32, 127)} | {"<e>": 95}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>", pad_token="<e>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    tuned = get_peft_model(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=2, init_lora_weights=False)
    )
    tuned.save_pretrained(run / "adapter")
    wanted = tuned(torch.arange(9)[None]).logits
    tuned.merge_and_unload().save_pretrained(run / "model")
    for place in ("adapter", "model"):
        tokenizer.save_pretrained(run / place)
    with_peft, alone = re.findall(r"```python\n(.*?)```", write_card(run).read_text("utf-8"), re.S)
    monkeypatch.chdir(run)
    for code in (with_peft.replace("path/to/the/base", str(tmp_path / "base")), alone):
        names: dict[str, object] = {}
        exec(code, names)
        model = names["model"]
        assert torch.allclose(model(torch.arange(9)[None]).logits, wanted, atol=1e-4)  # type: ignore[operator]
