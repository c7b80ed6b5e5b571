"""Answers that other checkers judged wrongly, each with the right verdict (public issue reports of 2025 and 2026)."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instruction_samples import one_of_each as samples
from optative.core.errors import InputErrors
from optative.objectives.instructions.check import (
    Instruction,
    InstructionPrompt,
    check,
    check_answer,
    check_answer_loose,
    check_loose,
    make_instruction,
)
from optative.objectives.instructions.ifeval import read_ifeval
from optative.objectives.instructions.kinds import KINDS

MODES = ("strict", "published")


@pytest.fixture(scope="module")
def one_of_each() -> list[Instruction]:
    return samples()


def made(kind: str, **params: Any) -> Instruction:
    return make_instruction(kind, params)


def followed(kind: str, answer: str, mode: str = "strict", **params: Any) -> bool:
    return check(made(kind, **params), answer, mode=mode).followed  # type: ignore[arg-type]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def row(key: int, *checks: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    ids, kwargs = [kind for kind, _ in checks], [params for _, params in checks]
    return {"key": key, "prompt": "Say it.", "instruction_id_list": ids, "kwargs": kwargs}


# An instruction or relation that no checker knows never passes


@pytest.mark.parametrize("mode", MODES)
def test_less_than_and_at_least_are_both_judged(mode: str) -> None:
    five = "one two three four five"
    kind = "length_constraints:number_words"
    assert not followed(kind, five, mode, num_words=5, relation="less than")
    assert followed(kind, five, mode, num_words=5, relation="at least")
    assert followed(kind, five, mode, num_words=6, relation="less than")
    assert not followed(kind, five, mode, num_words=6, relation="at least")


def test_unknown_relations_ids_and_keys_are_errors_that_show_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.jsonl",
        row(1, ("length_constraints:number_words", {"num_words": 5, "relation": "fewer than"})),
        row(2, ("keywords:must_include", {"keywords": ["five"]})),
        row(3, ("length_constraints:number_words", {"num_words": 5, "relation": "at least"})),
        row(4, ("length_constraints:number_words", {})),
        row(5, ("punctuation:no_comma", {}), ("keywords:existence", {"keyword": "five"})),
    )
    with pytest.raises(InputErrors) as found:
        read_ifeval(path)
    said = str(found.value).splitlines()
    assert f"{path}:1: kwargs[0].relation: wrong value; found 'fewer than', expected `less than` or `at least`" in said
    unknown = next(line for line in said if line.startswith(f"{path}:2:"))
    assert "'keywords:must_include'" in unknown
    assert "the nearest is 'keywords:existence'" in unknown
    assert not [line for line in said if line.startswith(f"{path}:3:")]
    assert any(line.startswith(f"{path}:4: kwargs[0].num_words: missing") for line in said)
    assert any(line.startswith(f"{path}:4: kwargs[0].relation: missing") for line in said)
    assert any(line.startswith(f"{path}:5: kwargs[1].keyword: unknown parameter") for line in said)
    assert any(line.startswith(f"{path}:5: kwargs[1].keywords: missing") for line in said)


@pytest.mark.parametrize("relation", ["Less than", "less_than", "at_least", "at most", "", None, 3])
@pytest.mark.parametrize(
    ("kind", "name", "others"),
    [
        ("length_constraints:number_words", "relation", {"num_words": 5}),
        ("length_constraints:number_sentences", "relation", {"num_sentences": 5}),
        ("keywords:frequency", "relation", {"keyword": "a", "frequency": 1}),
        ("keywords:letter_frequency", "let_relation", {"letter": "a", "let_frequency": 1}),
        ("change_case:capital_word_frequency", "capital_relation", {"capital_frequency": 1}),
        ("punctuation:exclamation_marks", "relation", {"num_marks": 1}),
    ],
)
def test_mistyped_relations(kind: str, name: str, others: dict[str, Any], relation: Any) -> None:
    with pytest.raises(InputErrors, match=rf"params\.{name}: wrong value.*`less than` or `at least`"):
        make_instruction(kind, {**others, name: relation})


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_does_not_repeat_the_prompt_fails(mode: str) -> None:
    assert not followed("combination:repeat_prompt", "Rain falls.", mode, prompt_to_repeat="Write about rain.")
    assert followed(
        "combination:repeat_prompt", "Write about rain. It falls.", mode, prompt_to_repeat="Write about rain."
    )


# Keywords are literal and whole words


@pytest.mark.parametrize(
    ("keyword", "answer", "strict", "published"),
    [
        ("art", "Start smart.", False, True),
        ("C++", "I like Cats.", False, True),
        ("e.g.", "Look, an eagle.", False, True),
        ("3.5", "Go to room 315.", False, True),
        ("C++", "C++17 is out.", True, True),
        ("art", "An *art*_art_ form", True, True),
        ("don't", "We don\u2019t know.", True, False),
        ("caf\u00e9", "The cafe\u0301 opens.", True, False),
        ("two words", "These are two\nwords.", True, False),
        ("$5", "It costs $5.", True, False),
        ("(maybe)", "Well (maybe) so.", True, True),
        ("art", "ART is long.", True, True),
        ("3.5", "It is 13.5 km.", False, True),
    ],
)
def test_existence(keyword: str, answer: str, strict: bool, published: bool) -> None:
    assert followed("keywords:existence", answer, keywords=[keyword]) is strict
    assert followed("keywords:existence", answer, "published", keywords=[keyword]) is published


@pytest.mark.parametrize(
    ("word", "answer", "strict", "published"),
    [
        (".NET", "Use .NET today.", False, True),
        ("C++", "Vitamin C is fine.", True, False),
        ("Art", "ART is long.", False, False),
        ("art", "Start smart.", True, True),
        ("a.b", "axb", True, False),
        ("art", "_art_", False, True),
    ],
)
def test_forbidden_words(word: str, answer: str, strict: bool, published: bool) -> None:
    assert followed("keywords:forbidden_words", answer, forbidden_words=[word]) is strict
    assert followed("keywords:forbidden_words", answer, "published", forbidden_words=[word]) is published


def test_frequency_counts_whole_words_only() -> None:
    wanted = {"keyword": "art", "frequency": 2, "relation": "at least"}
    assert not followed("keywords:frequency", "art in party smart", **wanted)
    assert followed("keywords:frequency", "art in party smart", "published", **wanted)
    assert followed("keywords:frequency", "Art for art's sake", **wanted)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("keywords:existence", {"keywords": ["(a"]}),
        ("keywords:frequency", {"keyword": "*a", "frequency": 1, "relation": "at least"}),
        ("keywords:forbidden_words", {"forbidden_words": ["[a"]}),
        ("detectable_format:multiple_sections", {"section_spliter": "(Part", "num_sections": 1}),
        ("detectable_content:postscript", {"postscript_marker": "(NB"}),
    ],
)
def test_what_is_no_regular_expression_is_undecided_by_the_published_rule(kind: str, params: dict[str, Any]) -> None:
    found = check(make_instruction(kind, params), "some (a text", mode="published")
    assert (found.followed, found.decided) == (False, False)
    assert "no regular expression" in found.why
    assert check(make_instruction(kind, params), "some (a text").decided


# One list of paragraphs is counted and indexed

_T = "\n\nAlpha one.\n\nBeta two.\n\nGamma three."


@pytest.mark.parametrize(
    ("answer", "number", "nth", "word", "strict", "published"),
    [
        (_T, 3, 1, "alpha", True, False),
        (_T, 3, 2, "beta", True, False),
        (_T, 3, 2, "alpha", False, True),
        ("Alpha one.\r\n\r\nBeta two.", 2, 2, "beta", True, False),
        ("Alpha one.\n \nBeta two.", 2, 2, "beta", True, False),
        ("Alpha one.\n\n\u201cBeta\u201d two.", 2, 2, "beta", True, False),
        ("Alpha one.\n\n**Beta** two.", 2, 2, "beta", True, False),
        ("Alpha one.\n\n# Beta two", 2, 2, "beta", True, False),
        ("Alpha one.\n\n\n\nBeta two.", 2, 2, "beta", True, False),
        ("Alpha one.\n\n---\n\nBeta two.", 2, 2, "beta", True, False),
        ("Alpha one.\n\nIt's two.", 2, 2, "it", False, True),
        ("Alpha one.\n\nIt\u2019s two.", 2, 2, "it's", True, False),
        ("Alpha one.\n\nBeta two.", 2, 2, "Beta", True, True),
        ("Alpha one.\n\nBeta two.", 2, 2, "Beta,", True, False),
        ("Alpha one.\n\nBeta two.\n\n", 2, 2, "beta", True, True),
        ("Alpha one.\nBeta two.", 2, 2, "beta", False, False),
        ("Alpha one.", 1, 1, "alpha", True, True),
    ],
)
def test_nth_paragraph(answer: str, number: int, nth: int, word: str, strict: bool, published: bool) -> None:
    params = {"num_paragraphs": number, "nth_paragraph": nth, "first_word": word}
    kind = "length_constraints:nth_paragraph_first_word"
    assert followed(kind, answer, **params) is strict
    assert followed(kind, answer, "published", **params) is published


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"num_paragraphs": 3, "first_word": "a"}, r"params\.nth_paragraph: missing"),
        ({"num_paragraphs": 3, "nth_paragraph": 1, "keyword": "a"}, r"params\.keyword: unknown parameter"),
        ({"num_paragraphs": 3, "nth_paragraph": 4, "first_word": "a"}, r"params\.nth_paragraph: does not fit.*found 4"),
        ({"num_paragraphs": 3, "nth_paragraph": 0, "first_word": "a"}, r"params\.nth_paragraph: wrong value"),
        ({"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "a b"}, r"params\.first_word: .*expected one word"),
    ],
)
def test_nth_paragraph_draws_no_default(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        make_instruction("length_constraints:nth_paragraph_first_word", params)


# Case and language where there is little to tell from

_SHORT = ("42", "YES", "SEND HELP NOW.", "WE LEFT AT DAWN.", "", "   ")
_CASE_AND_LANGUAGE = (
    made("change_case:english_capital"),
    made("change_case:english_lowercase"),
    made("language:response_language", language="en"),
)


@pytest.mark.parametrize("mode", MODES)
def test_a_hundred_calls_in_any_order_give_the_same_verdicts(mode: str) -> None:
    from optative.objectives.instructions import text

    jobs = [(i, answer) for i in _CASE_AND_LANGUAGE for answer in _SHORT]
    first = {(i.kind, answer): check(i, answer, mode=mode) for i, answer in jobs}  # type: ignore[arg-type]
    shuffler = random.Random(0)
    for round_ in range(100):
        shuffler.shuffle(jobs)
        if round_ % 10 == 0:  # a remembered verdict would prove nothing
            text.published_language.cache_clear()
            text._probabilities.cache_clear()
        for instruction, answer in jobs:
            assert check(instruction, answer, mode=mode) == first[instruction.kind, answer]  # type: ignore[arg-type]


def test_no_letters_no_case_and_no_language() -> None:
    capital, lowercase, english = _CASE_AND_LANGUAGE
    assert not check(capital, "42").followed
    assert not check(lowercase, "42").followed
    found = check(english, "42")
    assert (found.followed, found.decided) == (False, False)
    published = check(english, "42", mode="published")
    assert (published.followed, published.decided) == (True, False)
    assert not check(capital, "42", mode="published").followed


@pytest.mark.parametrize("answer", ["YES", "SEND HELP NOW.", "WE LEFT AT DAWN.", "\u00c9LAN AND D\u00c9J\u00c0 VU"])
def test_short_capitals_are_capitals(answer: str) -> None:
    assert followed("change_case:english_capital", answer)
    assert not followed("change_case:english_lowercase", answer)
    assert followed("change_case:english_lowercase", answer.lower())


@pytest.mark.parametrize("answer", ["YES", "SEND HELP NOW."])
def test_the_published_rule_takes_short_capitals_for_other_languages(answer: str) -> None:
    assert not followed("change_case:english_capital", answer, "published")


@pytest.mark.parametrize(
    "answer", ["people we like it here a lot.\n\nwe like it here a lot.", "we like it here a lot paper."]
)
def test_short_english_that_the_detector_takes_for_another_language(answer: str) -> None:
    assert followed("change_case:english_lowercase", answer)
    assert not followed("change_case:english_lowercase", answer, "published")


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("change_case:english_lowercase", "dies ist ein langer deutscher satz und er hat keine gro\u00dfen buchstaben"),
        ("change_case:english_capital", "\u041f\u0420\u0418\u0412\u0415\u0422"),
        ("change_case:english_capital", "CECI EST UNE PHRASE ASSEZ LONGUE POUR QUE LE DOUTE NE SOIT PAS PERMIS"),
        ("change_case:english_capital", "\u65e5\u672c\u8a9e"),
        ("change_case:english_capital", "MOST OF IT IS LOUD bUT NOT ALL"),
        ("change_case:english_lowercase", "almost all of it, but I is not"),
    ],
)
def test_other_languages_and_mixed_case_fail(kind: str, answer: str) -> None:
    assert not followed(kind, answer)


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("de", "Die Katze schl\u00e4ft auf dem Sofa und der Hund liegt davor."),
        ("fr", "LE CHAT DORT SUR LE CANAP\u00c9 ET LE CHIEN EST DEVANT LA PORTE."),
        ("ja", "\u732b\u304c\u5bdd\u3066\u3044\u307e\u3059\u3002"),
        ("ko", "\uc548\ub155\ud558\uc138\uc694 \ubc18\uac11\uc2b5\ub2c8\ub2e4"),
        (
            "zh",
            "\u6211\u4eec\u5f88\u9ad8\u5174\u8ba4\u8bc6\u4f60\u4eec\uff0c\u6b22\u8fce\u6765\u5230\u8fd9\u91cc\u3002",
        ),
        ("en", "The cat sleeps on the sofa and the dog lies in front of it."),
    ],
)
def test_languages(language: str, answer: str) -> None:
    assert followed("language:response_language", answer, language=language)
    other = "en" if language != "en" else "de"
    found = check(made("language:response_language", language=other), answer)
    assert (found.followed, found.decided) == (False, True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("answer", ["", "   ", "\n\n", "\t", "\u200b", "\ufeff \u2060"])
def test_an_answer_with_nothing_to_see_passes_nothing(answer: str, mode: str, one_of_each: list[Instruction]) -> None:
    assert {i.kind for i in one_of_each} == set(KINDS)
    for instruction in one_of_each:
        for found in (check(instruction, answer, mode=mode), check_loose(instruction, answer, mode=mode)):  # type: ignore[arg-type]
            assert not found.followed
            assert found.why == "the answer is empty"


# Loose is never below strict, and scores do not move


def test_loose_variants_count_only_when_they_hold_something() -> None:
    no_comma = made("punctuation:no_comma")
    a, b, c = "Sure, here it is:\nNo commas in this line", "Hello, world", "No commas *here*\nBye, all"
    assert [check(no_comma, answer).followed for answer in (a, b, c)] == [False, False, False]
    assert [check_loose(no_comma, answer).followed for answer in (a, b, c)] == [True, False, True]
    assert "without its first line" in check_loose(no_comma, a).why
    assert "without its last line" in check_loose(no_comma, c).why


def test_a_missing_argument_is_an_error_and_never_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", row(7, ("length_constraints:number_words", {})))
    with pytest.raises(InputErrors, match=rf"{path}:1: kwargs\[0\]\.num_words: missing"):
        read_ifeval(path)


_SCRIPT = """
import hashlib, json, sys
from optative.objectives.instructions.check import check_answer, check_answer_loose
from optative.objectives.instructions.compose import generate
answers = json.loads(sys.argv[1])
order = list(range(len(answers)))
if sys.argv[2] == "backwards":
    order.reverse()
lines = {}
for i in order:
    for prompt in generate("held_out", 50)[:14] + generate("unseen_kinds", 24)[:10]:
        for judge in (check_answer, check_answer_loose):
            for mode in ("strict", "published"):
                found = [[c.kind, c.followed, c.decided, c.why] for c in judge(prompt, answers[i], mode)]
                lines[f"{i} {prompt.id} {judge.__name__} {mode}"] = found
print(hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest())
"""


def test_other_order_and_other_processes_give_the_same_bytes() -> None:
    answers = json.dumps(
        [*_SHORT, "Hello, world", _T, "* one\n* two", "DIES IST EIN SATZ.", "Ein Text, der deutsch ist."]
    )
    started = [
        subprocess.Popen([sys.executable, "-c", _SCRIPT, answers, order], stdout=subprocess.PIPE, text=True)
        for order in ("forwards", "backwards", "forwards", "backwards")
    ]
    found = [process.communicate()[0].strip() for process in started]
    assert len(found) == 4
    assert len(found[0]) == 64
    assert len(set(found)) == 1


def test_loose_is_at_least_strict_for_prompts_too(one_of_each: list[Instruction]) -> None:
    prompt = InstructionPrompt("x", "", "", tuple(one_of_each), "train")
    for answer in (*_SHORT, _T, "* one\n* two\n* three", "**a**\n\n*b*", '"Quoted."\n', "Sure:\n\n<<T>>\n\n1. a\n2. b"):
        for mode in MODES:
            strict = check_answer(prompt, answer, mode)  # type: ignore[arg-type]
            loose = check_answer_loose(prompt, answer, mode)  # type: ignore[arg-type]
            assert all(high.followed >= low.followed for low, high in zip(strict, loose, strict=True))
