"""Text that says the same again: a fault whatever else is wanted.

Knows: words, or any other items of a sequence. Does not know: models, prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LOOPS = 0.5  # share of repeated 4-grams from which a text counts as one that turns in a circle


def ngrams(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """Each run of n items, in order."""
    return [tuple(items[at : at + n]) for at in range(len(items) - n + 1)]


def repetition(items: Sequence[Any], n: int = 4) -> float:
    """Share of the n-grams that occurred before in the same text; 0 where there is none.

    >>> repetition("a b c d a b c d".split())
    0.2
    """
    grams = ngrams(items, n)
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0
