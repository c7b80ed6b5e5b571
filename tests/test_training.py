"""The step engine on a small regression whose gradients are known: accumulation, schedules, kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optative.training.batches import step_plan
from optative.training.engine import MicroResult, train
from optative.training.options import StepOptions
from optative.training.schedule import learning_rate

PROGRAM = Path(__file__)


def regression(
    folder: Path, micro_size: int = 2, die_at: int | None = None, key: str = "k"
) -> tuple[torch.Tensor, list[dict]]:
    """Least squares over 10 units; returns the weights and the lines of metrics. `die_at`: kill -9 after that step."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 3), torch.randn(10)
    weight = torch.nn.Parameter(torch.zeros(3))
    options = StepOptions(learning_rate=0.1, units_per_step=4, epochs=4, checkpoint_every=2)
    plan = step_plan(10, 4, 4, seed=5)

    def micro_batches(units):
        return [units[at : at + micro_size] for at in range(0, len(units), micro_size)]

    def loss(micro, num_units):
        errors = (inputs[list(micro)] @ weight - targets[list(micro)]) ** 2
        return MicroResult(errors.sum() / num_units, {"error": (float(errors.detach().sum()), float(len(micro)))})

    def on_step(step, total, line):
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(
        {"weight": weight},
        plan,
        micro_batches,
        loss,
        options=options,
        key=key,
        journal_path=folder / "metrics.jsonl",
        journal_start=0,
        checkpoints=folder / "checkpoints",
        on_step=on_step,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weight.detach(), lines


def test_micro_batches_change_nothing_but_speed(tmp_path):
    one, lines_one = regression(tmp_path / "a", micro_size=1)
    four, lines_four = regression(tmp_path / "b", micro_size=4)
    torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-6)
    for a, b in zip(lines_one, lines_four):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["error"] == pytest.approx(a["loss"], rel=1e-5)  # the mean over the step's units is the loss itself
    assert [line["step"] for line in lines_one] == list(range(1, 13))


@pytest.mark.parametrize("die_at", [1, 2, 5, 11])
def test_kill_and_resume_gives_the_same_bits(tmp_path, die_at):
    whole, lines = regression(tmp_path / "whole")
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); from pathlib import Path; "
    code += f"from test_training import regression; regression(Path({str(tmp_path / 'cut')!r}), die_at={die_at})"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again, lines_again = regression(tmp_path / "cut")
    assert torch.equal(whole, again)
    assert lines == lines_again


def test_a_checkpoint_of_another_training_is_not_used(tmp_path):
    regression(tmp_path, key="old")
    fresh, _ = regression(tmp_path / "fresh", key="new")
    other, lines = regression(tmp_path, key="new")
    assert torch.equal(fresh, other)
    assert len(lines) == 12


def test_step_plan_uses_every_unit_once_an_epoch_and_depends_on_the_seed():
    plan = step_plan(23, 5, 2, seed=1)
    first = [i for step in plan[:5] for i in step]
    assert sorted(first) == list(range(23)) == sorted(i for step in plan[5:] for i in step)
    assert plan == step_plan(23, 5, 2, seed=1) != step_plan(23, 5, 2, seed=2)
    assert first != [i for step in plan[5:] for i in step]


def test_schedules_reach_the_peak_and_fall():
    for schedule in ("constant", "linear", "cosine"):
        rates = [learning_rate(s, 100, peak=1.0, schedule=schedule, warmup_ratio=0.1) for s in range(100)]
        assert rates[0] == 0.1
        assert max(rates) == 1.0 == rates[10]
        assert schedule == "constant" or (rates[-1] < 0.02 and rates[10:] == sorted(rates[10:], reverse=True))


def test_a_gradient_that_is_not_finite_stops_the_run_with_the_step(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(1))

    def loss(micro, num_units):
        return MicroResult((weight * float("nan")).sum())

    with pytest.raises(Exception, match="step 1: the gradient is not finite"):
        train(
            {"w": weight},
            [(0,)],
            lambda units: [units],
            loss,
            options=StepOptions(),
            key="k",
            journal_path=tmp_path / "m.jsonl",
            journal_start=0,
            checkpoints=tmp_path / "c",
        )
