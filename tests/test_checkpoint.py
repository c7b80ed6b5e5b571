"""Checkpoints: whole or absent, the newest and the best, the same bits back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from optative.core.errors import InputError
from optative.training.checkpoint import load_best, load_checkpoint, save_best, save_checkpoint

Parameters = dict[str, torch.nn.Parameter]


def made(seed: int, steps: int = 3) -> tuple[Parameters, torch.optim.AdamW]:
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"a.weight": (3, 2), "a//odd.name": (4,), "b": (), "c": (2, 3)}
    parameters = {name: torch.nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}
    parameters["transposed"] = torch.nn.Parameter(torch.randn(3, 4, generator=draw).t())
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)
    for _ in range(steps):
        for name, parameter in parameters.items():
            if name != "c":  # one that was never used has no state
                parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    return parameters, optimizer


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    parameters, optimizer = made(0)
    save_checkpoint(tmp_path, 7, parameters, optimizer, {"key": "k", "place": [1, 2]})
    others, other_optimizer = made(1, steps=0)
    assert load_checkpoint(tmp_path, "k", others, other_optimizer) == {"step": 7, "key": "k", "place": [1, 2]}
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name])
        state, other_state = optimizer.state[parameter], other_optimizer.state.get(others[name], {})
        assert state.keys() == other_state.keys()
        assert all(torch.equal(state[kind], other_state[kind]) for kind in state)
    for both in (parameters, others):
        for parameter in both.values():
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    other_optimizer.step()
    assert all(torch.equal(parameter, others[name]) for name, parameter in parameters.items())


def test_only_the_newest_and_its_best_are_kept(tmp_path: Path) -> None:
    parameters, optimizer = made(0)

    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    save_best(tmp_path, 2, parameters, {"key": "k"}, older=0)
    save_checkpoint(tmp_path, 3, parameters, optimizer, {"key": "k"}, best=2)
    save_best(tmp_path, 4, parameters, {"key": "k"}, older=2)
    save_best(tmp_path, 5, parameters, {"key": "k"}, older=2)
    assert names() == ["best-2", "best-5", "step-3"], "the newest checkpoint still needs best-2"
    save_checkpoint(tmp_path, 6, parameters, optimizer, {"key": "k"}, best=5)
    assert names() == ["best-5", "step-6"]


def test_a_write_that_was_cut_off_is_not_there_and_is_swept_up(tmp_path: Path) -> None:
    parameters, optimizer = made(0)
    save_checkpoint(tmp_path, 3, parameters, optimizer, {"key": "k"})
    for name in (".step-6.abc.part", ".step-1.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"step": 6, "key": "k"}))
    (tmp_path / "step-5").mkdir()  # without a state: not whole
    state = load_checkpoint(tmp_path, "k", parameters, optimizer)
    assert state is not None
    assert state["step"] == 3
    save_checkpoint(tmp_path, 9, parameters, optimizer, {"key": "k"})
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_training_is_left_alone(tmp_path: Path) -> None:
    parameters, optimizer = made(0)
    save_checkpoint(tmp_path, 3, parameters, optimizer, {"key": "k"})
    save_best(tmp_path, 3, parameters, {"key": "k"}, older=0)
    others, other_optimizer = made(1, steps=0)
    before = {name: parameter.detach().clone() for name, parameter in others.items()}
    assert load_checkpoint(tmp_path, "other", others, other_optimizer) is None
    for step, key in ((3, "other"), (4, "k")):
        with pytest.raises(InputError, match="the best evaluation are not there"):
            load_best(tmp_path, step, key, others)
    assert all(torch.equal(before[name], parameter) for name, parameter in others.items())
    load_best(tmp_path, 3, "k", others)
    assert all(torch.equal(parameters[name], parameter) for name, parameter in others.items())
