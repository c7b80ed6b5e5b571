"""Graded versions of an answer, made without anyone's labels: each misses more of its key content than the last.

Knows: texts, key phrases, four ways to take something away. Does not know: tokens of a model, losses. Grade 0 is the
answer as it is; of K grades the last misses a share `q` of the key phrases, and each grade misses all that the one
before it misses (Li et al. 2024, arXiv:2409.17791; number of grades and share are not to be read there).

rake: the weightiest phrases go, wherever they stand. random: as many words, from anywhere. truncation: as many words,
from the end. filler: the phrases of rake, each replaced by as many words, or tokens, of no meaning. The last three tell
what a judge of grades goes by: that content is missing, that the answer is shorter, or that a sentence has a hole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from optative.core.errors import InputError
from optative.objectives.key_phrases import Phrase, key_phrases

Way = Literal["rake", "random", "truncation", "filler"]
WAYS: tuple[Way, ...] = ("rake", "random", "truncation", "filler")
FILLER = "some"
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def count(grade: int, grades: int, phrases: int, share: float) -> int:
    """How many of the phrases a grade misses: ceil(g m / (K - 1) q).

    >>> [count(g, 3, 8, 0.5) for g in range(3)], [count(g, 3, 1, 0.5) for g in range(3)]
    ([0, 2, 4], [0, 1, 1])
    """
    return math.ceil(grade * phrases / (grades - 1) * share)


def graded(
    text: str,
    grades: int,
    rng: np.random.Generator,
    *,
    way: Way = "rake",
    share: float = 0.5,
    length: Callable[[str], int] | None = None,
    documents: Mapping[str, int] | None = None,
) -> tuple[str, ...] | None:
    """The versions of a text from grade 0 on, or None where not all of them differ: too little can be taken away.

    rng: read by `random` alone. length: of a text, such as its tokens; `filler` keeps it where the filling word counts
    1. documents: see `key_phrases`. Raises InputError for fewer than two grades, or a share that takes away nothing or
    more than all.
    """
    if grades < 2:
        raise InputError("one grade tells nothing apart", field="grades", found=grades, expected="2 or more")
    if not 0 < share <= 1:
        raise InputError("not a share of the phrases", field="share", found=share, expected="above 0, at most 1")
    phrases = [phrase for phrase, _ in key_phrases(text, documents=documents)]
    numbers = [count(grade, grades, len(phrases), share) for grade in range(grades)]
    found = [text]
    for before, number in pairwise(numbers):
        now = found[-1]
        for phrase in phrases[before:number]:
            now = _without(now, phrase, _padding(length) if way == "filler" else None)
        found.append(now)
    if way in ("random", "truncation"):
        found = _as_many_words(text, found, rng, way)
    return tuple(found) if len(set(found)) == grades else None


def words(text: str) -> int:
    return len(_WORD.findall(text))


def _without(text: str, phrase: Phrase, instead: Callable[[str], str] | None) -> str:
    pattern = r"(?<![^\W_])" + r"\s+".join(map(re.escape, phrase)) + r"(?![^\W_])"
    found = re.sub(pattern, (lambda at: instead(at.group())) if instead else "", text, flags=re.IGNORECASE)
    return re.sub(r"[ \t]{2,}", " ", found)


def _padding(length: Callable[[str], int] | None) -> Callable[[str], str]:
    """As much of the filling word as a phrase is long, read behind a space as most phrases stand."""
    measure = words if length is None else lambda text: length(" " + text)
    return lambda phrase: " ".join([FILLER] * max(1, measure(phrase)))


def _as_many_words(text: str, deleted: Sequence[str], rng: np.random.Generator, way: Way) -> list[str]:
    """Versions that miss as many words as `deleted` do, in an order of their own."""
    places = [(at.start(), at.end()) for at in _WORD.finditer(text)]
    order = rng.permutation(len(places)) if way == "random" else np.arange(len(places))[::-1]
    found = []
    for version in deleted:
        gone = sorted(order[: len(places) - words(version)])
        if way == "truncation":
            found.append(text[: places[gone[0]][0]].rstrip() if gone else text)
            continue
        kept, start = "", 0
        for i in gone:
            kept += text[start : places[i][0]]
            start = places[i][1]
        found.append(re.sub(r"[ \t]{2,}", " ", kept + text[start:]) if gone else text)
    return found
