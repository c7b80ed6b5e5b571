"""A whole training of all weights on pairs, with the log-probabilities of other pairs at its measurements.

Knows: units of which some are trained on and some watched. Does not know: what the numbers mean
(`evaluation.pair_curves`), runs. Short enough to be redone whole: its files are gone afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from optative.core.errors import InputError
from optative.data.pair_steps import PairSteps
from optative.generators.language.model import LanguageModel
from optative.generators.language.trained import prepare_training
from optative.optimizers.options import Preference
from optative.optimizers.preference import sums_of, train_preferences
from optative.optimizers.terms import implicit_beta, terms
from optative.optimizers.units import Units


def follow(
    lm: LanguageModel,
    units: Units,
    watched: Units,
    *,
    loss: str,
    options: Preference,
    seed: int,
    look: Callable[[int], None] | None = None,
) -> PairSteps:
    """Train `lm` on `units`; the reference is the model as it comes. Step 0 is the reference itself.

    watched: pairs, the better answer first; measured every `options.eval_every` steps and at the end. look: called at
    step 0 and at each measurement with the steps done. Raises InputError for a watched unit that is no such pair.
    """
    for unit in watched:
        if len(unit.levels) != 2 or unit.levels[0] <= unit.levels[1]:
            raise InputError("not a pair with the better answer first", field=unit.id, found=unit.levels)
    prepare_training(lm, None, seed)
    start = sums_of(lm, watched, range(len(watched)), options)
    sums = {0: start}

    def keep(step: int, found: list[list[float]]) -> None:
        sums[step] = found
        if look:
            look(step)

    if look:
        look(0)
    with TemporaryDirectory() as folder:
        train_preferences(
            lm,
            units,
            sums_of(lm, units, range(len(units)), options),
            loss=loss,
            options=options,
            seed=seed,
            key=f"follow-{seed}",
            journal_path=Path(folder) / "metrics.jsonl",
            journal_start=0,
            checkpoints=Path(folder) / "checkpoints",
            held_out=(watched, start),
            on_held_out=keep,
        )
    lm.model.requires_grad_(False)

    def side(found: Any, which: int) -> np.ndarray:
        return np.array([own[which] for own in found])

    counted = [unit.group.counted for unit in watched]
    return PairSteps(
        np.array(list(sums)),
        tuple(unit.id for unit in watched),
        np.array([side(found, 0) for found in sums.values()]),
        np.array([side(found, 1) for found in sums.values()]),
        side(start, 0),
        side(start, 1),
        side(counted, 0),
        side(counted, 1),
        implicit_beta(terms(loss, options)),
    )
