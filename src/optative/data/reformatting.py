"""Dates and numbers as people write them, and in the one form that is asked for: a task with an exact answer.

Knows: the forms. Does not know: models, splits. Everything is drawn, so that there are as many items as one likes.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from optative.core.rng import stream

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def reformatting(count: int, *, key: Hashable) -> list[tuple[str, str]]:
    """`count` different (as written, as asked for): dates as 1998-03-05, numbers as 1407.

    >>> all(len(asked) == 10 or asked.isdigit() for _, asked in reformatting(50, key=0))
    True
    """
    rng = stream(key, "reformatting")
    found: dict[str, str] = {}
    while len(found) < count:
        written, asked = _date(rng) if rng.random() < 0.5 else _number(rng)
        found.setdefault(written, asked)
    return list(found.items())


def _date(rng: np.random.Generator) -> tuple[str, str]:
    year, month, day = (int(rng.integers(low, high)) for low, high in ((1900, 2030), (1, 13), (1, 29)))
    name = MONTHS[month - 1]
    forms = (
        f"{day} {name} {year}",
        f"{name} {day}, {year}",
        f"the {ordinal(day)} of {name} {year}",
        f"{day}. {month}. {year}",
        f"{name[:3]} {day} {year}",
    )
    return forms[int(rng.integers(len(forms)))], f"{year}-{month:02d}-{day:02d}"


def _number(rng: np.random.Generator) -> tuple[str, str]:
    number = int(rng.integers(1, 10 ** int(rng.integers(1, 6))))
    forms = (f"{number:,}", spoken(number), f"{number / 1000:g} thousand")
    return forms[int(rng.integers(len(forms)))], str(number)


def ordinal(day: int) -> str:
    """
    >>> [ordinal(day) for day in (1, 2, 3, 4, 11, 12, 13, 21, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '22nd']
    """
    ending = "th" if 10 < day % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def spoken(number: int) -> str:
    """Of a number below a million.

    >>> spoken(407), spoken(21_013), spoken(0)
    ('four hundred and seven', 'twenty-one thousand and thirteen', 'zero')
    """
    if number < 20:
        return _ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return _TENS[ten - 2] + (f"-{_ONES[one]}" if one else "")
    unit, word = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = divmod(number, unit)
    joined = f" and {spoken(rest)}" if rest < 100 else f" {spoken(rest)}"
    return f"{spoken(many)} {word}" + (joined if rest else "")
