"""System 51, the identities: they hold, they can fail, and what was not run is not met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optative.evaluation import pairs
from optative.systems import preference_rankings as m
from optative.systems.catalogue import find
from optative.systems.status import standing

SMALL = {"pairs": 2000, "problems": 10}


def identities_hold() -> None:
    found = m.identities(SMALL, 0).values
    assert found["pairs on which the theorem holds"] == 1
    assert found["largest error of the idealised margin, nats"] < 1e-3


def loss_without_reference(difficulty: Any, beta: float) -> np.ndarray:
    return np.full(len(difficulty), np.log(2))  # the bound that would hold if the reference had no say


def shares_as_odds(shares: Any, epsilon: float = 1e-3) -> np.ndarray:
    return np.asarray(shares) / (1 - np.asarray(shares))  # the odds, without their logarithm


@pytest.mark.parametrize(
    ("name", "fault"), [("required_loss", loss_without_reference), ("log_odds", shares_as_odds)], ids=("bound", "odds")
)
def test_identities_hold_and_fail_with_a_fault(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    identities_hold()
    monkeypatch.setattr(pairs, name, fault)
    with pytest.raises(AssertionError):
        identities_hold()


def test_what_was_not_run_is_not_met() -> None:
    state = standing(find("51"))
    assert state.verdict == "runs"
    assert [finding.met for finding in state.findings[:2]] == [True, True]
    later = state.findings[2:]
    assert len(later) == 10
    assert all(finding.met is None and not finding.effects for finding in later)
