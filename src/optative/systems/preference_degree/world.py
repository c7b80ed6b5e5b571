"""Slots to fill: a prompt that lists four facts, answers that state some of them, and a judge that reads these exactly.

Knows: a small grammar. Does not know: models, training. A fact counts when the answer states its value in one of its
slot's wordings, and no other value for that slot. Values are drawn word by word, so that they have to be copied
from the prompt; what is not stated is left out or, in pairs, often stated wrongly; clauses without a fact stand among
the others: neither length nor fluency is coverage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SLOTS = {
    "host": ("is led by the {}", "has the {} as its hosts", "was planned by the {}"),
    "place": ("takes place at {}", "draws people to {}", "moved to {}"),
    "price": ("costs {} crowns", "asks {} crowns at the door", "sells seats for {} crowns"),
    "day": ("starts on {}", "runs until {}", "opens its gates on {}"),
}
CHATTER = (
    "welcomes new guests",
    "needs some patience",
    "offers warm tea",
    "brings old friends together",
    "follows a strict plan",
    "makes some noise",
)
WRONG = 0.5  # of the slots of a pair's answer that state no fact
EVENTS = ("concert", "lecture", "market", "parade", "workshop", "tournament", "exhibition", "reading")
PARTS = {  # of a value; each word is drawn by itself, so that a value has to be copied and cannot be known
    "host": (
        ["Red", "Blue", "Green", "Golden", "Silver", "White", "Black", "Grey", "Brown", "Purple"],
        [
            "Foxes",
            "Owls",
            "Bears",
            "Wolves",
            "Hawks",
            "Otters",
            "Ravens",
            "Geese",
            "Lions",
            "Tigers",
            "Badgers",
            "Herons",
        ],
    ),
    "place": (
        ["Maple", "Oak", "Cedar", "Birch", "Willow", "Ash", "Elm", "Pine", "Poplar", "Hazel"],
        ["Hall", "Park", "Square", "House", "Bridge", "Tower", "Garden", "Harbour", "Mill", "Station"],
    ),
    "price": ([str(price) for price in range(12, 96, 7)],),
    "day": (
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
        ["morning", "noon", "afternoon", "evening", "night"],
    ),
}
_STATED = {slot: [re.escape(w).replace(r"\{\}", r"(.+?)") for w in own] for slot, own in SLOTS.items()}
_END = r"(?=,| and |\.|$)"


@dataclass(frozen=True)
class Case:
    """A prompt and what is true in it: slot -> value."""

    prompt: str
    event: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Judged:
    """Two answers to a case, the one that the label prefers first. counts: true facts that each states."""

    case: Case
    answers: tuple[str, str]
    counts: tuple[int, int]
    flipped: bool


def case(rng: np.random.Generator) -> Case:
    facts = {slot: _value(slot, rng) for slot in SLOTS}
    event = str(rng.choice(EVENTS))
    listed = "; ".join(f"{slot}: {facts[slot]}" for slot in rng.permutation(list(SLOTS)))
    return Case(f"{event}; {listed}\n", event, facts)


def answer(case: Case, count: int, rng: np.random.Generator, wrong: float = 0.0) -> str:
    """A fluent answer that states so many of the facts, and up to two clauses that state none, in any order.

    wrong: share of the other slots that are stated with a value of another case, in place of being left out.
    """
    order = [str(slot) for slot in rng.permutation(list(SLOTS))]
    values = {slot: case.facts[slot] for slot in order[:count]}
    for slot in order[count:]:
        value = _value(slot, rng)
        if rng.random() < wrong and value != case.facts[slot]:
            values[slot] = value
    clauses = [str(rng.choice(SLOTS[slot])).format(value) for slot, value in values.items()]
    clauses += list(rng.choice(CHATTER, int(rng.integers(0 if count else 1, 3)), replace=False))
    clauses = [clauses[i] for i in rng.permutation(len(clauses))]
    return f" The {case.event} {_listed(clauses)}."


def document(case: Case, place: int, rng: np.random.Generator) -> str:
    """What follows a prompt in pretraining: an answer with any number of facts, or each second time all facts, listed.

    Lists are mostly values, so that copying them is learnt in some hundred steps; answers alone take several times as
    many. The start of a text tells which it is.
    """
    if place % 2 == 0:
        return " " + "; ".join(f"{slot}: {case.facts[slot]}" for slot in rng.permutation(list(SLOTS)))
    return answer(case, int(rng.integers(0, len(SLOTS) + 1)), rng)


def stated(text: str, case: Case) -> int:
    """How many of the four facts a text states; a slot with two different values states none.

    >>> c = Case("", "reading", {"host": "Red Owls", "place": "Oak Hall", "price": "20", "day": "Monday noon"})
    >>> stated(" The reading is led by the Red Owls, costs 25 crowns and moved to Oak Hall.", c)
    2
    """
    found = 0
    for slot, wordings in _STATED.items():
        values = {value for wording in wordings for value in re.findall(wording + _END, text)}
        found += values == {case.facts[slot]}
    return found


def judged(cases: Sequence[Case], flips: float, rng: np.random.Generator, wrong: float = WRONG) -> list[Judged]:
    """Pairs whose counts differ by 1 to 4, each as often; a share of the labels points the wrong way."""
    found = []
    for one in cases:
        gap = int(rng.integers(1, len(SLOTS) + 1))
        low = int(rng.integers(0, len(SLOTS) + 1 - gap))
        flipped = bool(rng.random() < flips)
        counts = (low, low + gap) if flipped else (low + gap, low)
        first, second = (answer(one, count, rng, wrong) for count in counts)
        found.append(Judged(one, (first, second), counts, flipped))
    return found


def _value(slot: str, rng: np.random.Generator) -> str:
    return " ".join(str(rng.choice(words)) for words in PARTS[slot])


def _listed(clauses: Sequence[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
