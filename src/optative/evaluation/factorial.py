"""Factorial studies: how much of the variation of a result goes with each factor, and what each level gives.

Knows: one result for each combination of levels. Does not know: what the factors are, how results were measured.
A design that is not whole is refused: there a factor's share would hold part of another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from optative.core.errors import InputError

Design = Mapping[Any, Any]  # the level of each factor, in the same order -> one number, or one an item


def eta_squared(results: Design) -> list[float]:
    """The share of each factor in the variation of the results: eta squared, SS of its level means over SS in all.

    What is missing to 1 belongs to interactions. 0 for all where nothing varies. A result of several items counts as
    their mean. Raises InputError for a design that lacks a combination of levels.

    >>> eta_squared({("a", "x"): 0.0, ("a", "y"): 1.0, ("b", "x"): 2.0, ("b", "y"): 3.0})
    [0.8, 0.2]
    """
    means = {levels: float(np.mean(result)) for levels, result in results.items()}
    factors = range(len(_levels(results)))
    grand = sum(means.values()) / len(means)
    total = sum((mean - grand) ** 2 for mean in means.values())
    shares = []
    for factor in factors:
        own = level_means(means, factor)
        between = len(means) / len(own) * sum((float(mean) - grand) ** 2 for mean in own.values())
        shares.append(between / total if total > 0 else 0.0)
    return shares


def level_means(results: Design, factor: int) -> dict[str, Any]:
    """The main effect of a factor: the mean over all results with each of its levels, item by item."""
    return {
        level: np.mean([result for levels, result in results.items() if levels[factor] == level], axis=0)
        for level in _levels(results)[factor]
    }


def gap(results: Design, factor: int) -> float:
    """Between the best and the worst level of a factor."""
    means = [float(np.mean(mean)) for mean in level_means(results, factor).values()]
    return max(means) - min(means)


def _levels(results: Design) -> list[list[str]]:
    """The levels of each factor, in the order in which they come."""
    levels = [list(dict.fromkeys(own)) for own in zip(*results)]
    if not results or len(results) != prod(map(len, levels)):
        asked = " x ".join(str(len(own)) for own in levels)
        raise InputError("not every combination of levels was measured", found=len(results), expected=asked)
    return levels
