"""Four principles that a rule can check without fail, with queries and answers from a small grammar.

Knows: wordings, the grammar, the rules. Does not know: models, how weakly a text should follow (the caller says).
Each rule splits proper answers in two, and an answer that is none of the grammar's (mixed case, no end mark) satisfies
neither side of a rule, so that gibberish never counts as following.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optative.objectives.principles import Choice, Principle, constitution, shuffled

PRINCIPLES = (
    Principle("size", ("Be short.", "Be long.")),
    Principle("letters", ("Write capitals.", "Write small.")),
    Principle("ending", ("Ask.", "Tell.")),
    Principle("subject", ("Name it.", "Avoid it.")),
)
SHORT = 6  # words of a short answer at most; the grammar writes 4 or 9 to 12

_SUBJECTS = (
    "river mountain garden window teacher sailor kitchen winter letter horse bridge doctor island market "
    "candle forest village engine painter mirror castle farmer rabbit lantern harbour singer valley ladder "
    "basket tailor"
)
SUBJECTS = tuple(_SUBJECTS.split())
_QUALITIES = "old quiet bright heavy gentle narrow distant golden hidden frozen broken famous hungry silver patient"
QUALITIES = tuple(_QUALITIES.split())
_PLACES = (
    "by the sea|in the town|at the station|near the church|on the hill|under the tree|behind the house|across the road"
)
PLACES = tuple(_PLACES.split("|"))
_VERBS = "waits sings falls shines moves sleeps stands turns rests grows"
VERBS = tuple(_VERBS.split())
_MANNERS = "slowly softly alone again today always gladly calmly"
MANNERS = tuple(_MANNERS.split())


def queries(count: int, rng: np.random.Generator) -> list[str]:
    """Different queries; the subject is the last word before the place. At most 3,600."""
    every = len(SUBJECTS) * len(QUALITIES) * len(PLACES)
    found = []
    for i in rng.choice(every, count, replace=False):
        subject, rest = divmod(int(i), len(QUALITIES) * len(PLACES))
        quality, place = divmod(rest, len(PLACES))
        found.append(f"The {QUALITIES[quality]} {SUBJECTS[subject]} {PLACES[place]}:")
    return found


def answer(query: str, choice: Choice, rng: np.random.Generator) -> str:
    """An answer of the grammar that follows every principle of `choice`."""

    def one(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    own = subject(query)
    noun = own if choice[3] == 0 else one([word for word in SUBJECTS if word != own])
    words = f"the {noun} {one(VERBS)} {one(MANNERS)}"
    if choice[0] == 1:
        words += f" {one(PLACES)} and {one(VERBS)} {one(MANNERS)}"
        words += f" {one(PLACES)}" if rng.random() < 0.5 else ""
    return (words.upper() if choice[1] == 0 else words) + ("?" if choice[2] == 0 else ".")


def weakly(choice: Choice, follow: float, rng: np.random.Generator) -> Choice:
    """The choice that an answer really follows: each principle kept with probability `follow`, else its opposite."""
    return tuple(c if kept else 1 - c for c, kept in zip(choice, rng.random(len(choice)) < follow))


def documents(
    count: int, queries: Sequence[str], follow: float, rng: np.random.Generator
) -> list[tuple[str, str, str]]:
    """Query, stated constitution and an answer that follows each of its principles with probability `follow`."""
    found = []
    for i in rng.integers(0, len(queries), count):
        stated = tuple(map(int, rng.integers(0, 2, len(PRINCIPLES))))
        text = constitution(PRINCIPLES, stated, shuffled(len(PRINCIPLES), rng))
        found.append((queries[i], text, answer(queries[i], weakly(stated, follow, rng), rng)))
    return found


def followed(query: str, choice: Choice, text: str) -> tuple[bool, ...]:
    """Which principles of `choice` the text satisfies."""
    text = text.strip()
    words = text.lower().rstrip("?.").split()
    named = subject(query) in words
    sides = (
        (0 < len(words) <= SHORT, len(words) > SHORT),
        (text.isupper(), text.islower()),
        (text.endswith("?"), text.endswith(".")),
        (named, bool(words) and not named),
    )
    return tuple(side[c] for side, c in zip(sides, choice))


def subject(query: str) -> str:
    return next(word for word in query.split() if word in SUBJECTS)
