"""Which pairs to train on, from scores of several completions of one prompt.

Knows: scores. Does not know: texts, models. Ties give no pair; the caller counts prompts that gave none.
Each function returns (chosen, rejected, strength) with strength = the score gap, always > 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optative.core.rng import stream

Selected = list[tuple[int, int, float]]


def best_worst(scores: Sequence[float | None], limit: int, seed_key: Sequence[object]) -> Selected:
    """Best against worst, second best against second worst, and so on while the gap is positive; ties in a keyed order.

    >>> best_worst([0.0, 1.0, 0.5], 2, ["doc"])
    [(1, 0, 1.0)]
    """
    order = _ranked(scores, seed_key)
    pairs: Selected = []
    for rank in range(min(limit, len(order) // 2)):
        chosen, rejected = order[rank], order[-1 - rank]
        gap = _score(scores, chosen) - _score(scores, rejected)
        if gap > 0:
            pairs.append((chosen, rejected, gap))
    return pairs


def above_below(
    scores: Sequence[float | None], limit: int, seed_key: Sequence[object], threshold: float = 1.0
) -> Selected:
    """Completions that reach the threshold against those that do not, each used at most once, in a keyed order."""
    order = _ranked(scores, seed_key)
    above = [i for i in order if _score(scores, i) >= threshold]
    below = [i for i in reversed(order) if _score(scores, i) < threshold]
    return [(c, r, _score(scores, c) - _score(scores, r)) for c, r in zip(above, below)][:limit]


def all_pairs(scores: Sequence[float | None], limit: int, seed_key: Sequence[object]) -> Selected:
    """Every strict pair, widest gap first, up to `limit`."""
    order = _ranked(scores, seed_key)
    pairs = [
        (c, r, _score(scores, c) - _score(scores, r))
        for c in order
        for r in order
        if _score(scores, c) > _score(scores, r)
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:limit]


SELECTORS: dict[str, Callable[[Sequence[float | None], int, Sequence[object]], Selected]] = {
    "best_worst": best_worst,
    "above_below": above_below,
    "all": all_pairs,
}


def _ranked(scores: Sequence[float | None], seed_key: Sequence[object]) -> list[int]:
    """Rated completions, best first; equal scores in an order that depends on the key only."""
    noise = stream("select", *seed_key).random(len(scores))
    return sorted((i for i, s in enumerate(scores) if s is not None), key=lambda i: (-_score(scores, i), noise[i]))


def _score(scores: Sequence[float | None], index: int) -> float:
    score = scores[index]
    assert score is not None
    return score
