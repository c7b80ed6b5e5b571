"""The main job end to end on a tiny model: the contract of the run folder, resume after kill -9, wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import optative
from optative.core.errors import InputError
from optative.core.events import Silent
from optative.generators.language.load import load_language_model
from optative.generators.language.sample import SamplingSettings, sample
from tiny_models import save_tiny_model

KINDS = [
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "length_constraints:number_words",
    "punctuation:exclamation_marks",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-base", max_position_embeddings=2048)


SIZES = {"train": 16, "validation": 24, "held_out": 24, "unseen_kinds": 24, "kinds": KINDS}

MAX_KL = 0.2  # half of it is the first round's, which goes further, so that a part is taken back


def spec(tiny: Path, **changes: object) -> dict:
    raw = {
        "name": "tiny",
        "objective": {"verifiable_instructions": SIZES},
        "generator": {"language_model": {"model": str(tiny), "dtype": "float32", "lora": {"rank": 4}}},
        "feedback": {
            "on_policy": {"rounds": 2, "samples_per_prompt": 6, "max_new_tokens": 16, "greedy": True, "max_kl": MAX_KL}
        },
        "optimizer": {"dpo": {"learning_rate": 0.01, "units_per_step": 4, "checkpoint_every": 1, "epochs": 2}},
        "seed": 0,
    }
    return {**raw, **changes}


def evidence(folder: Path) -> dict[str, bytes]:
    """All that must be bit-equal after a resume."""
    names = ("metrics.jsonl", "evaluation.json", "samples.jsonl", "adapter/adapter_model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return optative.run(spec(tiny), out=folder, events=Silent()).folder


def test_the_run_folder_keeps_its_contract(whole: Path) -> None:
    evaluation = json.loads((whole / "evaluation.json").read_text())
    fields = {"name", "split", "base", "steered", "difference", "interval", "level", "n", "measured_by", "independence"}
    assert all(fields <= set(metric) for metric in evaluation["metrics"])
    assert {m["split"] for m in evaluation["metrics"]} == {"held_out", "unseen_kinds"}
    assert {m["independence"] for m in evaluation["metrics"]} <= {"independent", "same_rule_held_out"}
    steps = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert {line["round"] for line in steps} == {1, 2}
    assert steps[0]["rewards/margins"] == 0.0
    assert steps[0]["rewards/accuracies"] == 0.5
    for name in ("spec.yaml", "resolved.json", "manifest.json", "samples.jsonl", "report.html", "README.md"):
        assert (whole / name).stat().st_size > 0
    assert (whole / "adapter" / "adapter_config.json").exists()
    assert (whole / "model" / "config.json").exists()
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["trained_on"]
    assert manifest["measured_by"]
    assert manifest["wall_seconds"]
    samples = [json.loads(line) for line in (whole / "samples.jsonl").open()]
    assert len([s for s in samples if s["split"] == "train"]) == 16 * 7
    assert {(s["split"], s["model"]) for s in samples if s["stage"] == "evaluation"} == {
        (split, model) for split in ("held_out", "unseen_kinds") for model in ("base", "steered")
    }
    rounds = [s for s in samples if s["split"] == "validation"]
    assert [s["stage"] for s in rounds] == ["round-1"] * 24 + ["round-2"] * 24
    followed = sum(s["followed"] for s in rounds[24:])
    assert manifest["counts"]["round 2"]["validation prompts followed"] == f"{followed} of 24"
    assert not any(
        str(whole.parent) in (whole / name).read_text() for name in ("README.md", "report.html", "manifest.json")
    )


def test_greedy_answers_are_judged_beside_the_samples(whole: Path, tiny: Path) -> None:
    samples = map(json.loads, (whole / "samples.jsonl").open())
    rows = [row for row in samples if (row["stage"], row["split"]) == ("round-1", "train")]
    assert len(rows) == 8 * 7
    assert [row["sample"] for row in rows] == [*range(7)] * 8
    greedy = [row for row in rows if row["sample"] == 6]
    lm, settings = load_language_model(str(tiny), dtype="float32"), SamplingSettings(max_new_tokens=16, temperature=0)
    found = sample(lm, [row["prompt"] for row in greedy], 1, settings, seed=0)
    assert [row["completion"] for row in greedy] == [own[0].text for own in found]


def test_a_round_that_went_too_far_is_taken_back_in_part(whole: Path) -> None:
    counts = json.loads((whole / "manifest.json").read_text())["counts"]
    shares = [counts[f"round {n}"]["share of the round's change that was kept"] for n in (1, 2)]
    assert 0 < min(shares) < 1
    assert all(0 < counts[f"round {n}"]["nats a token from the base"] <= MAX_KL * n / 2 for n in (1, 2))


def test_a_limit_that_no_change_meets_leaves_the_base(tiny: Path, tmp_path: Path) -> None:
    """And with a limit that every change meets the last weights are those that training left."""
    found = {}
    for most in (1e-9, 1e9):
        raw = spec(tiny)
        raw["feedback"]["on_policy"]["max_kl"] = most
        folder = optative.run(raw, out=tmp_path / str(most), events=Silent()).folder
        adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        (last,) = (load_file(f) for f in (folder / "stages").glob("train-2-*.safetensors"))
        bytes_of = [sorted(value.numpy().tobytes() for value in own.values()) for own in (adapter, last)]
        assert (bytes_of[0] == bytes_of[1]) == (most > 1)
        found[most] = any(value.any() for name, value in adapter.items() if "lora_B" in name)
    assert found == {1e-9: False, 1e9: True}


def test_accuracy_can_be_counted_again_from_the_samples(whole: Path) -> None:
    samples = [json.loads(line) for line in (whole / "samples.jsonl").open()]
    for metric in json.loads((whole / "evaluation.json").read_text())["metrics"]:
        if metric["name"] == "prompt_accuracy":
            for side in ("base", "steered"):
                own = [s for s in samples if (s["split"], s["model"]) == (metric["split"], side)]
                assert len(own) == metric["n"]
                assert metric[side] == pytest.approx(np.mean([all(c["followed"] for c in s["checks"]) for s in own]))


def test_training_moved_the_weights_and_not_the_base(whole: Path, tiny: Path) -> None:
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert max(float(v.abs().max()) for k, v in adapter.items() if "lora_B" in k) > 1e-4
    base, merged = load_file(tiny / "model.safetensors"), load_file(whole / "model" / "model.safetensors")
    assert torch.equal(base["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(base["model.layers.0.mlp.up_proj.weight"], merged["model.layers.0.mlp.up_proj.weight"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny: Path, whole: Path, tmp_path: Path) -> None:
    again = optative.run(spec(tiny), out=tmp_path / "again", events=Silent()).folder
    assert evidence(again) == evidence(whole)
    other = optative.run(spec(tiny, seed=1), out=tmp_path / "other", events=Silent()).folder
    assert evidence(other)["metrics.jsonl"] != evidence(whole)["metrics.jsonl"]
    held_out = [
        {s["id"]: s["prompt"] for s in map(json.loads, (folder / "samples.jsonl").open()) if s["split"] == "held_out"}
        for folder in (whole, other)
    ]
    assert held_out[0] == held_out[1]


CHILD = """
import os, signal, sys
from pathlib import Path
import optative
from optative.core.events import Silent
count, die_at, real = 0, int(sys.argv[3]), os.fsync
def fsync(handle):
    global count
    count += 1
    if count == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(handle)
os.fsync = fsync
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
optative.run(Path(sys.argv[1]), out=sys.argv[2], events=Silent())
print(count)
"""


def test_kill_9_at_five_random_moments_then_resume(tiny: Path, whole: Path, tmp_path: Path) -> None:
    """Killed before one of its writes to the disk, again and again in the same folder; each attempt gets further."""
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec(tiny)))
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def attempt(folder: str, die_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "spec.yaml"), str(tmp_path / folder), str(die_at)]
        return subprocess.run(command, capture_output=True, text=True, env=threads)

    rng = np.random.default_rng(7)
    for number, die_at in enumerate(rng.integers(4, 14, size=5)):
        killed = attempt("cut", int(die_at))
        assert killed.returncode == -signal.SIGKILL, (number, killed.stderr)
    done = attempt("cut", 0)
    assert done.returncode == 0, done.stderr
    assert evidence(tmp_path / "cut") == evidence(whole)


def test_a_second_call_computes_nothing_and_another_spec_is_refused(tiny: Path, whole: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in (whole / "stages").iterdir() if "judgements" not in p.name}
    optative.run(spec(tiny), out=whole, events=Silent())
    assert before == {p.name: p.stat().st_mtime_ns for p in (whole / "stages").iterdir() if "judgements" not in p.name}
    kept = evidence(whole)
    with pytest.raises(InputError, match=r"optimizer\.beta: 0\.1 -> 0\.3"):
        optative.run(spec(tiny, optimizer={"dpo": {**spec(tiny)["optimizer"]["dpo"], "beta": 0.3}}), out=whole)
    assert evidence(whole) == kept


def test_settings_are_chosen_on_validation_prompts_alone(tiny: Path, tmp_path: Path) -> None:
    objective = {"verifiable_instructions": {**SIZES, "held_out": 0}}
    done = optative.run(spec(tiny, objective=objective), out=tmp_path / "r", events=Silent())
    assert {m["split"] for m in done.evaluation["metrics"]} == {"validation"}
    assert "held_out" not in (done.folder / "samples.jsonl").read_text()
    with pytest.raises(InputError, match="nothing would be measured"):
        optative.run(spec(tiny, objective={"verifiable_instructions": {"held_out": 0}}), out=tmp_path / "n")


def test_answers_that_are_all_alike_teach_nothing(tiny: Path, tmp_path: Path) -> None:
    hard = ["detectable_format:title", "detectable_format:multiple_sections", "startend:end_checker"]
    hard.append("detectable_content:number_placeholders")
    objective = {"verifiable_instructions": {**SIZES, "kinds": hard, "validation": 0}}
    with pytest.raises(InputError, match="nothing to learn from"):
        optative.run(spec(tiny, objective=objective), out=tmp_path / "r", events=Silent())


def test_a_criterion_that_is_not_met_is_said(tiny: Path, tmp_path: Path) -> None:
    asked = spec(tiny, require={"metric": "prompt_accuracy", "smallest_difference": 0.99})
    done = optative.run(asked, out=tmp_path / "r", events=Silent())
    assert not done.met
    assert "asked: at least +0.990" in done.why
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["criteria"][0]["met"] is False


def test_a_prompt_longer_than_the_context_stops_before_any_work(tmp_path: Path) -> None:
    short = save_tiny_model(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(InputError, match=r"leaves no room for an answer.*fewer than max_length = 64"):
        optative.run(spec(short), out=tmp_path / "r", events=Silent())


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tiny: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec(tiny)))
    interrupting = CHILD.replace("signal.SIGKILL", "signal.SIGINT").replace(
        "optative.run(Path(sys.argv[1]), out=sys.argv[2], events=Silent())",
        "from optative.cli.main import main\nsys.exit(main(['run', sys.argv[1], '--out', sys.argv[2]]))",
    )
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", interrupting, str(tmp_path / "spec.yaml"), str(tmp_path / "run"), "14"]
    done = subprocess.run(command, capture_output=True, text=True, env=threads)
    assert done.returncode == 130, done.stderr
    assert "run the same command to resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.part"))
    optative.run(tmp_path / "spec.yaml", out=tmp_path / "run", events=Silent())
    assert evidence(tmp_path / "run") == evidence(whole)


def test_tensorboard_shows_the_journal(tiny: Path, whole: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # written anew by a resumed run, so that no point is doubled
        optative.run(spec(tiny, track=["tensorboard"]), out=whole, events=Silent())
    shown = accumulator.EventAccumulator(str(whole / "tensorboard"))
    shown.Reload()
    points = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in shown.Scalars("loss")]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert [(line["step"], line["loss"]) for line in lines] == points
