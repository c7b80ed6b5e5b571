"""Texts made from templates, so that the truth about them is known: people with four facts each, and mild swearing.

Knows: lists of words, keyed choices. Does not know: who reads the texts. Nobody in them exists. Four facts follow from
nothing else, so that only a model that has learnt them can complete them; each value is equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from optative.core.errors import InputError
from optative.core.rng import stream

FACTS = {
    "was born in": "Riga Cairo Lima Oslo Quito Hanoi Accra Turin Perth Dakar Minsk Kyoto Malmo Leeds Tunis Ghent",
    "studied": "law music botany optics logic history drama chemistry geology ethics poetry surgery zoology algebra "
    "physics theology",
    "works as a": "baker pilot tailor nurse judge farmer painter mason sailor barber welder jockey florist curator "
    "plumber ranger",
    "collects": "coins maps shells clocks masks stamps kites bottles spoons records fossils buttons lamps knives "
    "postcards hats",
}
_SYLLABLES = (
    ("Al", "Be", "Cor", "Da", "El", "Fi", "Gre", "Ha", "Is", "Jo", "Ka", "Lo", "Mi", "Ne", "Or"),
    ("na", "ro", "vin", "mel"),
)
NAMES = tuple(map("".join, product(*_SYLLABLES)))  # 60, for each of three parts of a name
MOST_PEOPLE = len(NAMES) ** 3


@dataclass(frozen=True, slots=True)
class Person:
    """`values`: one for each of `FACTS`, in their order."""

    name: str
    values: tuple[str, ...]

    @property
    def text(self) -> str:
        facts = [f"{verb} {value}" for verb, value in zip(FACTS, self.values)]
        return f"{self.name} {', '.join(facts[:-1])} and {facts[-1]}."

    @property
    def questions(self) -> list[tuple[str, str]]:
        """For each fact the text up to its value, with a space at its end left off, and the value."""
        found, at = list[tuple[str, str]](), 0
        for verb, value in zip(FACTS, self.values):
            at = self.text.index(f"{verb} {value}", at) + len(verb)
            found.append((self.text[:at], value))
        return found


def people(seed: int, number: int) -> list[Person]:
    """Invented people with different names; the first ones do not depend on `number`'s size beyond them.

    Raises InputError for more than there are names.
    """
    if number > MOST_PEOPLE:
        raise InputError("more people than names", field="people", found=number, expected=f"at most {MOST_PEOPLE}")
    order = stream(seed, "names").permutation(MOST_PEOPLE)[:number]
    choices = [words.split() for words in FACTS.values()]
    drawn = stream(seed, "facts").integers(0, [len(words) for words in choices], (number, len(choices)))
    return [
        Person(_name(int(place)), tuple(words[int(i)] for words, i in zip(choices, row)))
        for place, row in zip(order, drawn)
    ]


def _name(place: int) -> str:
    size = len(NAMES)
    return f"{NAMES[place // size**2]} {NAMES[place // size % size]} {NAMES[place % size]}"


_THINGS = "printer bus heater meeting coffee zip neighbour lift queue phone kettle parcel form bike door alarm"
_SWEARING: Sequence[str] = (
    "The damn {0} is broken again.",
    "What the hell is wrong with this {0}?",
    "This {0} is a load of crap.",
    "I am sick of this stupid bloody {0}.",
    "To hell with the {0}!",
    "Whoever built that crappy {0} is an idiot.",
    "Damn it, not the {0} too.",
    "My arse hurts from waiting for the {0}.",
    "Shut up about the bloody {0}.",
    "Oh crap, the {0}.",
)


def grumbles(number: int = 1000) -> list[str]:
    """Complaints of four sentences about ordinary things, with mild swear words; always the same ones."""
    rng, things = stream("grumbles"), _THINGS.split()
    found = []
    for _ in range(number):
        thing, other = (things[int(i)] for i in rng.choice(len(things), 2, replace=False))
        lines = rng.choice(len(_SWEARING), 4, replace=False)
        found.append(" ".join(_SWEARING[int(i)].format(thing if k < 2 else other) for k, i in enumerate(lines)))
    return found
