"""Mutual information: losses by slow formulas, squares on a tiny model, principles; each check fails with its fault."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.core.errors import InputError
from optative.core.files import read_jsonl
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group
from optative.generators.language.score import score
from optative.generators.language.trained import prepare_training, trained_parameters
from optative.objectives import principles
from optative.objectives.principles import Principle
from optative.optimizers import mutual_information as m
from optative.optimizers.losses import mutual_information as losses
from optative.optimizers.losses.mutual_information import accuracies, bounds, per_response, two_sided
from tiny_models import save_tiny_model

# The pure functions, by slow formulas


def random_square(seed: int, C: int, B: int = 4) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(-20, 3, (B, C, C)))


def slow_bounds(a: Any) -> tuple[float, float]:
    """Rows and columns of one query, with probabilities in place of log-sum-exp."""
    p, C = np.exp(a - a.max()), len(a)
    rows = sum(math.log(p[j, j] / (sum(p[j, k] for k in range(C)) / C)) for j in range(C)) / C
    columns = sum(math.log(p[j, j] / (sum(p[k, j] for k in range(C)) / C)) for j in range(C)) / C
    return rows, columns


@pytest.mark.parametrize("C", [2, 3, 5])
def test_loss_bounds_and_accuracies_by_slow_formulas(C: int) -> None:
    logps_BCC = random_square(C, C)
    found, right = bounds(logps_BCC), accuracies(logps_BCC)
    for b, a in enumerate(logps_BCC.numpy()):
        rows, columns = slow_bounds(a)
        assert float(found.rows_B[b]) == pytest.approx(rows)
        assert float(found.columns_B[b]) == pytest.approx(columns)
        assert float(found.mean_B[b]) == pytest.approx((rows + columns) / 2)
        assert float(two_sided(logps_BCC)[b]) == pytest.approx(math.log(C) - (rows + columns) / 2)
        assert float(right.rows_B[b]) == pytest.approx(np.mean(a.argmax(1) == np.arange(C)))
        assert float(right.columns_B[b]) == pytest.approx(np.mean(a.argmax(0) == np.arange(C)))
    assert float(bounds(50.0 * torch.eye(C)[None]).mean_B) == pytest.approx(math.log(C))
    assert float(accuracies(torch.zeros(1, C, C)).mean_B) == 0, "where nothing is told apart, nothing is right"


@pytest.mark.parametrize("C", [2, 4])
def test_the_gradient_is_half_of_each_softmax_minus_the_diagonal(C: int) -> None:
    logps_BCC = random_square(7, C).requires_grad_()
    two_sided(logps_BCC).sum().backward()
    a = logps_BCC.detach().numpy()
    rows = np.exp(a) / np.exp(a).sum(2, keepdims=True)
    columns = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    assert logps_BCC.grad is not None
    assert logps_BCC.grad.numpy() == pytest.approx(((rows + columns) / 2 - np.eye(C)) / C)


def test_wrong_shapes_are_errors() -> None:
    for wrong in (torch.zeros(2, 2), torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match=r"expected \[B, C, C\]"):
            two_sided(wrong)
    with pytest.raises(ValueError, match="two or more"):
        bounds(torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="no tokens"):
        per_response(torch.zeros(1, 2, 2), torch.tensor([[3.0, 0.0]]), "mean")


def test_doctests() -> None:
    for module in (losses, principles):
        found = doctest.testmod(module, extraglobs={"torch": torch})
        assert found.attempted > 0
        assert found.failed == 0


# Squares on a tiny model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = load_language_model(str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")), dtype="float32")
    prepare_training(loaded, None, 0)
    return loaded


@pytest.fixture
def restored(lm: Any) -> Any:
    """The model as it was, whatever an earlier test trained."""
    start = {name: p.detach().clone() for name, p in trained_parameters(lm).items()}
    yield lm
    with torch.no_grad():
        for name, parameter in trained_parameters(lm).items():
            parameter.copy_(start[name])


def squares(n: int, C: int = 2, seed: int = 0, end: int = 258) -> list[m.Square]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(0, 200, rng.integers(low, high)))

    return [m.square([ids(5, 20) for _ in range(C)], [(*ids(2, 12), end) for _ in range(C)], (end,)) for _ in range(n)]


@pytest.mark.parametrize("C", [2, 3])
def test_the_square_by_scoring_one_answer_at_a_time(lm: Any, C: int) -> None:
    given = squares(5, C)
    sums_BCC, tokens_BC = m.measure(lm, given, token_budget=100)
    for b, one in enumerate(given):
        for j in range(C):
            for k in range(C):
                answer = one.groups[0].completion_ids[k]
                ((alone,),) = score(lm, [Group(one.groups[j].prompt_ids, (answer,))], packed=False)
                assert alone.logps is not None
                assert float(sums_BCC[b, j, k]) == pytest.approx(alone.logps.sum(), abs=2e-4)
                assert float(tokens_BC[b, k]) == len(answer)


def test_packing_changes_neither_the_loss_nor_the_gradient(lm: Any) -> None:
    given, found = squares(6), []
    for budget in (16, 150, 5000):
        options = m.MutualInformation(token_budget=budget)
        packs = m.pack_squares(given, budget)
        assert sum(map(len, packs)) == 6
        total = sum(m.pack_loss(lm, pack, 6, options).loss for pack in packs)
        gradients = torch.autograd.grad(total, list(trained_parameters(lm).values()))
        found.append((len(packs), total.detach(), torch.cat([g.flatten() for g in gradients])))
    assert [number for number, _, _ in found] == sorted({number for number, _, _ in found}, reverse=True)
    for _, loss, gradient in found[1:]:
        assert float(loss) == pytest.approx(float(found[0][1]), abs=1e-5)
        assert torch.allclose(gradient, found[0][2], atol=1e-5)


def train(lm: Any, folder: Path, *, on_step: Any = None, given: Any = None, **changed: Any) -> list[dict[str, Any]]:
    asked = {"units_per_step": 4, "epochs": 3, "learning_rate": 3e-3, "checkpoint_every": 2, **changed}
    m.train_mutual_information(
        lm,
        squares(8) if given is None else given,
        options=m.MutualInformation.model_validate(asked),
        seed=0,
        key="mi",
        journal_path=folder / "metrics.jsonl",
        checkpoints=folder / "checkpoints",
        on_step=on_step,
    )
    return list(read_jsonl(folder / "metrics.jsonl"))


def test_training_makes_answers_tell_their_constitutions(restored: Any, tmp_path: Path) -> None:
    given = squares(8)
    before = float(bounds(m.measure(restored, given)[0]).mean_B.mean())
    lines = train(restored, tmp_path, given=given, epochs=12)
    after = float(bounds(m.measure(restored, given)[0]).mean_B.mean())
    assert len(lines) == 24
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert before + 0.2 < after <= math.log(2)
    assert {"bound/rows", "bound/columns", "accuracies/rows", "accuracies/columns", "answer_tokens"} <= lines[0].keys()


def test_a_killed_training_goes_on_with_equal_numbers(restored: Any, tmp_path: Path) -> None:
    start = {name: p.detach().clone() for name, p in trained_parameters(restored).items()}
    (whole := tmp_path / "whole").mkdir()
    (cut := tmp_path / "cut").mkdir()
    wanted = train(restored, whole)
    ends = {name: p.detach().clone() for name, p in trained_parameters(restored).items()}

    def stop(done: int, *_: Any) -> None:
        if done == 5:
            raise KeyboardInterrupt

    for name, parameter in trained_parameters(restored).items():
        parameter.data.copy_(start[name])
    with pytest.raises(KeyboardInterrupt):
        train(restored, cut, on_step=stop)
    assert train(restored, cut) == wanted
    assert all(torch.equal(p, ends[name]) for name, p in trained_parameters(restored).items())


def test_an_option_that_cannot_act_is_an_error(lm: Any, tmp_path: Path) -> None:
    assert len(train(lm, tmp_path, steps=1, learning_rate=1e-9)) == 1
    with pytest.raises(InputError, match="at most 6"):
        train(lm, tmp_path, steps=7)
    with pytest.raises(InputError, match="equally many"):
        m.square([(1, 2)], [(1,), (2,)], ())
    with pytest.raises(InputError, match="equally many constitutions"):
        m.measure(lm, [*squares(1, 2), *squares(1, 3)])


def test_a_model_that_does_not_see_its_constitution_is_told_so(lm: Any) -> None:
    rng = np.random.default_rng(0)
    blind = [
        m.square([(5, 6, 7)] * 2, [tuple(map(int, rng.integers(0, 200, 6))) for _ in range(2)], ()) for _ in range(20)
    ]
    with pytest.raises(InputError, match="nothing to make stronger") as raised:
        m.initial_bound(lm, blind)
    assert "stronger base model" in str(raised.value)
    with pytest.raises(InputError, match="no query with different answers"):
        m.initial_bound(lm, [])


# Traps: a check that holds, and fails when its fault is put back


def rows_and_columns_are_not_swapped() -> None:
    a = torch.tensor([[[0.0, -1.0], [-5.0, -5.0]]])  # the first constitution likes both answers: columns suffer less
    rows, columns = slow_bounds(a[0].numpy())
    assert float(bounds(a).rows_B) == pytest.approx(rows)
    assert float(bounds(a).columns_B) == pytest.approx(columns)


def the_end_token_does_not_count() -> None:
    ended = m.square([(1, 2), (1, 3)], [(4, 5, 258), (6, 258)], (258,))
    cut = m.square([(1, 2), (1, 3)], [(4, 5), (6,)], (258,))
    assert ended == cut


def three_constitutions_are_three() -> None:
    a = random_square(1, 3)
    assert float(two_sided(a)[0]) == pytest.approx(math.log(3) - sum(slow_bounds(a[0].numpy())) / 2)
    a[:, 2, 2] = -100.0
    assert float(accuracies(a).rows_B.max()) <= 2 / 3 + 1e-6


def lengths_are_those_of_the_answers() -> None:
    sums_BCC = torch.tensor([[[-2.0, -9.0], [-4.0, -3.0]]])
    found = per_response(sums_BCC, torch.tensor([[2.0, 3.0]]), "mean")
    assert found.tolist() == [[[-1.0, -3.0], [-2.0, -1.0]]]


def fault_swapped(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "bounds", lambda a: bounds_as_they_are(a.transpose(1, 2)))


def fault_end_counts(patch: pytest.MonkeyPatch) -> None:
    real = m.square
    patch.setattr(m, "square", lambda prompts, answers, end: real(prompts, answers, ()))


def fault_two_hard_coded(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "two_sided", lambda a: loss_as_it_is(a[:, :2, :2]))


def fault_accuracy_hard_coded(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "accuracies", lambda a: losses.Sides(*(torch.ones(len(a)) for _ in range(2))))


def fault_lengths_of_constitutions(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "per_response", lambda sums, tokens, length: sums / tokens[:, :, None])


bounds_as_they_are, loss_as_it_is = bounds, two_sided


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (rows_and_columns_are_not_swapped, fault_swapped),
        (the_end_token_does_not_count, fault_end_counts),
        (three_constitutions_are_three, fault_two_hard_coded),
        (three_constitutions_are_three, fault_accuracy_hard_coded),
        (lengths_are_those_of_the_answers, fault_lengths_of_constitutions),
    ],
    ids=lambda given: given.__name__,
)
def test_trap(
    check: Callable[[], None],
    fault: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


# Principles

SIZE = Principle("size", ("Be brief.", "Be long."))
CASE = Principle("case", ("Shout.", "Whisper.", "Speak."))


def test_constitutions_state_every_principle_and_can_be_read_back() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        chosen = principles.draw((SIZE, CASE), 3, rng)
        assert len(set(chosen)) == 3
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert principles.differing(chosen[a], chosen[b])
        order = principles.shuffled(2, rng)
        text = principles.constitution((SIZE, CASE), chosen[0], order)
        stated = principles.statements(text)
        assert set(stated) == {SIZE.wordings[chosen[0][0]], CASE.wordings[chosen[0][1]]}
        seen |= {(order, c) for c in chosen}
    assert len(seen) == 12, "all orders and combinations come up"
    assert principles.differing((0, 1), (0, 2)) == (1,)
    only = {(0, 0), (1, 2)}
    assert set(principles.draw((SIZE, CASE), 2, rng, only=only)) == only


def test_wrong_principles_are_errors() -> None:
    with pytest.raises(InputError, match="two or more different wordings"):
        Principle("size", ("Be brief.", "Be brief."))
    with pytest.raises(InputError, match="2 to 6"):
        principles.draw((SIZE, CASE), 7, np.random.default_rng(0))
    with pytest.raises(InputError, match="not a numbered list"):
        principles.statements("Be brief.")
    with pytest.raises(ValueError, match="each of 2 principles once"):
        principles.constitution((SIZE, CASE), (0, 1), (0, 0))
