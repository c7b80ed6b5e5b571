"""Alignment on a person's own file, on a tiny model: the contract, what is left out, resume after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optative.cli.main import main
from optative.core.errors import InputError
from optative.core.events import Silent
from optative.core.files import read_jsonl
from optative.data.pair_steps import read_pair_steps
from optative.runs.align import align
from optative.runs.options import Align, align_options
from tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=512)


def pairs_file(folder: Path, n: int = 40, extra: list[dict] | None = None) -> Path:
    """A preference that can be learnt: the answer in capitals is the worse one."""
    words = ["river", "stone", "cloud", "apple", "train", "music", "night", "paper"]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {words[i % 8]} {i}."}],
            "chosen": [{"role": "assistant", "content": words[(i * 3) % 8]}],
            "rejected": [{"role": "assistant", "content": words[(i * 5 + 1) % 8].upper()}],
        }
        for i in range(n)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + (extra or [])))
    return path


def options(path: Path, tiny: Path, **more: object) -> Align:
    raw = {"file": str(path), "model": str(tiny), "dtype": "float32", "held_out": 0.25, "lora": {"rank": 4}}
    dpo = {"learning_rate": 0.01, "units_per_step": 6, "epochs": 3, "checkpoint_every": 2, "eval_every": 5}
    return Align.model_validate({**raw, "optimizer": {"dpo": dpo}, **more})


def test_align_learns_the_preference_and_says_who_measured(tiny: Path, tmp_path: Path) -> None:
    done = align(options(pairs_file(tmp_path), tiny), out=tmp_path / "run", events=Silent())
    found = {m["name"]: m for m in done.evaluation["metrics"]}
    assert found["reward_accuracy"]["steered"] > 0.9 > found["reward_accuracy"]["base"] == 0.5
    assert found["ranking_accuracy"]["independence"] == "same_rule_held_out"
    lines = list(read_jsonl(done.folder / "metrics.jsonl"))
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-6)  # case 14: the policy starts where its reference is
    assert lines[0]["rewards/chosen"] == 0.0
    assert lines[0]["grad_norm"] > 0
    assert "eval_rewards/accuracies" in lines[4]
    curves = read_pair_steps(done.folder / "pairs.parquet")
    assert curves.steps_S.tolist() == [0, *(line["step"] for line in lines if "eval_loss" in line)]
    margins = (curves.chosen_SB - curves.ref_chosen_B) - (curves.rejected_SB - curves.ref_rejected_B)
    assert not margins[0].any()
    assert 0.1 * margins[1].mean() == pytest.approx(lines[4]["eval_rewards/margins"], rel=1e-4)
    manifest = json.loads((done.folder / "manifest.json").read_text())
    counts = manifest["counts"]["used"]
    assert counts["training"] + counts["held out"] == 40
    assert found["reward_accuracy"]["n"] == counts["held out"]
    assert str(tmp_path) not in (done.folder / "README.md").read_text()


def test_pairs_of_one_prompt_fall_on_one_side(tiny: Path, tmp_path: Path) -> None:
    path = pairs_file(tmp_path, 20)
    path.write_text(path.read_text() * 2)
    done = align(options(path, tiny), out=tmp_path / "run", events=Silent())
    counts = json.loads((done.folder / "manifest.json").read_text())["counts"]
    assert counts["records"]["duplicates"] == 20
    assert counts["used"]["held out"] % 2 == 0
    assert counts["used"]["training"] % 2 == 0


def test_identical_and_empty_pairs_stop_or_are_counted(tiny: Path, tmp_path: Path) -> None:
    same = {"prompt": "a", "chosen": "x", "rejected": "x"}
    path = pairs_file(tmp_path, 20, [{**same, "prompt": [{"role": "user", "content": "a"}]}])
    with pytest.raises(InputError, match=r"pairs\.jsonl:21: .*"):
        align(options(path, tiny), out=tmp_path / "stop", events=Silent())
    done = align(options(path, tiny, on_bad_record="skip"), out=tmp_path / "skip", events=Silent())
    assert json.loads((done.folder / "manifest.json").read_text())["counts"]["records"]["identical"] == 1


def test_a_prompt_longer_than_the_context_is_named_or_cut(tiny: Path, tmp_path: Path) -> None:
    long = {"prompt": "word " * 200, "chosen": "yes", "rejected": "no"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [long, *({**long, "prompt": f"p{i}"} for i in range(30))]))
    with pytest.raises(
        InputError, match=r"pairs\.jsonl:1: prompt: the prompt leaves no room.*fewer than max_length = 512"
    ):
        align(options(path, tiny), out=tmp_path / "stop", events=Silent())
    skipped = align(options(path, tiny, on_bad_record="skip"), out=tmp_path / "skip", events=Silent())
    assert json.loads((skipped.folder / "manifest.json").read_text())["counts"]["used"]["too long"] == 1
    cut = align(options(path, tiny, on_long_prompt="truncate_left"), out=tmp_path / "cut", events=Silent())
    tokens = json.loads((cut.folder / "manifest.json").read_text())["counts"]["tokens"]
    assert tokens["prompts_cut"] == 1
    assert tokens["prompt_tokens_cut"] > 400


CHILD = """
import os, signal, sys
from optative.core.events import Silent
from optative.runs.align import align
from optative.runs.options import Align
import optative.training.engine as engine
real = engine.save_checkpoint
def save(folder, step, *rest, **more):
    real(folder, step, *rest, **more)
    if step >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
engine.save_checkpoint = save
align(Align.model_validate_json(sys.argv[1]), out=sys.argv[2], events=Silent())
"""


def mixed_file(folder: Path) -> Path:
    """Pairs, ties, ranked lists, labels of single answers and two bad answers, in one file of full records."""
    words = ["river", "stone", "cloud", "apple", "train", "music", "night", "paper"]
    relations = [
        {"order": [[0], [1]]},
        {"order": [[0, 1]]},
        {"order": [[2], [0, 3], [1]]},
        {"labels": [True]},
        {"labels": [False]},
        {"ratings": [0.5, 2.0, None]},
        "both_bad",
        "incomparable",
    ]
    sizes = [2, 2, 4, 1, 1, 3, 2, 2]
    rows = []
    for i in range(64):
        answers = [words[(i * 3 + j) % 8] + " " + words[(i + j) % 8] * (j + 1) for j in range(sizes[i % 8])]
        rows.append({"id": f"r{i}", "prompt": f"Say {i}.", "completions": answers, "relation": relations[i % 8]})
    path = folder / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "pair": ({"dpo": {}}, 24, {}),  # of 64 records: pairs, lists, ratings
    "pair with ties": ({"rao_kupper": {}}, 32, {}),
    "unpaired": ({"kto": {}}, 48, {}),  # and single labels and two bad answers
    "listwise": ({"plackett_luce": {}}, 24, {}),
    "step-coupled": ({"aot": {}}, 24, {}),
    "supervised": ({"sft": {}}, 32, {}),
    "all weights": ({"dpo": {"learning_rate": 0.001}}, 24, {"lora": None}),
    "moving reference": ({"dpo": {"reference_every": 3}}, 24, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_in_training_then_resume(kind: str, tiny: Path, tmp_path: Path) -> None:
    loss, used, more = KINDS[kind]
    ((name, given),) = loss.items()
    steps = {"learning_rate": 0.01, "units_per_step": 6, "epochs": 3, "checkpoint_every": 2, "eval_every": 5}
    asked = options(mixed_file(tmp_path), tiny, optimizer={name: {**steps, **given}}, **more)
    whole = align(asked, out=tmp_path / "whole", events=Silent())
    counts = json.loads((whole.folder / "manifest.json").read_text())["counts"]["used"]
    assert counts["training"] + counts["held out"] == used
    assert counts["without use"] == 64 - used
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CHILD, asked.model_dump_json(), str(tmp_path / "cut")]
    killed = subprocess.run(command, capture_output=True, text=True, env=threads)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "cut" / "checkpoints" / "step-4").is_dir()
    again = align(asked, out=tmp_path / "cut", events=Silent())
    weights = "model/model.safetensors" if kind == "all weights" else "adapter/adapter_model.safetensors"
    curves = [] if kind in ("supervised", "unpaired") else ["pairs.parquet"]
    for name in ("metrics.jsonl", "evaluation.json", weights, *curves):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize(("loss", "shard"), [("kto", False), ("aot", False), ("dpo", True)])
def test_two_processes_train_as_one(loss: str, shard: bool, tiny: Path, tmp_path: Path) -> None:
    path = mixed_file(tmp_path)
    steps = {"units_per_step": 5, "learning_rate": 0.003, "epochs": 2}
    settings = [f"{loss}.{name}={value}" for name, value in steps.items()] + ["dtype=float32", "lora.rank=4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < 2:
        env["CUDA_VISIBLE_DEVICES"] = ""
    found = []
    for name, start in (("one", []), ("two", ["torch.distributed.run", "--nproc-per-node", "2", "-m"])):
        command = [sys.executable, "-m", *start, "optative", "align", str(path), "--model", str(tiny), "--loss", loss]
        own = [*settings, f"{loss}.shard=true"] if shard and start else settings
        command += ["--out", str(tmp_path / name), *(word for s in own for word in ("--set", s))]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.splitlines()[-1] == str(tmp_path / name)
        found.append(list(read_jsonl(tmp_path / name / "metrics.jsonl")))
    assert len(found[0]) == len(found[1]) > 5
    for line, other in zip(*found):
        assert other["loss"] == pytest.approx(line["loss"], abs=1e-5)
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


def test_sft_learns_answers_and_measures_how_likely_they_are(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": "yes " * 5}) + "\n" for i in range(40)))
    command = ["sft", str(path), "--model", str(tiny), "--out", str(tmp_path / "r"), "--set", "sft.epochs=3", "--json"]
    assert main([*command, "--set", "sft.learning_rate=0.02", "--set", "dtype=float32"]) == 0
    (figure,) = json.loads(capsys.readouterr().out)["metrics"]
    assert figure["name"] == "nll_per_token"
    assert figure["interval"][1] < 0
    assert figure["steered"] < 0.8 * figure["base"]
    first = next(iter(read_jsonl(tmp_path / "r" / "metrics.jsonl")))
    assert first["loss"] == pytest.approx(first["nll_loss"], rel=1e-4)
    assert first["loss"] == pytest.approx(figure["base"], rel=0.1)
    estimate = json.loads((tmp_path / "r" / "manifest.json").read_text())["estimate"]
    assert estimate["seconds"] > 0 < estimate["peak_memory_bytes"]


def test_the_command_line_ends_with_the_folder(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pairs_file(tmp_path)
    command = ["align", str(path), "--model", str(tiny), "--out", str(tmp_path / "r"), "--set", "dpo.epochs=1"]
    assert main([*command, "--set", "held_out=0.3", "--set", "lora.rank=2"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(tmp_path / "r")
    assert "ranking_accuracy_per_token" in said.err  # a pipe gets whole names and numbers
    assert main([*command, "--set", "held_out=0.3", "--set", "lora.rank=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "r")


def test_records_of_another_kind_than_the_loss_needs_are_an_error(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "completion": "a", "label": True}) + "\n" for i in range(9)))
    given = options(path, tiny, optimizer={"dpo": {"nll_weight": 0.1}})  # the NLL alone could use them
    with pytest.raises(InputError, match="no record that dpo can use"):
        align(given, out=tmp_path / "r", events=Silent())
    with pytest.raises(InputError, match=r"optimizer\.dpo: reference_mix cannot act"):
        align_options(path, model="m", format=None, seed=0, overrides=["dpo.reference_mix=0.3"])
    with pytest.raises(InputError, match="not the loss of this run; expected --loss dpo"):
        align_options(path, model="m", format=None, seed=0, overrides=["dpo.beta=1"], loss="kto")


def test_mistyped_settings_name_the_right_ones(tmp_path: Path) -> None:
    path = pairs_file(tmp_path)
    for setting, message in (
        ("dpo.betta=1", "nearest is 'beta'"),
        ("hold_out=0.1", "nearest is 'held_out'"),
        ("held_out=2", "less than 1"),
        ("dpo", "expected a.b=value"),
    ):
        with pytest.raises(InputError, match=message):
            align_options(path, model="m", format=None, seed=0, overrides=[setting])
