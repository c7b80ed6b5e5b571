"""Flips: which prompts went from right to wrong, and from wrong to right.

Knows: judged answers, paired. Does not know: models. A rise of the mean can hide losses; the negative flip rate is the
share of prompts that the base answered right and the steered model wrong (Yan et al. 2021, arXiv:2011.09161). Its
anatomy, and the form for scores of generated text, follow Echterhoff et al. 2024 (arXiv:2407.09435, section 3).
A low negative flip rate alone is no merit: a copy of the old model has none. Show it beside gains and accuracy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.evaluation.figures import Figure
from optative.evaluation.independence import decide
from optative.evaluation.instructions import Context, kinds
from optative.evaluation.options import NegativeFlips
from optative.evaluation.results import Answers


def count_flips(ids: Sequence[str], base: Sequence[bool], steered: Sequence[bool]) -> dict[str, Any]:
    """Counts of answers and the exact McNemar p.

    With several samples a prompt the samples are no independent items: p is then the sign test over prompts that rose
    and prompts that fell, which is the same test where each prompt has one sample.
    """
    table = stats.mcnemar(base, steered)
    change: dict[str, int] = defaultdict(int)
    for i, before, after in zip(ids, base, steered):
        change[i] += int(after) - int(before)
    p = stats.sign_test(sum(c > 0 for c in change.values()), sum(c < 0 for c in change.values()))
    return {"gained": table.gained, "lost": table.lost, "both": table.both, "neither": table.neither, "mcnemar_p": p}


def flips(answers: Answers) -> dict[str, Any]:
    """The flips of one split by prompt, and under `by_kind` those of single instructions."""
    if answers.steered is None:
        raise InputError("flips need two models")
    found = count_flips(answers.ids, [r["followed"] for r in answers.base], [r["followed"] for r in answers.steered])
    items: dict[str, list[tuple[str, bool, bool]]] = defaultdict(list)
    for i, before, after in zip(answers.ids, answers.base, answers.steered):
        for old, new in zip(before["checks"], after["checks"]):
            items[old["kind"]].append((i, old["followed"], new["followed"]))
    return {**found, "by_kind": {kind: count_flips(*zip(*items[kind])) for kind in sorted(items)}}


def negative_flips(answers: Answers, options: NegativeFlips, context: Context) -> list[Figure]:
    """Share of answers that were right before and are wrong after. The base has none against itself."""
    if answers.steered is None:
        return []
    lost = [float(b["followed"] and not s["followed"]) for b, s in zip(answers.base, answers.steered)]
    found = stats.mean(lost, clusters=answers.ids, bounds=(0, 1), level=options.level, seed=context.seed)
    return [
        Figure(
            "negative_flips",
            answers.split,
            0.0,
            found.value,
            found.value,
            found.interval,
            found.n,
            context.rules,
            decide(kinds(answers), context.trained_by),
        )
    ]


def anatomy(
    old: Sequence[Any],
    new: Sequence[Any],
    *,
    same: Sequence[bool] | None = None,
    clusters: Sequence[Hashable] | None = None,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """What became of each item when a new model replaced an old one; yes/no outcomes, item i is the same item.

    same: whether both models gave the same answer; without it wrong answers stay one group, `both_wrong`, and
    `nfr_mc` is None. Returns counts of the quadrants (they sum to `n`), `accuracy_old` and `accuracy_new`, and rates
    with their intervals: `nfr` (right, then wrong), `pfr` (wrong, then right), `nfr_mc` (wrong now, and another answer
    than before: at least nfr) and `backward_trust`, the share of the old successes that are still right (None without
    any). `accuracy_new - accuracy_old = pfr - nfr`, always.
    """
    counts = stats.mcnemar(old, new)
    a, b = np.asarray(old, float) == 1, np.asarray(new, float) == 1

    def rate(values: np.ndarray, names: Sequence[Hashable] | None = clusters) -> dict[str, Any]:
        found = stats.mean(values.astype(float), clusters=names, bounds=(0, 1), level=level, seed=seed)
        return {"value": found.value, "interval": found.interval.to_list(), "n": found.n}

    lost, gained = a & ~b, ~a & b
    result: dict[str, Any] = {
        "n": counts.n,
        "both_right": counts.both,
        "positive_flip": counts.gained,
        "negative_flip": counts.lost,
        "both_wrong": counts.neither,
        "accuracy_old": float(a.mean()),
        "accuracy_new": float(b.mean()),
        "nfr": rate(lost),
        "pfr": rate(gained),
        "nfr_mc": None,
        "backward_trust": None,
        "mcnemar_p": counts.p,
    }
    if a.any():
        kept = None if clusters is None else [name for name, right in zip(clusters, a) if right]
        result["backward_trust"] = rate(b[a], kept)
    if same is not None:
        equal = np.asarray(same, bool)
        if equal.shape != a.shape:
            raise InputError(f"not paired: {len(a)} items and {len(equal)} answers compared")
        if (equal & (a != b)).any():
            raise InputError(f"item {int(np.argmax(equal & (a != b)))}: the same answer is right once and wrong once")
        result["both_wrong_same"] = int((~a & ~b & equal).sum())
        result["both_wrong_different"] = int((~a & ~b & ~equal).sum())
        result["nfr_mc"] = rate(~b & ~equal)
    difference = result["accuracy_new"] - result["accuracy_old"]
    assert abs(difference - (result["pfr"]["value"] - result["nfr"]["value"])) < 1e-9
    return result


def generation_flips(
    old: Sequence[float],
    new: Sequence[float],
    *,
    dead_zone: float = 0.0,
    clusters: Sequence[Hashable] | None = None,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """Flips of generated text, from similarities to the truth (ROUGE, a judge) of an old and a new model's answers.

    An item fell if its score fell by more than `dead_zone`, in units of the score, and rose likewise: without one, two
    samples of the same model differ nearly always and both rates go to one half. Returns `nfr` and `pfr` with
    intervals, `unchanged` (share), `mean_gain` and `mean_regression` (mean size of a rise and of a fall; None without
    any), and the `dead_zone`. `mean_new - mean_old` is what rises and falls add up to where the dead zone is 0.
    """
    if dead_zone < 0:
        raise InputError("not a dead zone", field="dead_zone", found=dead_zone, expected="0 or more")
    paired = stats.paired_difference(old, new, clusters=clusters, level=level, seed=seed)
    d = np.asarray(new, float) - np.asarray(old, float)
    fell, rose = d < -dead_zone, d > dead_zone

    def rate(values: np.ndarray) -> dict[str, Any]:
        found = stats.mean(values.astype(float), clusters=clusters, bounds=(0, 1), level=level, seed=seed)
        return {"value": found.value, "interval": found.interval.to_list(), "n": found.n}

    return {
        "n": len(d),
        "dead_zone": dead_zone,
        "mean_old": paired.base,
        "mean_new": paired.other,
        "nfr": rate(fell),
        "pfr": rate(rose),
        "unchanged": float((~fell & ~rose).mean()),
        "mean_gain": float(d[rose].mean()) if rose.any() else None,
        "mean_regression": float(-d[fell].mean()) if fell.any() else None,
    }


def change_of_negative_flips(
    old: Sequence[Any],
    new: Sequence[Any],
    candidate: Sequence[Any],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """Does `candidate` break fewer of the old successes than `new`? The same items, three models, right or wrong.

    `difference`: NFR(candidate) - NFR(new) with its paired interval, and `p`, the exact McNemar test on which items are
    negative flips; `relative`: the difference over NFR(new), None when that is 0. `accuracy_difference` stands beside.
    """
    a, b, c = (np.asarray(v, float) for v in (old, new, candidate))
    stats.mcnemar(old, new)
    stats.mcnemar(old, candidate)
    lost_new, lost_candidate = ((a == 1) & (v == 0) for v in (b, c))
    found = stats.paired_difference(
        lost_new.astype(float), lost_candidate.astype(float), clusters=clusters, bounds=(0, 1), level=level, seed=seed
    )
    accuracy = stats.paired_difference(b, c, clusters=clusters, bounds=(0, 1), level=level, seed=seed)
    return {
        "n": found.n,
        "nfr_new": found.base,
        "nfr_candidate": found.other,
        "difference": found.difference,
        "interval": found.interval.to_list(),
        "relative": found.difference / found.base if found.base else None,
        "p": stats.mcnemar(lost_new.tolist(), lost_candidate.tolist()).p,
        "accuracy_difference": accuracy.difference,
        "accuracy_interval": accuracy.interval.to_list(),
    }
