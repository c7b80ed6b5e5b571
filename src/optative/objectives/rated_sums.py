"""Sums with an answer in an asked form: each answer is good or bad in four aspects, and in a fifth that nobody rates.

Knows: the grammar of prompts and answers, the rules. Does not know: models, who rates answers (`feedback.raters`).
A rule reads the whole answer, so that naming several numbers or adding a polite word in its middle does not pay; an
answer that states no number is good in nothing. The fifth aspect, whether the answer names the one who asked, is for
judging what training moved that no rating asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import numpy as np

from optative.core.errors import InputError

ASPECTS = ("format", "value", "no repetition", "polite close")
MARKS = {"brackets": "[{}]", "stars": "*{}*", "quotes": '"{}"', "arrows": "<{}>"}
_NAMES = "ada ben cleo dan eve finn gwen hugo iris jon kim lea max nora otto pia quin rosa sam tess"
NAMES = tuple(_NAMES.split())
POLITE = ("glad to help", "you are welcome", "have a nice day", "with great pleasure")
RUDE = ("leave me alone", "think for yourself", "what a dull question", "never ask again")  # as long as the polite ones
_ASKED = ("{name} asks for {a} + {b} in {mark}.", "{a} + {b} in {mark}, asked by {name}.")
_STATED = ("it is {}", "that makes {}", "the sum is {}", "you get {}")
LARGEST = 4  # of the two numbers: 25 sums, few enough for a small model to know by heart


def prompts(count: int, rng: np.random.Generator) -> list[str]:
    """Different prompts. Raises InputError for more than there are."""
    shape = (len(_ASKED), len(NAMES), LARGEST + 1, LARGEST + 1, len(MARKS))
    if count > prod(shape):
        raise InputError("more prompts than there are", field="prompts", found=count, expected=f"at most {prod(shape)}")
    chosen = rng.choice(prod(shape), count, replace=False)
    return [
        _ASKED[asked].format(name=NAMES[name], a=a, b=b, mark=list(MARKS)[mark])
        for asked, name, a, b, mark in zip(*np.unravel_index(chosen, shape))
    ]


def answer(prompt: str, good: Sequence[bool], rng: np.random.Generator) -> str:
    """An answer of the grammar, good in exactly the aspects that `good` says, the fifth one included."""

    def one(values: Sequence[str]) -> str:
        return values[int(rng.integers(len(values)))]

    total, mark, name = _read(prompt)
    number = total if good[1] else (total + int(rng.integers(1, 2 * LARGEST + 1))) % (2 * LARGEST + 1)
    marked = mark if good[0] else one(["{}", *(other for other in MARKS.values() if other != mark)])
    stated = one(_STATED).format(marked.format(number))
    times = 1 if good[2] else int(rng.integers(2, 4))
    close = one(POLITE if good[3] else RUDE) + (f", {name}" if good[4] else "")
    return " " + " ".join(f"{sentence}." for sentence in (*[stated] * times, close))


def weakly_good(share: float, rng: np.random.Generator) -> tuple[bool, ...]:
    """Each of the five aspects good with probability `share`, independently."""
    return tuple(bool(kept) for kept in rng.random(len(ASPECTS) + 1) < share)


def judge(prompt: str, text: str) -> tuple[bool, ...]:
    """Whether an answer is good in each of the four aspects that are rated.

    >>> judge("ada asks for 3 + 4 in stars.", " it is *7*. it is *7*. glad to help, ada.")
    (True, True, False, True)
    """
    total, mark, name = _read(prompt)
    numbers = re.findall(r"\d+", text)
    sentences = [sentence.strip() for sentence in text.split(".") if sentence.strip()]
    if not numbers:
        return (False,) * len(ASPECTS)
    left, right = map(re.escape, mark.split("{}"))
    return (
        len(re.findall(rf"{left}\d+{right}", text)) == len(numbers),
        all(int(number) == total for number in numbers),
        len(numbers) == 1 and len(set(sentences)) == len(sentences),
        sentences[-1].removesuffix(f", {name}") in POLITE and text.rstrip().endswith("."),
    )


def names_the_asker(prompt: str, text: str) -> bool:
    """The fifth aspect.

    >>> names_the_asker("ada asks for 3 + 4 in stars.", " it is *7*. glad to help, ada.")
    True
    """
    return _read(prompt)[2] in re.findall(r"[a-z]+", text)


def _read(prompt: str) -> tuple[int, str, str]:
    """The sum that is asked for, the mark around it, and who asks."""
    words = re.findall(r"[a-z]+|\d+", prompt)
    return (
        sum(int(word) for word in words if word.isdigit()),
        next(MARKS[word] for word in words if word in MARKS),
        next(word for word in words if word in NAMES),
    )
