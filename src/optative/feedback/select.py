"""Which pairs to train on, from scores of several completions of one prompt.

Knows: scores and lengths. Does not know: texts, models. Ties give no pair; the caller counts prompts that gave none.
Each function returns (chosen, rejected, strength) with strength = the score gap, always > 0.

Where several completions share a score, the two that are closest in length are paired. Right answers are shorter on
average (a short one has less room to break a rule), and pairs of random lengths would teach that instead of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from optative.core.rng import stream
from optative.feedback.options import Unfinished

Scores = Sequence[float | None]
Selected = list[tuple[int, int, float]]


def best_worst(scores: Scores, lengths: Sequence[int], limit: int, seed_key: Sequence[object]) -> Selected:
    """Best against worst, then the same among what is left, each completion used at most once.

    >>> best_worst([0.0, 1.0, 0.5, 1.0], [10, 90, 20, 12], 2, ["doc"])
    [(3, 0, 1.0), (1, 2, 0.5)]
    """
    left = {i: s for i, s in enumerate(scores) if s is not None}
    pairs: Selected = []
    while len(pairs) < limit and len(set(left.values())) > 1:
        top, bottom = max(left.values()), min(left.values())
        best = [i for i, s in left.items() if s == top]
        worst = [i for i, s in left.items() if s == bottom]
        chosen, rejected = _closest(best, worst, lengths, seed_key)
        pairs.append((chosen, rejected, top - bottom))
        del left[chosen], left[rejected]
    return pairs


def above_below(
    scores: Scores, lengths: Sequence[int], limit: int, seed_key: Sequence[object], threshold: float = 1.0
) -> Selected:
    """Completions that reach the threshold against those that do not, each used at most once."""
    above = [i for i, s in enumerate(scores) if s is not None and s >= threshold]
    below = [i for i, s in enumerate(scores) if s is not None and s < threshold]
    pairs: Selected = []
    while above and below and len(pairs) < limit:
        chosen, rejected = _closest(above, below, lengths, seed_key)
        pairs.append((chosen, rejected, _gap(scores, chosen, rejected)))
        above.remove(chosen)
        below.remove(rejected)
    return pairs


def all_pairs(scores: Scores, lengths: Sequence[int], limit: int, seed_key: Sequence[object]) -> Selected:
    """Every strict pair, the widest gap first and among equal gaps the closest lengths, up to `limit`."""
    rated = [i for i, s in enumerate(scores) if s is not None]
    strict = [(c, r, _gap(scores, c, r)) for c in rated for r in rated if _gap(scores, c, r) > 0]
    noise = stream("select", *seed_key).random(len(scores))
    return sorted(strict, key=lambda p: (-p[2], abs(lengths[p[0]] - lengths[p[1]]), noise[p[0]], noise[p[1]]))[:limit]


SELECTORS: dict[str, Callable[[Scores, Sequence[int], int, Sequence[object]], Selected]] = {
    "best_worst": best_worst,
    "above_below": above_below,
    "all": all_pairs,
}


def without_unfinished(scores: Scores, unfinished: Sequence[bool], rule: Unfinished) -> Scores:
    """Scores in which the completions that were cut at the token limit cannot beat one that was not.

    A small model's endless lists often pass a rule by accident; chosen, they teach it never to stop. `leave_out`: they
    have no score; `reject`: they follow nothing.

    >>> without_unfinished([1.0, 0.5, 0.0], [True, False, True], "leave_out")
    [None, 0.5, None]
    """
    if rule == "keep":
        return scores
    worth = 0.0 if rule == "reject" and not all(unfinished) else None
    return [(None if s is None else worth) if cut else s for s, cut in zip(scores, unfinished, strict=True)]


def below_all(scores: Scores, worst: Sequence[bool]) -> Scores:
    """Scores, from 0 to 1, in which some completions are worth less than every other.

    >>> below_all([1.0, None, 0.0], [False, True, False])
    [1.0, -1.0, 0.0]
    """
    return [-1.0 if low else s for s, low in zip(scores, worst, strict=True)]


def _closest(
    some: Iterable[int], others: Iterable[int], lengths: Sequence[int], seed_key: Sequence[object]
) -> tuple[int, int]:
    """The two of closest length; among equals an order that depends on the key only."""
    noise = stream("select", *seed_key).random(len(lengths))
    others = list(others)
    return min(
        ((a, b) for a in some for b in others),
        key=lambda p: (abs(lengths[p[0]] - lengths[p[1]]), noise[p[0]], noise[p[1]]),
    )


def _gap(scores: Scores, chosen: int, rejected: int) -> float:
    high, low = scores[chosen], scores[rejected]
    assert high is not None
    assert low is not None
    return high - low
