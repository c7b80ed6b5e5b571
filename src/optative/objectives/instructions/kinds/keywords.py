"""Words and letters that must, or must not, be in the answer.

Known faults of the published rules: keywords are used as regular expressions (`C++`, `3.5`), and match inside other
words (`art` in `smart`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from optative.objectives.instructions.kinds.base import (
    Kind,
    Params,
    Verdict,
    between,
    character,
    compared,
    count,
    phrase,
    pick,
    pick_some,
    relation,
    texts,
)
from optative.objectives.instructions.text import contains

_NOT_A_PATTERN = "{!r} is no regular expression, so the published rule has no verdict"


def _existence(answer: str, p: Params) -> Verdict:
    return _all_found(p["keywords"], lambda keyword: contains(keyword).search(answer) is not None)


def _existence_published(answer: str, p: Params) -> Verdict:
    try:
        return _all_found(p["keywords"], lambda keyword: re.search(keyword, answer, re.IGNORECASE) is not None)
    except re.error as error:
        return Verdict(False, _NOT_A_PATTERN.format(error.pattern), decided=False)


def _all_found(keywords: list[str], found: Callable[[str], bool]) -> Verdict:
    missing = [keyword for keyword in keywords if not found(keyword)]
    if missing:
        return Verdict(False, "missing: " + ", ".join(missing))
    return Verdict(True, "found: " + ", ".join(keywords))


def _frequency(answer: str, p: Params) -> Verdict:
    return compared(len(contains(p["keyword"]).findall(answer)), p["relation"], p["frequency"], "occurrence")


def _frequency_published(answer: str, p: Params) -> Verdict:
    try:
        found = len(re.findall(p["keyword"].strip(), answer, re.IGNORECASE))
    except re.error as error:
        return Verdict(False, _NOT_A_PATTERN.format(error.pattern), decided=False)
    return compared(found, p["relation"], p["frequency"], "occurrence")


def _forbidden(answer: str, p: Params) -> Verdict:
    return _none_found([word for word in p["forbidden_words"] if contains(word).search(answer)])


def _forbidden_published(answer: str, p: Params) -> Verdict:
    try:
        used = [w for w in p["forbidden_words"] if re.search(r"\b" + w + r"\b", answer, re.IGNORECASE)]
    except re.error as error:
        return Verdict(False, _NOT_A_PATTERN.format(error.pattern), decided=False)
    return _none_found(used)


def _none_found(used: list[str]) -> Verdict:
    return Verdict(False, "used: " + ", ".join(used)) if used else Verdict(True, "none of the words is used")


def _letter(answer: str, p: Params) -> Verdict:
    letter = p["letter"].lower()
    return compared(sum(c.lower() == letter for c in answer), p["let_relation"], p["let_frequency"], "occurrence")


def _letter_published(answer: str, p: Params) -> Verdict:
    found = answer.lower().count(p["letter"].lower())
    return compared(found, p["let_relation"], p["let_frequency"], "occurrence")


KINDS = (
    Kind(
        id="keywords:existence",
        params={"keywords": texts()},
        wordings=(
            "Include {keywords} in your answer.",
            "Your answer has to mention {keywords}.",
            "Make sure that {keywords} can be found in what you write.",
            "Somewhere in your answer, use {keywords}.",
        ),
        draw=lambda rng, topic: {"keywords": pick_some(rng, topic.words, between(rng, 1, 2))},
        strict=_existence,
        published=_existence_published,
    ),
    Kind(
        id="keywords:frequency",
        params={"keyword": phrase(), "frequency": count(), "relation": relation()},
        wordings=(
            'Use the word "{keyword}" {relation} {frequency:time}.',
            'The word "{keyword}" should come up {relation} {frequency:time} in your answer.',
            'Write the word "{keyword}" {relation} {frequency:time}.',
            'In what you write, "{keyword}" has to appear {relation} {frequency:time}.',
        ),
        draw=lambda rng, topic: {
            "keyword": pick(rng, topic.words),
            "frequency": 2,
            "relation": "at least",
        },
        strict=_frequency,
        published=_frequency_published,
    ),
    Kind(
        id="keywords:forbidden_words",
        params={"forbidden_words": texts()},
        wordings=(
            "Do not use any of these words: {forbidden_words}.",
            "Leave out the following words: {forbidden_words}.",
            "Write it without ever saying {forbidden_words}.",
            "These words are not allowed in your answer: {forbidden_words}.",
        ),
        draw=lambda rng, topic: {"forbidden_words": pick_some(rng, topic.words, between(rng, 2, 3))},
        strict=_forbidden,
        published=_forbidden_published,
    ),
    Kind(
        id="keywords:letter_frequency",
        params={"letter": character(), "let_frequency": count(), "let_relation": relation()},
        wordings=(
            'The letter "{letter}" should appear {let_relation} {let_frequency:time}.',
            'Use the letter "{letter}" {let_relation} {let_frequency:time} in your answer.',
            'Count the letter "{letter}": it has to occur {let_relation} {let_frequency:time}.',
            'Write your answer so that it contains the letter "{letter}" {let_relation} {let_frequency:time}.',
        ),
        draw=lambda rng, topic: pick(
            rng,
            (
                {
                    "letter": pick(rng, tuple("bgmpw")),
                    "let_frequency": between(rng, 4, 8),
                    "let_relation": "at least",
                },
                {
                    "letter": pick(rng, tuple("jkqvxz")),
                    "let_frequency": between(rng, 2, 3),
                    "let_relation": "less than",
                },
            ),
        ),
        strict=_letter,
        published=_letter_published,
    ),
)
