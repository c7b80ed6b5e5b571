"""A whole preference or supervised training in one call, for trainings that are short enough to be redone whole.

Knows: that some losses need a reference, where the trainer keeps its files. Does not know: runs, stages, what units
mean. The reference is where the policy started (`starting_point`), however often it was trained since.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optative.core.files import read_jsonl
from optative.generators.language.model import LanguageModel
from optative.optimizers.options import Preference
from optative.optimizers.preference import Beside, Reference, reference_sums, train_preferences
from optative.optimizers.terms import terms
from optative.optimizers.units import Units


def fit(
    lm: LanguageModel,
    units: Units,
    *,
    loss: str,
    options: Preference,
    seed: int,
    folder: Path,
    beside: Beside | None = None,
    held_out: Units = (),
    on_held_out: Callable[[int, list[list[float]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train the weights of `lm` that are trained on all units; returns the metrics of each step.

    beside, on_held_out: see `train_preferences`. held_out: units that no step trains on, measured as the options say.
    `folder` holds journal and checkpoints of this training alone. Each call has an optimizer of its own, so that
    momentum does not pass from one to the next.
    """
    needed = any(term.loss.reference for term in terms(loss, options))

    def reference(own: Units) -> Reference | None:
        return reference_sums(lm, own, range(len(own)), options) if needed else None

    train_preferences(
        lm,
        units,
        reference(units),
        loss=loss,
        options=options,
        seed=seed,
        key=f"fit-{seed}",
        journal_path=folder / "metrics.jsonl",
        journal_start=0,
        checkpoints=folder / "checkpoints",
        held_out=(held_out, reference(held_out)) if held_out else None,
        on_held_out=on_held_out,
        beside=beside,
    )
    return list(read_jsonl(folder / "metrics.jsonl"))
