"""The step engine: the best evaluation, early stopping, dropout, AdamW, all weights; also across kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.core.errors import InputError, OptativeError
from optative.training.best import Best
from optative.training.engine import MicroResult, train
from optative.training.options import StepOptions
from tiny_models import save_tiny_model

STEPS = 30


def walk(
    folder: Path,
    *,
    die_at: int = 0,
    steps: int = STEPS,
    evaluate: Callable[[torch.Tensor], dict[str, float]] | None = None,
    every: int = 2,
    **options: Any,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """A weight that training drives from 0 past 0.5, where its held-out loss is the smallest; noise by dropout."""
    weight = torch.nn.Parameter(torch.zeros(8))
    given = {"learning_rate": 0.05, "schedule": "constant", "warmup_ratio": 0.0, "checkpoint_every": 3, **options}

    def loss(micro: int, num_units: int) -> MicroResult:
        noisy = torch.nn.functional.dropout(torch.ones(8), 0.3)
        return MicroResult(((weight - 2.0 * noisy) ** 2).mean())

    def held_out() -> dict[str, float]:
        return {"eval_loss": float(((weight.detach() - 0.5) ** 2).mean())}

    def on_step(step: int, total: int, line: dict[str, Any]) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(
        {"weight": weight},
        [(step,) for step in range(steps)],
        lambda units: list(units),
        loss,
        options=StepOptions.model_validate(given),
        key="k",
        journal_path=folder / "metrics.jsonl",
        journal_start=0,
        checkpoints=folder / "checkpoints",
        first_step=100,
        evaluate=(lambda: evaluate(weight)) if evaluate else held_out,
        evaluate_every=every,
        on_step=on_step,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weight.detach(), lines


def killed(call: str) -> None:
    """Run an expression of this module in a process that has to die by SIGKILL."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path\n"
    code += f"import test_engine; test_engine.{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_training_stops_when_the_held_out_loss_no_longer_falls(tmp_path: Path) -> None:
    _, lines = walk(tmp_path / "never", every=2)
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert 106 < best < 120, "the smallest held-out loss has to lie inside"
    _, stopped = walk(tmp_path / "stops", early_stopping=3)
    assert [line["step"] for line in stopped] == list(range(101, best + 2 * 3 + 1))
    assert stopped[-1]["stopped_early"] is True
    assert stopped[-1]["best_step"] == best
    assert not any("stopped_early" in line for line in stopped[:-1])
    assert [line["loss"] for line in stopped] == [line["loss"] for line in lines[: len(stopped)]]


@pytest.mark.parametrize("early_stopping", [0, 2])
def test_the_best_weights_come_back(tmp_path: Path, early_stopping: int) -> None:
    kept, lines = walk(tmp_path / "kept", keep_best=True, early_stopping=early_stopping)
    best = lines[-1]["best_step"]
    there, _ = walk(tmp_path / "there", steps=best - 100)
    assert torch.equal(kept, there)
    assert [path.name for path in (tmp_path / "kept" / "checkpoints").glob("best-*")] == [f"best-{best}"]
    last, _ = walk(tmp_path / "last", early_stopping=early_stopping)
    assert not torch.equal(kept, last), "without keep_best the last weights stay"


@pytest.mark.parametrize("die_at", [9, 14])
def test_the_decision_is_the_same_after_a_kill(tmp_path: Path, die_at: int) -> None:
    options: dict[str, Any] = {"keep_best": True, "early_stopping": 3}
    whole, lines = walk(tmp_path / "whole", **options)
    assert len(lines) > 14
    killed(f"walk(Path({str(tmp_path / 'cut')!r}), die_at={die_at}, **{options!r})")
    again, lines_again = walk(tmp_path / "cut", **options)
    assert lines == lines_again
    assert torch.equal(whole, again)


def test_a_best_step_between_checkpoints_survives_until_the_next_one(tmp_path: Path) -> None:
    """The weights that the newest checkpoint calls the best are on disk, whatever was better since."""
    killed(f"walk(Path({str(tmp_path)!r}), die_at=8, keep_best=True, every=1, checkpoint_every=5)")
    folder = tmp_path / "checkpoints"
    known = json.loads((folder / "step-105" / "state.json").read_text())["best"]["step"]
    assert known == 105
    assert sorted(path.name for path in folder.glob("best-*")) == ["best-105", "best-108"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"early_stopping": 1, "every": 0}, "early_stopping"),
        ({"early_stopping": 2, "every": 10}, "early_stopping"),
        ({"keep_best": True, "every": 30}, "keep_best"),
        ({"shard": True}, "shard"),
    ],
)
def test_an_option_that_cannot_act_is_an_error(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"{field}: cannot act"):
        walk(tmp_path, **options)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_patience_that_can_act_is_no_error(tmp_path: Path) -> None:
    walk(tmp_path, early_stopping=1, keep_best=True, every=10)
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_held_out_loss_that_is_no_number_is_an_error(tmp_path: Path, value: float | None) -> None:
    found = {} if value is None else {"eval_loss": value}
    with pytest.raises(OptativeError, match="step 102: the held-out loss"):
        walk(tmp_path, keep_best=True, evaluate=lambda weight: found)


def test_of_equal_evaluations_the_first_is_the_best() -> None:
    best = Best()
    assert [best.see(step, 1.0) for step in (1, 2, 3)] == [True, False, False]
    assert (best.step, best.waited) == (1, 2)


def test_random_numbers_of_a_step_are_its_own(tmp_path: Path) -> None:
    """Neither what was drawn before nor a resume changes dropout, and the global state is left as it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _, lines = walk(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(17)
    _, again = walk(tmp_path / "b")
    assert lines == again
    assert len({line["loss"] for line in lines}) == len(lines), "every step draws anew"


def test_the_optimizer_is_adamw_with_clipping(tmp_path: Path) -> None:
    """Against the paper's update (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), in NumPy."""
    rng = np.random.default_rng(0)
    gradients, start = rng.normal(size=(6, 5)).astype(np.float32) * 3, rng.normal(size=5).astype(np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    options = StepOptions(learning_rate=0.1, schedule="constant", warmup_ratio=0.0, weight_decay=0.2, max_grad_norm=2)
    train(
        {"w": weight},
        [(i,) for i in range(6)],
        lambda units: units,
        lambda i, n: MicroResult((weight * torch.from_numpy(gradients[i])).sum()),
        options=options,
        key="k",
        journal_path=tmp_path / "m.jsonl",
        journal_start=0,
        checkpoints=tmp_path / "c",
    )
    own, mean, square = start.astype(np.float64), np.zeros(5), np.zeros(5)
    for step, gradient in enumerate(gradients.astype(np.float64), 1):
        gradient = gradient * min(1.0, 2.0 / (np.sqrt((gradient**2).sum()) + 1e-6))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        own = own * (1 - 0.1 * 0.2)
        own = own - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(weight.detach().numpy(), own, rtol=1e-5, atol=1e-6)
    norms = [json.loads(line)["grad_norm"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(norms, np.sqrt((gradients.astype(np.float64) ** 2).sum(1)), rtol=1e-5)


@pytest.mark.parametrize("asked", [True, False])
def test_a_backward_allows_no_open_order_where_repeatable_sums_are_asked_for(tmp_path: Path, asked: bool) -> None:
    """Of attention on CUDA that takes errors, not warnings; elsewhere, and after the step, all is as it was."""
    weight, seen = torch.nn.Parameter(torch.zeros(1)), list[tuple[bool, bool]]()

    def state() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    weight.register_hook(lambda gradient: seen.append(state()))
    torch.use_deterministic_algorithms(asked, warn_only=asked)
    try:
        train(
            {"w": weight},
            [(0,)],
            lambda units: units,
            lambda i, n: MicroResult(weight.sum()),
            options=StepOptions(),
            key="k",
            journal_path=tmp_path / "m.jsonl",
            journal_start=0,
            checkpoints=tmp_path / "c",
        )
        assert (seen, state()) == ([(asked, False)], (asked, asked))
    finally:
        torch.use_deterministic_algorithms(False)


def all_weights(folder: Path, tiny: str, die_at: int = 0) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Language modelling with every weight of a tiny model trained."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).train()
    ids = torch.randint(0, 250, (12, 9), generator=torch.Generator().manual_seed(0))

    def loss(micro: tuple[int, ...], num_units: int) -> MicroResult:
        own = ids[list(micro)]
        return MicroResult(model(own, labels=own).loss * len(micro) / num_units)

    def on_step(step: int, total: int, line: dict[str, Any]) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    parameters = dict(model.named_parameters())
    train(
        parameters,
        [tuple(range(at, at + 3)) for at in (0, 3, 6, 9)] * 2,
        lambda units: [units[:2], units[2:]],
        loss,
        options=StepOptions(learning_rate=1e-3, checkpoint_every=2, epochs=2),
        key="k",
        journal_path=folder / "metrics.jsonl",
        journal_start=0,
        checkpoints=folder / "checkpoints",
        on_step=on_step,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: parameter.detach() for name, parameter in parameters.items()}, lines


def test_all_weights_are_trained_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    tiny = str(save_tiny_model(tmp_path / "tiny"))
    whole, lines = all_weights(tmp_path / "whole", tiny)
    killed(f"all_weights(Path({str(tmp_path / 'cut')!r}), {tiny!r}, die_at=5)")
    again, lines_again = all_weights(tmp_path / "cut", tiny)
    assert lines == lines_again
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "model.embed_tokens.weight" in whole
