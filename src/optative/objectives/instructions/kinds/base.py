"""What a kind of instruction is: its parameters, its wordings, its two rules.

Knows: parameters and verdicts. Does not know: which kinds exist, prompts, modes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from optative.objectives.instructions.text import has_word

Params = dict[str, Any]

RELATIONS = ("less than", "at least")


class Verdict(NamedTuple):
    """`decided` is False where the rule cannot tell; `why` is for people."""

    followed: bool
    why: str
    decided: bool = True


Rule = Callable[[str, Params], Verdict]


class Topic(NamedTuple):
    """What the parameters of a composed prompt may refer to."""

    task: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Param:
    """One parameter: `read` returns the clean value or raises ValueError; `expected` is for the error."""

    expected: str
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    `strict` and `published` judge an answer that is not blank. Strict rules get unified text and parameters.
    `draw(rng, topic)` draws parameters that an answer of about a hundred tokens can meet.
    `fault(params)` names a parameter and what it should be, where single values are fine but do not fit together.
    `show(params)` is what the wordings say for them.
    """

    id: str
    params: Mapping[str, Param]
    wordings: tuple[str, ...]
    draw: Callable[[np.random.Generator, Topic], Params]
    strict: Rule
    published: Rule
    public: bool = True
    fault: Callable[[Params], tuple[str, str] | None] = lambda params: None
    show: Callable[[Params], Params] = lambda params: params


class Count(int):
    """A number that brings its noun: `{n:sentence}` is `1 sentence` or `3 sentences`."""

    def __format__(self, noun: str) -> str:
        if not noun:
            return str(int(self))
        return f"{int(self)} {noun}" if self == 1 else f"{int(self)} {noun}s"


def wording(kind: Kind, params: Params, variant: int) -> str:
    """The instruction in words."""
    shown = {name: _shown(value) for name, value in kind.show(params).items()}
    return kind.wordings[variant % len(kind.wordings)].format(**shown)


def _shown(value: Any) -> Any:
    if isinstance(value, int):
        return Count(value)
    if isinstance(value, list):
        quoted = [f'"{item}"' for item in value]
        return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]
    return value


# Parameters -----------------------------------------------------------------------------------------------------------


def count(minimum: int = 1) -> Param:
    def read(value: Any) -> int:
        # Tables padded with nulls turn whole numbers into floats; 3.0 is 3, but 3.5 and true are no counts.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value != int(value):
            raise ValueError
        if value < minimum:
            raise ValueError
        return int(value)

    return Param(f"a whole number, at least {minimum}", _finite(read))


def choice(*options: str) -> Param:
    def read(value: Any) -> str:
        if value not in options:
            raise ValueError
        return str(value)

    return Param(_either(options), read)


def relation() -> Param:
    return choice(*RELATIONS)


def text() -> Param:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Param("a text that is not blank", read)


def phrase() -> Param:
    """A text with at least one letter or digit."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not has_word(value):
            raise ValueError
        return value

    return Param("a text with a letter or digit", read)


def word() -> Param:
    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value.split()) != 1 or not has_word(value):
            raise ValueError
        return value.strip()

    return Param("one word", read)


def texts() -> Param:
    def read(value: Any) -> list[str]:
        good = isinstance(value, (list, tuple)) and value and all(isinstance(v, str) and v.strip() for v in value)
        if not good:
            raise ValueError
        return list(value)

    return Param("a list of texts, at least one", read)


def character() -> Param:
    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value.strip()) != 1:
            raise ValueError
        return value.strip()

    return Param("one character", read)


def _finite(read: Callable[[Any], int]) -> Callable[[Any], int]:
    def checked(value: Any) -> int:
        try:
            return read(value)
        except OverflowError:  # int(inf)
            raise ValueError from None

    return checked


def _either(options: tuple[str, ...]) -> str:
    quoted = [f"`{option}`" for option in options]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]


# Verdicts -------------------------------------------------------------------------------------------------------------


def compared(found: int, relation: str, wanted: int, noun: str) -> Verdict:
    """`less than` or `at least`."""
    followed = found < wanted if relation == "less than" else found >= wanted
    return Verdict(followed, f"found {Count(found):{noun}}, needed {relation} {wanted}")


def exactly(found: int, wanted: int, noun: str) -> Verdict:
    return Verdict(found == wanted, f"found {Count(found):{noun}}, needed exactly {wanted}")


def at_least(found: int, wanted: int, noun: str) -> Verdict:
    return compared(found, "at least", wanted, noun)


# Drawing ------------------------------------------------------------------------------------------------------------
# Only `rng.random` is used: NumPy promises no equal streams of its other methods between versions, and fixed sets of
# prompts have to stay what they are.


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[between(rng, 0, len(options) - 1)]


def shuffled(rng: np.random.Generator, options: Sequence[Any]) -> list[Any]:
    return [options[int(i)] for i in np.argsort(rng.random(len(options)), kind="stable")]


def pick_some(rng: np.random.Generator, options: Sequence[str], n: int) -> list[str]:
    return shuffled(rng, options)[:n]
