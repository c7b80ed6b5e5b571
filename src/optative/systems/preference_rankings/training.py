"""Preference training of tiny language models: which pairs turn, and how long ranking predicts winning.

Knows: what is trained, what of it is measured. Does not know: where pairs come from (`worlds`), arms,
criteria. Flips are counted on pairs that were trained on, as published; the held-out ones choose the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optative.systems.preference_rankings.worlds import World, from_texts, write

if TYPE_CHECKING:
    from optative.data.pair_steps import PairSteps
    from optative.generators.language.model import LanguageModel
    from optative.runs.study import Measured

GAMMAS = (0.0, 0.5, 1.0, 2.0)  # 1 is DPO
BETA, STEP = 0.1, 32  # of the loss; pairs in a gradient step
WATCHED = 300  # of the pairs that are trained on
HELD_OUT = "held-out pairs"
FLIPS, EASY = "flip rate at the lowest loss", "flip rate of the easiest quarter over the hardest"
GAP, AUC = "reward accuracy minus ranking accuracy", "AUC of the required loss on training pairs"
SPEARMAN = "Spearman correlation of gamma and ranking accuracy"
WINS, RANKING, PEAK = "win rate by an exact judge", "ranking accuracy", "step of the peak"
REFERENCE, LENGTH = "ranking accuracy of the reference", "ranking accuracy of length alone"
LOWEST, DISTANCE = "step of the lowest held-out loss", "squared distance"
OF_PAIRS = {  # figures of pairs, and the ends of their scales
    **{f"{RANKING} with gamma {gamma:g}": (0.0, 1.0) for gamma in GAMMAS},
    **dict.fromkeys((REFERENCE, LENGTH, FLIPS, AUC), (0.0, 1.0)),
    **dict.fromkeys((EASY, GAP)),
}
BEFORE, AFTER = (f"correlation of both {part} the peak of the win rate" for part in ("before", "after"))
OF_PATH = (PEAK, "highest", "last", f"{DISTANCE} at the peak", BEFORE, AFTER)


def train(world: World, options: Mapping[str, Any], seed: int, gamma: float = 1.0, look: Any = None) -> PairSteps:
    """One training of a copy of the world's model, `options["epochs"]` passes; both kinds of pairs are watched.

    look: called with the model and the steps done, where pairs are measured.
    """
    from copy import deepcopy

    from optative.optimizers.follow import follow
    from optative.optimizers.options import GammaDPO

    lm = replace(world.lm, model=deepcopy(world.lm.model))
    steps = -(-len(world.train) // STEP) * options["epochs"]
    settings = GammaDPO(
        beta=BETA,
        gamma=gamma,
        learning_rate=options["rate"],
        schedule="constant",
        units_per_step=STEP,
        epochs=options["epochs"],
        eval_every=max(1, steps // options["measurements"]),
        token_budget=2048,
        checkpoint_every=steps,
    )
    watched = [*world.held_out, *world.train[:WATCHED]]
    seen = (lambda step: look(lm, step)) if look else None
    return follow(lm, world.train, watched, loss="gamma_dpo", options=settings, seed=seed, look=seen)


def flips(options: Mapping[str, Any], seed: int, world: World) -> Measured:
    """What DPO turned at its lowest held-out loss, and the ranking accuracy that other gammas reach at theirs."""
    from scipy.stats import spearmanr

    from optative.evaluation.pair_curves import flips_by_difficulty, lowest_step, pair_curves
    from optative.evaluation.pairs import auc, difficulty, half_ties, ranked_right, required_loss
    from optative.runs.study import Measured

    accuracy, values = [], dict[str, Any]()
    shown: dict[str, Any] = {}
    for gamma in GAMMAS:
        both = train(world, options, seed, gamma)
        own, other = (both.only(unit.id for unit in units) for units in (world.train, world.held_out))
        at = lowest_step(other, gamma)
        right = ranked_right(own.chosen_SB[at], own.rejected_SB[at])
        accuracy.append(float(right.mean()))
        name = f"{RANKING} with gamma {gamma:g}"
        values |= {name: right, f"{HELD_OUT}: {name}": ranked_right(other.chosen_SB[at], other.rejected_SB[at])}
        if gamma == 1:
            measured, chosen_at = {"": own, f"{HELD_OUT}: ": other}, at
    varied = len(set(accuracy)) > 1
    values[SPEARMAN] = float(spearmanr(GAMMAS, accuracy).statistic) if varied else 0.0
    for where, found in measured.items():
        now = found.chosen_SB[chosen_at] > found.rejected_SB[chosen_at]
        curves = pair_curves(found)
        hard = difficulty(found.ref_chosen_B, found.ref_rejected_B)
        values |= {
            where + GAP: curves.reward_S[chosen_at] - curves.ranking_S[chosen_at],
            where + REFERENCE: half_ties(-hard),
            where + LENGTH: half_ties(found.rejected_tokens_B - found.chosen_tokens_B),
        }
        if parts := flips_by_difficulty(found.ref_chosen_B, found.ref_rejected_B, now):  # else none was wrong
            hardest = max(parts[-1]["flipped"], 0.5 / parts[-1]["n"])  # none flipped: as if half a pair had been
            values |= {where + FLIPS: curves.flip_rate_S[chosen_at], where + EASY: parts[0]["flipped"] / hardest}
        if now.any() and not now.all():
            values[where + AUC] = auc(required_loss(hard, BETA), now)
        for name, numbers in (*curves.share_S.items(), ("loss", curves.mean_loss_S)):
            shown[f"{where}{name.replace('_', ', now ')}"] = (curves.steps_S, numbers)
    values[LOWEST] = other.steps_S[chosen_at]
    return Measured(values, curves=shown)


def path(options: Mapping[str, Any], seed: int) -> dict[str, list[float]]:
    """At each measurement of a long training on judged pairs: `steps`, win rate, ranking accuracy, squared distance."""
    import torch

    from optative.evaluation.pairs import half_ties, ranked_right
    from optative.objectives.word_runs import run_of_words

    world = from_texts(options, seed)
    found: dict[str, list[float]] = {"steps": [], WINS: [], RANKING: [], DISTANCE: []}
    start = {name: p.detach().clone() for name, p in world.lm.model.named_parameters()}

    def judged(lm: LanguageModel) -> list[int]:
        return [run_of_words(own[0].text, world.known) for own in write(lm, world.prompts, 1, seed + 1)]

    before = judged(world.lm)

    def look(lm: LanguageModel, step: int) -> None:
        with torch.no_grad():
            moved = sum(float(((p - start[name]) ** 2).sum()) for name, p in lm.model.named_parameters())
        wins = half_ties([now - was for now, was in zip(judged(lm), before, strict=True)])
        for name, value in (("steps", step), (WINS, float(wins.mean())), (DISTANCE, moved)):
            found[name].append(value)

    pairs = train(world, options, seed, look=look).only(unit.id for unit in world.held_out)
    found[RANKING] = [float(ranked_right(*row).mean()) for row in zip(pairs.chosen_SB, pairs.rejected_SB, strict=True)]
    return found


def peak(found: Mapping[str, Sequence[float]], name: str) -> Measured:
    """Where one curve of a path is highest, the first of several; beside the win rate, whether ranking goes with it."""
    import numpy as np

    from optative.runs.study import Measured

    at = int(np.argmax(found[name]))
    values: dict[str, float] = {PEAK: found["steps"][at], "highest": found[name][at], "last": found[name][-1]}
    if name == WINS:
        values[f"{DISTANCE} at the peak"] = found[DISTANCE][at]
        for correlation, own in ((BEFORE, slice(at + 1)), (AFTER, slice(at, None))):
            wins, ranking = found[WINS][own], found[RANKING][own]
            if len(set(wins)) > 1 and len(set(ranking)) > 1:
                values[correlation] = float(np.corrcoef(wins, ranking)[0, 1])
    return Measured(values, curves={name: (found["steps"], found[name])})
