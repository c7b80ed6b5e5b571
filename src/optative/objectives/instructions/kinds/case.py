"""Capital and small letters.

Known faults of the published rules: short English text is often taken for another language, above all in capitals
(`YES` is Welsh); `CAN'T` is two words in capitals, and so is the pronoun `I`.
"""

from __future__ import annotations

from optative.objectives.instructions.kinds.base import Kind, Params, Verdict, between, compared, count, relation
from optative.objectives.instructions.text import is_english, published_language, published_tokens, words


def _capital(answer: str, p: Params) -> Verdict:
    return _english(answer) if answer.isupper() else Verdict(False, _case_fault(answer, "small"))


def _lowercase(answer: str, p: Params) -> Verdict:
    return _english(answer) if answer.islower() else Verdict(False, _case_fault(answer, "capital"))


def _english(answer: str) -> Verdict:
    """The case is right: only text that is clearly in another language fails."""
    if is_english(answer) is False:
        return Verdict(False, "the case is right, but the text is not English")
    return Verdict(True, "English, in the case that was asked for")


def _case_fault(answer: str, other: str) -> str:
    wrong = [c for c in answer if c.isalpha() and (c.isupper() if other == "capital" else c.islower())]
    return f"{len(wrong)} {other} letters" if wrong else "no letters of either case"


def _capital_published(answer: str, p: Params) -> Verdict:
    return _english_published(answer) if answer.isupper() else Verdict(False, _case_fault(answer, "small"))


def _lowercase_published(answer: str, p: Params) -> Verdict:
    return _english_published(answer) if answer.islower() else Verdict(False, _case_fault(answer, "capital"))


def _english_published(answer: str) -> Verdict:
    found = published_language(answer)
    if found is None:
        return Verdict(True, "no language found, which the published rule counts as followed", decided=False)
    return Verdict(found == "en", f"the case is right, langdetect says {found}")


def _capital_words(answer: str, p: Params) -> Verdict:
    found = [word for word in words(answer) if word.isupper() and sum(c.isalpha() for c in word) > 1]
    return compared(len(found), p["capital_relation"], p["capital_frequency"], "capital word")


def _capital_words_published(answer: str, p: Params) -> Verdict:
    found = sum(token.isupper() for token in published_tokens(answer))
    return compared(found, p["capital_relation"], p["capital_frequency"], "capital word")


KINDS = (
    Kind(
        id="change_case:english_capital",
        params={},
        wordings=(
            "Write everything in English and in capital letters only.",
            "YOUR WHOLE ANSWER MUST BE IN ENGLISH AND IN CAPITAL LETTERS.",
            "Use only capital letters; the language is English.",
            "All letters of your English answer have to be capitals.",
        ),
        draw=lambda rng, topic: {},
        strict=_capital,
        published=_capital_published,
    ),
    Kind(
        id="change_case:english_lowercase",
        params={},
        wordings=(
            "Write everything in English and in small letters. No capital letter is allowed.",
            "your whole answer must be in english and in lowercase letters only.",
            "Use only lowercase letters, not a single capital; the language is English.",
            "Answer in English, all in lowercase.",
        ),
        draw=lambda rng, topic: {},
        strict=_lowercase,
        published=_lowercase_published,
    ),
    Kind(
        id="change_case:capital_word_frequency",
        params={"capital_frequency": count(), "capital_relation": relation()},
        wordings=(
            "Words in ALL CAPITALS should appear {capital_relation} {capital_frequency:time}.",
            "Write {capital_relation} {capital_frequency:word} in capital letters from the first letter to the last.",
            "Use {capital_relation} {capital_frequency:fully capitalised word}, like THIS.",
            "There should be {capital_relation} {capital_frequency:word} written entirely in capitals.",
        ),
        draw=lambda rng, topic: {"capital_frequency": between(rng, 1, 3), "capital_relation": "at least"},
        strict=_capital_words,
        published=_capital_words_published,
    ),
)
