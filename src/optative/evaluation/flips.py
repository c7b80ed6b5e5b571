"""Flips: which prompts went from right to wrong, and from wrong to right.

Knows: judged answers, paired. Does not know: models. A rise of the mean can hide losses; the negative flip rate is the
share of prompts that the base answered right and the steered model wrong (Yan et al. 2021, arXiv:2011.09161).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

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
