"""Simulated people and models that rate answers: how a rating comes from what is true, and a preference from ratings.

Knows: which aspects of an answer are good, its length. Does not know: texts, rules, models.
Shapes: N answers, A aspects, P pairs. Whoever rates aspects one by one gives A ratings and their mean, so that their
errors average out; whoever rates the whole gives one, with the error of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optative.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Rater:
    """How somebody rates and prefers.

    noise: standard deviation of the error of one rating, of a scale from 0 to 1. overall: one rating of the whole, not
    one an aspect. per_word: what one word more adds to the rating. flipped: share of preferences that are noted down
    the wrong way round.
    """

    noise: float = 0.0
    overall: bool = False
    per_word: float = 0.0
    flipped: float = 0.0


def rate(rater: Rater, good_NA: np.ndarray, words_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rating of each answer, [N]; about 0 to 1 without a bonus for words."""
    ratings = 1 if rater.overall else good_NA.shape[1]
    error_N = rng.normal(0, 1, (len(good_NA), ratings)).mean(axis=1) * rater.noise
    return good_NA.mean(axis=1) + error_N + rater.per_word * words_N


def prefer(rater: Rater, ratings_P2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which answer of each pair is noted down as chosen, 0 or 1, [P]: the one rated higher, but for flips.

    Raises InputError for a tie, which is no preference.
    """
    if (ratings_P2[:, 0] == ratings_P2[:, 1]).any():
        raise InputError("two answers have the same rating", field="ratings", expected="strict preferences")
    return _higher(ratings_P2) ^ (rng.random(len(ratings_P2)) < rater.flipped)


def check_direction(ratings_P2: np.ndarray, chosen_P: np.ndarray) -> float:
    """Mean rating of the chosen minus that of the rejected answers.

    Raises InputError where it is not above 0: the two sides have changed places somewhere on the way.
    """
    places = range(len(ratings_P2))
    gap = float((ratings_P2[places, chosen_P] - ratings_P2[places, 1 - chosen_P]).mean())
    if gap <= 0:
        message = "chosen answers are rated no higher than rejected ones on average: the sides may have changed places"
        raise InputError(message, field="chosen", found=gap, expected="a mean gap above 0")
    return gap


def _higher(ratings_P2: np.ndarray) -> np.ndarray:
    return ratings_P2.argmax(axis=1)
