"""What a trained policy and its heads say of held-out answers: rewards against facts, grades against lengths.

Knows: held-out pairs, their versions, summed log-probabilities. Does not know: what was trained. Each answer is read by
the head of its role. Length alone names the usual grade of training's versions of that many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.optimizers.degree import Degree, Graded, Heads
    from optative.systems.preference_degree.world import Judged

SPEARMAN = "Spearman correlation of implicit reward and facts stated"
DEGREE, LENGTH_ALONE = "degree accuracy", "degree accuracy of length alone"
BEYOND, ORDER = "degree accuracy beyond length alone", "Spearman correlation of expected grade and share deleted"
LEFT_OUT = "share of answers without grades"
FALL = "share of answers whose implicit reward falls with every grade"
BETA = 0.1  # of the implicit reward, whatever the loss


def rewards_and_facts(
    pairs: Sequence[Judged], start: Sequence[Sequence[float]], now: Sequence[Sequence[float]]
) -> float:
    """Over all held-out answers: does the implicit reward order them by the facts that they state?"""
    from scipy.stats import spearmanr

    rewards = [BETA * (after - before) for own, new in zip(start, now) for before, after in zip(own, new)]
    counts = [count for pair in pairs for count in pair.counts]
    return float(spearmanr(rewards, counts).statistic)


def told_apart(
    lm: LanguageModel,
    heads: Heads,
    degree: Degree,
    trained: Sequence[Graded | None],
    held_out: Sequence[Graded | None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and curves of the held-out versions; items are versions, or answers where all of one answer count."""
    import numpy as np
    from scipy.stats import spearmanr

    from optative.evaluation.grades import right_by_length
    from optative.generators.language.score import summed
    from optative.generators.language.trained import starting_point
    from optative.optimizers.degree import features, told
    from optative.optimizers.losses.degree import expected, most_likely

    seen, own = ([one for one in some if one is not None] for some in (trained, held_out))
    logits_CJ = told(heads, own, features(lm, [one.group for one in own], degree.pool))
    grades_C = np.array([grade for one in own for grade in one.grades])
    lengths_C = np.array([len(ids) for one in own for ids in one.group.completion_ids], float)
    right = most_likely(logits_CJ, ordinal=degree.ordinal).numpy() == grades_C
    alone = right_by_length(
        [len(ids) for one in seen for ids in one.group.completion_ids],
        [grade for one in seen for grade in one.grades],
        lengths_C,
        grades_C,
    )
    whole_C = np.repeat(lengths_C.reshape(-1, degree.grades)[:, 0], degree.grades)
    gone_C, wanted = 1 - lengths_C / whole_C, len(held_out) * (2 if degree.roles == "both" else 1)
    groups = [one.group for one in own]
    moved = np.concatenate(summed(lm, groups))
    with starting_point(lm):
        moved -= np.concatenate(summed(lm, groups))
    rewards_AK = BETA * moved.reshape(-1, degree.grades)
    values = {
        DEGREE: right,
        LENGTH_ALONE: alone,
        BEYOND: right.mean() - alone.mean(),
        LEFT_OUT: 1 - len(rewards_AK) / wanted,
        FALL: (np.diff(rewards_AK) < 0).all(1),
    }
    if gone_C.max() > 0.1:  # else filler took the place of what was deleted
        order: Any = spearmanr(expected(logits_CJ, ordinal=degree.ordinal).numpy(), gone_C)
        values[ORDER] = float(order.statistic)
    return values, {"implicit reward by grade": (list(range(degree.grades)), rewards_AK.mean(0))}
