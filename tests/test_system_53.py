"""System 53: compatible updates of two small networks, the traps of the card, and what was not run is not met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from optative.evaluation import choices
from optative.optimizers.losses import distillation
from optative.runs.study import Measured
from optative.systems import compatible_updates as m
from optative.systems.catalogue import find
from optative.systems.record import Bound, Results
from optative.systems.status import judge, standing

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
OPTIONS = {"updates": 4, "units": [8, 12], "steps": 200, "learning_rate": 0.015}
SEED = 7


def measured(method: str, **changed: Any) -> Measured:
    return m.digits({"method": method, **OPTIONS, **changed}, SEED)


def mean(found: Measured, name: str) -> float:
    return float(np.mean(found.values[name]))


def of_all() -> dict[str, Measured]:
    return {method: measured(method) for method in (m.OLD, m.NEW, m.LONGER, m.MUSCLE)}


def test_fewer_old_successes_are_lost_and_the_table_adds_up() -> None:
    found = of_all()
    old = mean(found[m.OLD], "accuracy")
    for method, own in found.items():
        gain = mean(own, "PFR") - mean(own, "NFR")
        assert mean(own, "accuracy") - old == pytest.approx(gain), method
        assert mean(own, "NFR_mc") >= mean(own, "NFR")
        assert own.values[m.ITSELF] == 0, "the noise floor of greedy choices"
        assert own.values[m.RATIO] == pytest.approx(mean(own, "NFR") / mean(found[m.NEW], "NFR"))
        assert own.clusters["NFR"] == found[m.NEW].clusters["NFR"]
    assert found[m.MUSCLE].values[m.RATIO] <= 0.85
    assert mean(found[m.MUSCLE], "NFR") < mean(found[m.LONGER], "NFR")


def test_the_same_cell_gives_the_same_numbers() -> None:
    first, _ = measured(m.MUSCLE, updates=1, steps=20), m.versions.cache_clear()
    again = measured(m.MUSCLE, updates=1, steps=20)
    assert all(np.array_equal(first.values[name], again.values[name]) for name in first.values)


# Traps


def mask_is_the_students() -> None:
    """M_v2 is wrong on these and the student right: the new model teaches, so that at its logits nothing is lost."""
    targets = torch.tensor([0, 0])
    new, old = torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    student = torch.tensor([[1.0, 0.9], [2.0, 1.9]])
    loss = m.further(m.METHODS[m.MUSCLE], old, new, targets)
    assert torch.allclose(loss(student), distillation.teacher_kl(new, student))
    assert torch.allclose(loss(new), distillation.teacher_kl(old, new)), "and the old one does as soon as it is wrong"


def fault_mask_of_the_new_model(patch: pytest.MonkeyPatch) -> None:
    further = m.further

    def wrong(method: m.Method, old: torch.Tensor, new: torch.Tensor, targets: torch.Tensor) -> Any:
        right = distillation.towards_old
        patch.setattr(distillation, "towards_old", lambda align, _, *given: right(align, new, *given))
        return further(method, old, new, targets)

    patch.setattr(m, "further", wrong)


def copying_the_old_model_is_seen() -> None:
    """It has the lowest NFR there can be; PFR and accuracy stand beside it and give it away."""
    copy, muscle = measured(m.OLD), measured(m.MUSCLE)
    assert mean(copy, "NFR") == mean(copy, "PFR") == 0
    assert mean(muscle, "PFR") > 0.02
    assert muscle.values[m.GAIN] > -0.02 > copy.values[m.GAIN]


def fault_copying(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(m.METHODS, m.MUSCLE, m.Method("always"))  # all that plain distillation can reach is M_v1


def ties_are_no_flips() -> None:
    """Two options that are equally good, with the rounding of another batch: the same is taken."""
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.normal(-20, 3, (300, 1)), 4, axis=1) + np.array([0, 0, -5, -9])
    taken = [choices.take(scores + rng.normal(0, 3e-6, scores.shape)) for _ in range(2)]
    assert np.array_equal(*taken)


def fault_no_tolerance(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(choices, "take", lambda scores, tolerance=0.0: np.asarray(scores).argmax(1))


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (mask_is_the_students, fault_mask_of_the_new_model),
        (copying_the_old_model_is_seen, fault_copying),
        (ties_are_no_flips, fault_no_tolerance),
    ],
    ids=lambda given: given.__name__,
)
def test_trap(
    check: Callable[[], None], fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


# The record


def test_what_was_not_run_is_not_met() -> None:
    limits = [(c.metric, c.limit) for c in m.SYSTEM.criteria if isinstance(c, Bound)]
    assert limits == [
        (m.RATIO, 0.85), (m.UPPER, 0.0), (m.GAIN, -0.005), (m.RATIO, 0.90), (m.GAIN_S, 0.0), (m.RATIO, 0.85),
    ]  # fmt: skip
    values = {(m.RATIO, m.arm(m.DIGITS, m.MUSCLE)): dict.fromkeys(range(3), 0.8)}
    found = Results("made up", m.SYSTEM.hash, "small", "", {}, {}, values)
    met = [judge(criterion, found).met for criterion in m.SYSTEM.criteria]
    assert met == [None] * 7 + [True]
    assert standing(find("53")).verdict in ("runs", "negative", "reproduced")
