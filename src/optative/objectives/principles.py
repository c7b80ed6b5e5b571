"""Principles in plain words, each with its opposite or variants, and constitutions made of them.

Knows: wordings, numbered lists, which principles two constitutions disagree on. Does not know: models, who checks an
answer. A constitution states one wording of every principle. Its order carries no meaning: it is drawn anew for every
prompt, so that neither a model nor a judge can learn the place in place of the words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from optative.core.errors import InputError

Choice = tuple[int, ...]  # for each principle, which of its wordings

_NUMBER = re.compile(r"^\s*\d+[.)]\s+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Principle:
    """`wordings`: the definition first, then its antithesis or other variants; all different."""

    name: str
    wordings: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.wordings) < 2 or len(set(self.wordings)) != len(self.wordings):
            raise InputError(
                f"principle {self.name!r}: an answer can only depend on what can be different",
                field="wordings",
                found=self.wordings,
                expected="two or more different wordings",
            )


def constitution(principles: Sequence[Principle], choice: Choice, order: Sequence[int]) -> str:
    """The numbered list that states `choice`, its principles in `order`.

    >>> size = Principle("size", ("Be brief.", "Be long."))
    >>> case = Principle("case", ("Shout.", "Whisper."))
    >>> print(constitution((size, case), (0, 1), (1, 0)))
    1. Whisper.
    2. Be brief.
    """
    if sorted(order) != list(range(len(principles))) or len(choice) != len(principles):
        raise ValueError(f"order {order} and choice {choice} do not state each of {len(principles)} principles once")
    return "\n".join(f"{n}. {principles[i].wordings[choice[i]]}" for n, i in enumerate(order, 1))


def statements(text: str) -> tuple[str, ...]:
    """The statements of a numbered list, in its order.

    >>> statements("1. Be brief. \\n2. Be kind.")
    ('Be brief.', 'Be kind.')
    """
    found = tuple(part.strip() for part in _NUMBER.split(text)[1:])
    if not found or not all(found):
        raise InputError("not a numbered list of principles", found=text[:80], expected="lines that start with `1. `")
    return found


def differing(first: Choice, second: Choice) -> tuple[int, ...]:
    """The principles on which two constitutions disagree, by their places."""
    if len(first) != len(second):
        raise ValueError(f"choices over {len(first)} and {len(second)} principles")
    return tuple(i for i, (a, b) in enumerate(zip(first, second)) if a != b)


def draw(
    principles: Sequence[Principle],
    count: int,
    rng: np.random.Generator,
    *,
    only: Collection[Choice] | None = None,
) -> tuple[Choice, ...]:
    """`count` choices, each two of which disagree on at least one principle; of `only` these, where given."""
    num_wordings = [len(principle.wordings) for principle in principles]
    every = sorted(only) if only is not None else [tuple(map(int, c)) for c in np.ndindex(*num_wordings)]
    if not 2 <= count <= len(set(every)):
        raise InputError(
            "cannot draw so many different constitutions",
            field="count",
            found=count,
            expected=f"2 to {len(set(every))}, the number of different combinations",
        )
    return tuple(every[i] for i in rng.choice(len(every), count, replace=False))


def shuffled(count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """An order of `count` principles."""
    return tuple(int(i) for i in rng.permutation(count))
