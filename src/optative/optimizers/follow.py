"""A whole training of all weights on pairs, with the log-probabilities of other pairs at its measurements.

Knows: units of which some are trained on and some watched. Does not know: what the numbers mean
(`evaluation.pair_curves`), runs. Short enough to be redone whole: its files are gone afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from optative.core.errors import InputError
from optative.data.pair_steps import PairSteps
from optative.generators.language.model import LanguageModel
from optative.generators.language.trained import prepare_training
from optative.optimizers.options import Preference
from optative.optimizers.preference import Reference, sums_of, train_preferences
from optative.optimizers.terms import Term, implicit_beta, terms
from optative.optimizers.units import Units, rows


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
    sums: dict[int, Reference] = {0: start}

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

    found = pair_steps(watched, sums, terms(loss, options))
    assert found is not None
    return found


def pair_steps(units: Units, sums: Mapping[int, Reference], losses: Sequence[Term]) -> PairSteps | None:
    """The pairs of some units with their log-probabilities at the steps of `sums`; None where no unit holds a pair.

    sums: steps done -> of each unit the sums of its completions. The first are the reference's.
    """
    own = [(i, row.members) for i, unit in enumerate(units) for row in rows(unit, i, "pair")]
    if not own:
        return None

    def side(values: Reference, which: int) -> list[float]:
        return [values[i][members[which]] for i, members in own]

    names = [f"{units[i].id}/{a}>{b}" if len(units[i].levels) > 2 else units[i].id for i, (a, b) in own]
    start, counted = next(iter(sums.values())), {i: unit.counted for i, unit in enumerate(units)}
    return PairSteps(
        np.array(list(sums)),
        tuple(names),
        np.array([side(values, 0) for values in sums.values()]),
        np.array([side(values, 1) for values in sums.values()]),
        np.array(side(start, 0)),
        np.array(side(start, 1)),
        np.array(side(counted, 0)),
        np.array(side(counted, 1)),
        implicit_beta(losses),
    )
