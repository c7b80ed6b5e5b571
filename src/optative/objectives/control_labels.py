"""Control labels: what an answer is to be like, named by a word that the user gives with the prompt.

Knows: rows with a label each, the sentence that says a label in words, which labels are for everyone, and a small task
whose labels are known exactly: sums that are answered politely or rudely, rightly or wrongly. Does not know: models,
how a label becomes a control.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optative.core.errors import InputError, unknown
from optative.core.rng import stream

GOOD, BAD = "good", "bad"
POLITE = ("gladly, it is {n}.", "of course, that makes {n}.", "with pleasure, {n}.", "thank you for asking, {n}.")
RUDE = ("{n}, you fool.", "{n}, leave me alone.", "stupid question, {n}.", "who cares, {n}.")
_MANNERS = re.compile("gladly|of course|pleasure|thank you")
_RUDENESS = re.compile("fool|alone|stupid|who cares")
_QUESTIONS = ("{name} asks: {a} plus {b}?", "{name}: how much is {a} and {b}?", "{a} + {b}, says {name}?")
_NAMES = (
    "ada",
    "ben",
    "cleo",
    "dan",
    "eve",
    "finn",
    "gwen",
    "hugo",
    "iris",
    "jon",
    "kim",
    "lea",
    "max",
    "nora",
    "otto",
)


@dataclass(frozen=True, slots=True)
class Row:
    """An answer with its label: any number of labels, no partner needed."""

    prompt: str
    completion: str
    label: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def rows(self) -> tuple[Row, Row]:
        return Row(self.prompt, self.chosen, GOOD), Row(self.prompt, self.rejected, BAD)


def sentence(label: str) -> str:
    """A label in words, as chain of hindsight writes it before a prompt (Liu et al. 2023, arXiv:2302.02676)."""
    return f"A {label} answer is:"


def usable(asked: str, labels: Sequence[str], *, hidden: Sequence[str] = (BAD,), hidden_too: bool = False) -> str:
    """The label that a user asked for. Labels that only teach contrast are refused unless `hidden_too` is said.

    >>> usable("good", ("good", "bad"))
    'good'
    """
    if asked not in labels:
        raise InputError(unknown("control", asked, labels), field="control")
    if asked in hidden and not hidden_too:
        raise InputError(
            f"the control {asked} is there to teach what is not wanted",
            field="control",
            found=asked,
            expected=", ".join(label for label in labels if label not in hidden),
        )
    return asked


def manners(count: int, seed: int, *, noise: float = 0.0) -> list[Pair]:
    """Questions, each with a polite and right answer, chosen, and one that is rude, wrong or both; prompts differ.

    With probability `noise` the two have changed places.
    """
    rng, found = stream(seed, "manners"), dict[str, Pair]()
    while len(found) < count:
        a, b = (int(n) for n in rng.integers(0, 10, 2))
        prompt = str(rng.choice(_QUESTIONS)).format(name=rng.choice(_NAMES), a=a, b=b)
        polite, right = [(True, False), (False, True), (False, False)][rng.integers(3)]
        wrong = int((a + b + rng.integers(1, 19)) % 19)
        worse = str(rng.choice(POLITE if polite else RUDE)).format(n=a + b if right else wrong)
        better = str(rng.choice(POLITE)).format(n=a + b)
        two = (worse, better) if rng.random() < noise else (better, worse)
        found[prompt] = Pair(prompt, " " + two[0], " " + two[1])
    return list(found.values())


def manners_of(prompt: str, answer: str) -> str:
    """The label that an answer deserves, by rule: polite words, no rude ones, one number and that the right one.

    >>> manners_of("ada asks: 3 plus 4?", " gladly, it is 7."), manners_of("ada asks: 3 plus 4?", " 7, you fool.")
    ('good', 'bad')
    """
    total = sum(int(number) for number in re.findall(r"\d+", prompt))
    right = [int(number) for number in re.findall(r"\d+", answer)] == [total]
    return GOOD if right and _MANNERS.search(answer) and not _RUDENESS.search(answer) else BAD


@dataclass(frozen=True, slots=True)
class LengthLabels:
    """Labels by the number of words, with thirds of some texts as limits: `short`, `medium`, `long`."""

    limits: tuple[float, float]

    @classmethod
    def thirds_of(cls, texts: Sequence[str]) -> LengthLabels:
        low, high = np.quantile([len(text.split()) for text in texts], (1 / 3, 2 / 3))
        return cls((float(low), float(high)))

    def __call__(self, text: str) -> str:
        words = len(text.split())
        return "short" if words <= self.limits[0] else "medium" if words <= self.limits[1] else "long"
