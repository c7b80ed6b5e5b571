"""Masked distillation from two teachers: slow formulas, gradients, and faults that the checks must find."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from optative.optimizers.losses import distillation as m

N, V = 12, 5
SEQUENCES = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)


def logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student, old, new, targets; both teachers and the student are right somewhere and wrong somewhere."""
    rng = torch.Generator().manual_seed(seed)
    student, old, new = (2 * torch.randn(N, V, generator=rng, dtype=torch.float64) for _ in range(3))
    return student, old, new, torch.randint(0, V, (N,), generator=rng)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    total = sum(math.exp(x / temperature) for x in row)
    return [math.exp(x / temperature) / total for x in row]


def slow(
    align: str, student: Any, old: Any, new: Any, targets: Any, temperature: float, nll_weight: float
) -> list[float]:
    """The paper's formula, a token at a time."""
    s, o, n, y, q = student.tolist(), old.tolist(), new.tolist(), targets.tolist(), SEQUENCES.tolist()

    def gain(i: int) -> float:  # how much likelier the old model finds the target
        return math.log(softmax(o[i])[y[i]] / softmax(s[i])[y[i]])

    masks = {
        "student_wrong": lambda i: max(range(V), key=lambda v: s[i][v]) != y[i],
        "old_right": lambda i: max(range(V), key=lambda v: o[i][v]) == y[i],
        "always": lambda i: True,
        "never": lambda i: False,
        "likelier_token": lambda i: gain(i) > 0,
        "likelier_sequence": lambda i: sum(gain(j) for j in range(N) if q[j] == q[i]) > 0,
    }
    found = []
    for i in range(N):
        p = softmax((o if masks[align](i) else n)[i], temperature)
        own = softmax(s[i], temperature)
        kl = sum(a * math.log(a / b) for a, b in zip(p, own))
        found.append(temperature**2 * kl - nll_weight * math.log(softmax(s[i])[y[i]]))
    return found


def fast(align: Any, student: Any, old: Any, new: Any, targets: Any, **numbers: float) -> torch.Tensor:
    mask_N = m.towards_old(align, student, old, targets, SEQUENCES)
    return m.compatible(student, old, new, targets, mask_N, **numbers)


@pytest.mark.parametrize("align", m.ALIGNMENTS)
@pytest.mark.parametrize(("temperature", "nll_weight"), [(1.0, 0.0), (2.0, 0.0), (0.5, 0.7)])
def test_the_loss_by_a_slow_formula(align: str, temperature: float, nll_weight: float) -> None:
    given = logits()
    found = fast(align, *given, temperature=temperature, nll_weight=nll_weight)
    assert found.tolist() == pytest.approx(slow(align, *given, temperature, nll_weight))


def test_every_mask_is_another_one_and_mixed() -> None:
    student, old, _, targets = logits()
    masks = {align: m.towards_old(align, student, old, targets, SEQUENCES) for align in m.ALIGNMENTS}
    assert len({tuple(mask.tolist()) for mask in masks.values()}) == len(m.ALIGNMENTS)
    assert all(mask.any() and not mask.all() for align, mask in masks.items() if align not in ("always", "never"))
    unknown: Any = "sometimes"
    with pytest.raises(ValueError, match="unknown alignment"):
        m.towards_old(unknown, student, old, targets, SEQUENCES)
    with pytest.raises(ValueError, match="new_NV has shape"):
        m.compatible(student, old, old[:, :3], targets, masks["always"])


@pytest.mark.parametrize("align", m.ALIGNMENTS)
def test_gradients_reach_the_student_alone_and_are_those_of_differences(align: Any) -> None:
    student, old, new, targets = logits(1)
    inputs = [x.clone().requires_grad_() for x in (student, old, new)]
    fast(align, *inputs, targets, temperature=1.5, nll_weight=0.3).sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is None
    assert inputs[2].grad is None
    mask_N = m.towards_old(align, student, old, targets, SEQUENCES)  # constant: no gradient goes through the choice
    step = 1e-6
    for n, v in ((0, 1), (4, 0), (7, 4), (11, 2)):
        ends = []
        for sign in (1, -1):
            moved = student.clone()
            moved[n, v] += sign * step
            ends.append(m.compatible(moved, old, new, targets, mask_N, temperature=1.5, nll_weight=0.3).sum())
        assert float(inputs[0].grad[n, v]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_zero_at_the_teacher_and_positive_elsewhere() -> None:
    student, old, new, targets = logits(2)
    assert fast("always", old, old, new, targets).abs().max() < 1e-12
    assert fast("never", new, old, new, targets).abs().max() < 1e-12
    assert bool((fast("student_wrong", student, old, new, targets) > 0).all())


def test_doctests() -> None:
    assert doctest.testmod(m).failed == 0


# Traps: the same training loop in small, with a property that only the right loss has


def the_teacher_covers_what_it_may_say() -> None:
    """KL(teacher || student): a student that cannot say both things right gives each some mass rather than one all."""
    teacher_NV = torch.tensor([[0.5, 1e-6, 0.5]], dtype=torch.float64).log()
    split, one_sided = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.3, 0.4, 0.3], [0.98, 0.01, 0.01]))
    assert float(m.teacher_kl(teacher_NV, split)) < float(m.teacher_kl(teacher_NV, one_sided))
    assert float(m.teacher_kl(teacher_NV, split)) == pytest.approx(math.log(5 / 3), abs=1e-3)


def the_gradient_keeps_its_size_when_the_temperature_rises() -> None:
    sizes = []
    for temperature in (50.0, 100.0):
        student, old, _, _ = logits(3)
        student.requires_grad_()
        m.teacher_kl(old, student, temperature=temperature).sum().backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def the_mask_follows_the_student() -> None:
    """A student that has become right learns from the new model again, whatever the teachers say."""
    _, old, new, targets = logits(4)
    right = 10 * torch.nn.functional.one_hot(targets, V).double()
    assert not m.towards_old("student_wrong", right, old, targets, SEQUENCES).any()
    assert m.towards_old("student_wrong", -right, old, targets, SEQUENCES).all()
    right.requires_grad_()
    assert not fast("student_wrong", right, old, new, targets).sum().isnan()


def swapped(teacher_NV: Any, student_NV: Any, *, temperature: float = 1.0) -> torch.Tensor:
    p_NV, q_NV = (student_NV / temperature).log_softmax(-1), (teacher_NV.detach() / temperature).log_softmax(-1)
    return temperature**2 * (p_NV.exp() * (p_NV - q_NV)).sum(-1)


def without_square(teacher_NV: Any, student_NV: Any, *, temperature: float = 1.0) -> torch.Tensor:
    p_NV, q_NV = (teacher_NV.detach() / temperature).log_softmax(-1), (student_NV / temperature).log_softmax(-1)
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)


def by_a_teacher(align: Any, student_NV: Any, old_NV: Any, targets_N: Any, sequence_N: Any) -> torch.Tensor:
    return old_NV.argmax(-1) != targets_N  # a teacher's argmax, which never changes, in place of the student's


@pytest.mark.parametrize(
    ("check", "name", "fault"),
    [
        (the_teacher_covers_what_it_may_say, "teacher_kl", swapped),
        (the_gradient_keeps_its_size_when_the_temperature_rises, "teacher_kl", without_square),
        (the_mask_follows_the_student, "towards_old", by_a_teacher),
    ],
    ids=("direction", "temperature", "mask"),
)
def test_trap(check: Callable[[], None], name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setattr(m, name, fault)
    with pytest.raises(AssertionError):
        check()
