"""Commas, exclamation marks, digits.

Known fault of the published rule: only the Latin comma is a comma.
"""

from __future__ import annotations

import re

from optative.objectives.instructions.kinds.base import Kind, Params, Verdict, between, compared, count, relation

_COMMAS = ",\uff0c\u3001\u060c\ufe50\uff64"


def _no_comma(answer: str, p: Params) -> Verdict:
    found = sum(answer.count(comma) for comma in _COMMAS)
    return Verdict(not found, f"found {found} commas, needed none")


def _no_comma_published(answer: str, p: Params) -> Verdict:
    return Verdict("," not in answer, f"found {answer.count(',')} commas, needed none")


def _exclamations(answer: str, p: Params) -> Verdict:
    return compared(answer.count("!") + answer.count("\uff01"), p["relation"], p["num_marks"], "exclamation mark")


def _no_digits(answer: str, p: Params) -> Verdict:
    found = re.findall(r"\d", answer)
    return Verdict(not found, f"found {len(found)} digits, needed none")


KINDS = (
    Kind(
        id="punctuation:no_comma",
        params={},
        wordings=(
            "Do not use any commas.",
            "Write it without a single comma.",
            "Commas are not allowed in your answer.",
            'Your answer must not contain the character ",".',
        ),
        draw=lambda rng, topic: {},
        strict=_no_comma,
        published=_no_comma_published,
    ),
    Kind(
        id="punctuation:exclamation_marks",
        params={"num_marks": count(), "relation": relation()},
        wordings=(
            "Use {relation} {num_marks:exclamation mark}.",
            "Your answer should contain {relation} {num_marks:exclamation mark}.",
            "There must be {relation} {num_marks:exclamation mark} (!) in the text.",
            "Write with {relation} {num_marks:exclamation mark}.",
        ),
        draw=lambda rng, topic: {"num_marks": between(rng, 1, 2), "relation": "at least"},
        strict=_exclamations,
        published=_exclamations,
        public=False,
    ),
    Kind(
        id="punctuation:no_digits",
        params={},
        wordings=(
            "Do not use any digits; write numbers as words.",
            "Digits such as 1 or 7 must not appear anywhere in your answer.",
            "Write it without a single digit.",
            "No digits are allowed. Spell out every number.",
        ),
        draw=lambda rng, topic: {},
        strict=_no_digits,
        published=_no_digits,
        public=False,
    ),
)
