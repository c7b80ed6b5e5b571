"""What the columns mean: each format of the field, how it is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_makers import assistant, jsonl, user
from hypothesis import assume, given
from hypothesis import strategies as st

from optative.core.errors import InputError
from optative.data.messages import split_conversation, split_strings
from optative.data.readers import Reading, read
from optative.data.records import BothBad, Incomparable, Judgement, Labels, Order, Ratings, Relation, pairs
from optative.data.rows import BadMeaning, Row

BETTER, TIED, WORSE = Order(((0,), (1,))), Order(((0, 1),)), Order(((1,), (0,)))
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def load(tmp_path: Path, *rows: Any, **options: Any) -> tuple[Reading, list[Judgement]]:
    reading = read(jsonl(tmp_path / "a.jsonl", *rows), **options)
    return reading, list(reading)


def refused(tmp_path: Path, *rows: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load(tmp_path, *rows, **options)
    return str(error.value)


HELPSTEER3 = {"context": [user("q")], "response1": "a", "response2": "b", "domain": "code"}
HELPSTEER2 = {"prompt": "p", "correctness": 1, "coherence": 2, "complexity": 0, "verbosity": 4}
FULL: dict[str, Any] = {"prompt": "p", "completions": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "row", "prompt", "completions", "relation", "strength"),
    [
        ("preference", {**PAIR, "margin": 2}, "p", ("a", "b"), BETTER, 2.0),
        ("preference", {**PAIR, "margin": 1, "strength": 3}, "p", ("a", "b"), BETTER, 3.0),
        (
            "preference",
            {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
            [user("p")],
            ([assistant("a")], [assistant("b")]),
            BETTER,
            None,
        ),
        (  # one side as messages, the other as text: both become messages
            "preference",
            {"prompt": [user("p")], "chosen": "a", "rejected": "b"},
            [user("p")],
            ([assistant("a")], [assistant("b")]),
            BETTER,
            None,
        ),
        (
            "preference",
            {"prompt": "p", "chosen": [assistant("a")], "rejected": [assistant("b")]},
            [user("p")],
            ([assistant("a")], [assistant("b")]),
            BETTER,
            None,
        ),
        (  # the answers repeat the prompt
            "preference",
            {"prompt": [user("p")], "chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
            [user("p")],
            ([assistant("a")], [assistant("b")]),
            BETTER,
            None,
        ),
        ("unpaired", {"prompt": "p", "completion": "a", "label": False}, "p", ("a",), Labels((False,)), None),
        ("unpaired", {"prompt": "p", "completion": "a", "label": "True"}, "p", ("a",), Labels((True,)), None),
        ("unpaired", {"prompt": "p", "completion": "a", "label": 0}, "p", ("a",), Labels((False,)), None),
        ("prompt_completion", {"prompt": "p", "completion": "a"}, "p", ("a",), Order(((0,),)), None),
        ("prompt_only", {"prompt": [user("p")], "data_source": "x"}, [user("p")], (), Order(()), None),
        ("language_modelling", {"text": "once"}, "", ("once",), Order(((0,),)), None),
        (
            "language_modelling",
            {"messages": [user("p"), assistant("a"), user("q"), assistant("b")]},
            [user("p")],
            ([assistant("a"), user("q"), assistant("b")],),
            Order(((0,),)),
            None,
        ),
        (
            "helpsteer3",
            {**HELPSTEER3, "overall_preference": 0},
            [user("q")],
            ([assistant("a")], [assistant("b")]),
            TIED,
            0.0,
        ),
        (
            "helpsteer3",
            {**HELPSTEER3, "overall_preference": 2},
            [user("q")],
            ([assistant("a")], [assistant("b")]),
            WORSE,
            2.0,
        ),
        (
            "helpsteer2_preference",
            {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": -3},
            "p",
            ("a", "b"),
            BETTER,
            3.0,
        ),
        (
            "ultrafeedback_binarized",
            {
                "prompt": "p",
                "chosen": [user("p"), assistant("a")],
                "rejected": [user("p"), assistant("b")],
                "messages": [user("p"), assistant("a")],
                "score_chosen": 8.5,
                "score_rejected": "6",
            },
            [user("p")],
            ([assistant("a")], [assistant("b")]),
            BETTER,
            2.5,
        ),
        (
            "ultrafeedback_binarized",
            {**PAIR, "score_chosen": 7, "score_rejected": 7.0},
            "p",
            ("a", "b"),
            TIED,
            0.0,
        ),
        (
            "ranked",
            {
                "context": [user("p")],
                "completions": [{"rank": r, "completion": [assistant(t)]} for r, t in ((2, "a"), (0, "b"), ("2", "c"))],
            },
            [user("p")],
            ([assistant("a")], [assistant("b")], [assistant("c")]),
            Order(((1,), (0, 2))),
            None,
        ),
        ("optative", {**FULL, "relation": {"order": [[1], [0]]}}, "p", ("a", "b"), WORSE, None),
        ("optative", {**FULL, "relation": "both_bad"}, "p", ("a", "b"), BothBad(), None),
        ("optative", {**FULL, "relation": "incomparable"}, "p", ("a", "b"), Incomparable(), None),
        ("optative", {**FULL, "relation": {"ratings": [1, None]}}, "p", ("a", "b"), Ratings((1.0, None)), None),
    ],
)
def test_formats(
    name: str, row: Any, prompt: Any, completions: Any, relation: Relation, strength: Any, tmp_path: Path
) -> None:
    reading, (judgement,) = load(tmp_path, row)
    assert reading.format == name
    assert (judgement.prompt, judgement.completions) == (prompt, completions)
    assert (judgement.relation, judgement.strength) == (relation, strength)
    named_reading, again = load(tmp_path, row, format=name.replace("_", "-"))
    assert (named_reading.format, again) == (name, [judgement])


def test_nothing_beside_the_pair_is_lost(tmp_path: Path) -> None:
    beside = {
        "confidence": 0.8,
        "annotator": 7,
        "rationale": "clearer",
        "source": "human",
        "shown_first": 1,
        "seconds": 3,
        "aspects": {"tone": [1, 2]},
        "meta": {"a": 1},
        "topic": "metal",
    }
    _, (judgement,) = load(tmp_path, PAIR | beside)
    assert (judgement.confidence, judgement.annotator, judgement.rationale) == (0.8, "7", "clearer")
    assert (judgement.source, judgement.shown_first, judgement.seconds) == ("human", 1, 3.0)
    assert (judgement.aspects, judgement.meta) == ({"tone": [1, 2]}, {"a": 1, "topic": "metal"})
    # `source` often names a collection and not who judged
    _, (judgement,) = load(tmp_path, {**PAIR, "source": "evol_instruct"})
    assert (judgement.source, judgement.meta) == (None, {"source": "evol_instruct"})


def test_helpsteer3_keeps_each_person(tmp_path: Path) -> None:
    individual = [{"score": 1, "reasoning": "b is shorter", "feedback1": "x", "feedback2": "y"}]
    _, (judgement,) = load(tmp_path, {**HELPSTEER3, "overall_preference": 1, "individual_preference": individual})
    assert judgement.aspects == {"individual_preference": individual}
    assert judgement.meta == {"domain": "code"}


def test_helpsteer2_joins_consecutive_responses(tmp_path: Path) -> None:
    given = [("p", "a", 4), ("p", "b", "2"), ("q", "c", 1), ("q", "d", 1), ("p", "e", 0)]
    rows = [{**HELPSTEER2, "prompt": p, "response": r, "helpfulness": h} for p, r, h in given]
    reading, found = load(tmp_path, *rows)
    assert reading.format == "helpsteer2"
    assert [(j.prompt, j.completions, j.relation) for j in found] == [
        ("p", ("a", "b"), Ratings((4.0, 2.0))),
        ("q", ("c", "d"), Ratings((1.0, 1.0))),
        ("p", ("e",), Ratings((0.0,))),
    ]
    assert found[0].aspects is not None
    assert (found[0].aspects["helpfulness"], found[0].aspects["verbosity"]) == ([4.0, 2.0], [4.0, 4.0])
    counts = reading.counts
    assert (counts.records, counts.judgements, counts.pairs) == (5, 3, 1)
    assert (counts.kinds["ties"], counts.kinds["nothing_to_compare"]) == (1, 1)
    _, by_verbosity = load(tmp_path, *rows, score="verbosity")
    assert by_verbosity[0].relation == Ratings((4.0, 4.0))


def test_helpsteer2_turns_inside_the_prompt(tmp_path: Path) -> None:
    prompt = "first\n<extra_id_1>Assistant\nanswer\n<extra_id_1>User\nsecond"
    _, (judgement,) = load(tmp_path, {**HELPSTEER2, "prompt": prompt, "response": "r", "helpfulness": 1})
    assert judgement.prompt == [user("first"), assistant("answer"), user("second")]
    assert judgement.completions == ([assistant("r")],)


def test_text_parts_are_joined_and_null_is_no_key(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi.", "extra": None}]
    row = {**PAIR, "prompt": [{"role": "user", "content": parts, "name": None}]}
    _, (judgement,) = load(tmp_path, row)
    assert judgement.prompt == [user("Say hi.")]


STRUCTURE: list[tuple[Any, str]] = [
    ({"prompt": "p", "chosen": "a", "rejcted": "b"}, ":1: rejected: missing; the nearest is 'rejcted'"),
    ({"promt": "p", "chosen": "a", "rejected": "b"}, ":1: prompt: missing; the nearest is 'promt'"),
    ({"question": "p", "chosen": "a", "rejected": "b"}, ":1: prompt: missing; 'question' looks like it"),
    ({"Prompt": "p", "Chosen": "a", "Rejected": "b"}, ":1: prompt: missing; the nearest is 'Prompt'"),
    ({"prompt": "p", "chosen": "a"}, ":1: rejected: missing; the columns are those of `preference`"),
    ({"prompt": "p", "completion": "a", "lable": True}, ":1: label: missing; the nearest is 'lable'"),
    ({"prompt": "p", "response": "a"}, ":1: helpfulness: missing"),
    ({"foo": 1}, ":1: the columns fit no known format; found 'foo'"),
    ({**PAIR, "prompt": 3}, ":1: prompt: wrong type; found 3, expected a string or a list of messages"),
    ({**PAIR, "prompt": True}, ":1: prompt: wrong type"),
    ({**PAIR, "chosen": {"role": "assistant"}}, ":1: chosen: wrong type"),
    ({**PAIR, "rejected": [assistant("b")]}, ":1: rejected: wrong type; .*expected a string, as in chosen"),
    ({"chosen": [user("p"), assistant("a")], "rejected": "b"}, "rejected: wrong type.*messages, as in chosen"),
    ({**PAIR, "prompt": ["p"]}, r":1: prompt\[0\]: not a message"),
    ({**PAIR, "prompt": [{"role": "assitant", "content": "x"}]}, r"prompt\[0\]\.role: unknown role; the nearest"),
    ({**PAIR, "prompt": [{"role": "User", "content": "x"}]}, "unknown role; the nearest is 'user'"),
    ({**PAIR, "prompt": [{"content": "x"}]}, r"prompt\[0\]\.role: missing"),
    ({**PAIR, "prompt": [{"role": "user", "contnet": "x"}]}, r"prompt\[0\]\.content: missing; .*'contnet'"),
    ({**PAIR, "prompt": [{"role": "user", "content": 3}]}, r"prompt\[0\]\.content: wrong type"),
    ({**PAIR, "prompt": [{"from": "human", "value": "x"}]}, "expected `role` and `content`"),
    ({**PAIR, "prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "images and sound are not read"),
    ({"prompt": "p", "responses": [{"text": "a", "scroe": 1}]}, r"responses\[0\]\.score: missing; .*'scroe'"),
    ({"prompt": "p", "responses": "a"}, ":1: responses: wrong type; found 'a', expected a list of objects"),
    ({"context": "p", "completions": [{"completion": "a", "rnak": 1}]}, r"completions\[0\]\.rank: missing"),
    ({**FULL, "relation": {"order": [[0], [0]]}}, ":1: relation.order: not an order"),
    ({**FULL, "relation": {"ratings": [1]}}, ":1: relation.ratings: wrong length"),
    ({**FULL, "relation": "better"}, ":1: relation: not a relation"),
    ({**FULL, "relation": "both_bad", "confidnce": 1}, "unknown field 'confidnce'; the nearest is 'confidence'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), STRUCTURE)
def test_faults_of_structure_always_end_the_reading(row: Any, expected: str, tmp_path: Path) -> None:
    import re

    for mode in ("error", "skip"):
        assert re.search(expected, refused(tmp_path, row, on_bad_record=mode))


IMPLIED: list[Any] = [{"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]}]
MEANING: list[tuple[str, Any, str | None]] = [
    ("identical", {**PAIR, "rejected": "a"}, "rejected"),
    ("identical", {**PAIR, "chosen": [assistant("a")], "rejected": [assistant("a")]}, "rejected"),
    ("empty", {**PAIR, "rejected": ""}, "rejected"),
    ("empty", {**PAIR, "chosen": " \n\u200b"}, "chosen"),
    ("empty", {**PAIR, "chosen": None}, "chosen"),
    ("empty", {**PAIR, "chosen": []}, "chosen"),
    ("empty", {**PAIR, "chosen": [assistant(" ")], "rejected": [assistant("b")]}, "chosen"),
    ("empty", {**PAIR, "prompt": None}, "prompt"),
    ("empty", {**PAIR, "prompt": [], "chosen": [assistant("a")], "rejected": [assistant("b")]}, "prompt"),
    ("empty", {"prompt": "p", "responses": []}, "responses"),
    ("empty", {"prompt": "p", "responses": [{"text": "a"}, {"text": None, "score": 2}]}, "responses[1].text"),
    ("border", {**PAIR, "chosen": [user("x"), assistant("a")], "rejected": [assistant("b")]}, "rejected[0].role"),
    ("border", {**PAIR, "chosen": [user("x"), assistant("a")], "rejected": [user("x"), assistant("b")]}, "chosen[0]"),
    ("no_answer", {**PAIR, "chosen": [assistant("a"), user("x")], "rejected": [assistant("b")]}, "chosen"),
    ("no_answer", {"messages": [user("p")]}, "messages"),
    ("no_answer", {"messages": [user("p"), assistant("a"), user("q")]}, "messages"),
    ("bad_value", {**PAIR, "margin": True}, "margin"),
    ("bad_value", {**PAIR, "margin": "1_000"}, "margin"),
    ("bad_value", {**PAIR, "margin": "nan"}, "margin"),
    ("bad_value", {**PAIR, "margin": "1,5"}, "margin"),
    ("bad_value", {**PAIR, "margin": "１０"}, "margin"),
    ("bad_value", {**PAIR, "margin": 10**400}, "margin"),
    ("bad_value", {**PAIR, "confidence": 1.5}, "confidence"),
    ("bad_value", {**PAIR, "shown_first": 2}, "shown_first"),
    ("bad_value", {**PAIR, "id": True}, "id"),
    ("bad_value", {**PAIR, "id": ["q"]}, "id"),
    ("bad_value", {"prompt": "p", "completion": "a", "label": "maybe"}, "label"),
    ("bad_value", {"prompt": "p", "completion": "a", "label": 2}, "label"),
    ("bad_value", {**HELPSTEER3, "overall_preference": 4}, "overall_preference"),
    ("bad_value", {**HELPSTEER3, "overall_preference": None}, "overall_preference"),
    ("bad_value", {**HELPSTEER2, "response": "a", "helpfulness": 5}, "helpfulness"),
    ("contradiction", {**PAIR, "score_chosen": 1, "score_rejected": 2}, "score_chosen"),
    ("identical", {**FULL, "completions": ["a", "a"], "relation": {"order": [[0], [1]]}}, None),
    ("empty", {**FULL, "completions": ["a", ""], "relation": {"ratings": [1, 0]}}, "completions[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "field"), MEANING)
def test_faults_of_meaning_follow_on_bad_record(kind: str, row: Any, field: str | None, tmp_path: Path) -> None:
    message = refused(tmp_path, row)
    assert message.startswith(f"{tmp_path / 'a.jsonl'}:1: " + (f"{field}: " if field else ""))
    assert "on_bad_record=skip" in message
    reading, found = load(tmp_path, row, on_bad_record="skip")
    assert found == []
    assert (reading.counts.records, reading.counts.skipped) == (1, 1)
    assert [(o.kind, o.line, o.field) for o in reading.counts.odd] == [(kind, 1, field)]


@pytest.mark.parametrize(
    ("row", "field"), [({**PAIR, "prompt": "\ud800"}, "prompt"), ({**PAIR, "meta": {"x": ["\udfff"]}}, "meta.x[0]")]
)
def test_half_of_a_surrogate_pair(row: Any, field: str, tmp_path: Path) -> None:
    line = json.dumps(row)  # ASCII: the escape is legal JSON
    assert f":2: {field}: not valid Unicode" in refused(tmp_path, PAIR, line)
    reading, found = load(tmp_path, PAIR, line, on_bad_record="skip")
    assert (len(found), reading.counts.kinds["broken_text"]) == (1, 1)


NOTED: list[tuple[str, list[Any]]] = [
    ("duplicates", [PAIR, {**PAIR, "topic": "x"}]),
    ("ties", [{**HELPSTEER3, "overall_preference": 0}]),
    ("identical", [{**HELPSTEER3, "response2": "a", "overall_preference": 0}]),
    ("identical", [{"prompt": "p", "responses": [{"text": t, "score": i} for i, t in enumerate("aba")]}]),
    ("unrated", [{"prompt": "p", "responses": [{"text": "a", "score": 1}, {"text": "b"}]}]),
    ("repeated_ids", [{**PAIR, "id": 1}, {**PAIR, "id": "1", "chosen": "c"}]),
    ("empty_prompt", [{**PAIR, "prompt": " "}]),
    ("no_user_turn", [{**PAIR, "prompt": [{"role": "system", "content": "s"}]}]),
    ("after_answer", [{**PAIR, "prompt": [user("p"), assistant("x")]}]),
    ("nearly_identical", [{**PAIR, "rejected": "a "}]),
    ("nothing_to_compare", [{"prompt": "p", "responses": [{"text": "a", "score": 1}]}]),
    ("looks_encoded", [{**PAIR, "chosen": json.dumps([assistant("a")])}]),
    ("negative_strength", [{**PAIR, "margin": -1}]),
    ("misspelt_column", [{**PAIR, "margn": 1}]),
    ("empty", [{**FULL, "completions": ["a", "", "b"], "relation": {"ratings": [1, 0, 2]}}]),
]


@pytest.mark.parametrize(("kind", "rows"), NOTED)
def test_oddities_are_counted_and_kept(kind: str, rows: list[Any], tmp_path: Path) -> None:
    reading, found = load(tmp_path, *rows)
    assert len(found) == len(rows)
    assert reading.counts.numbers()[kind] == 1
    assert kind.replace("_", " ") in reading.counts.summary()


def test_no_pair_of_two_equal_texts(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": [{"text": t, "score": s} for t, s in (("a", 1), ("b", 2), ("a", 3))]}
    _, (judgement,) = load(tmp_path, row)
    assert [(p.chosen, p.rejected) for p in pairs(judgement)] == [("a", "b"), ("b", "a")]


def test_options_that_cannot_act_or_do_not_exist(tmp_path: Path) -> None:
    assert "score: cannot act" in refused(tmp_path, PAIR, score="mean")
    assert "unknown format 'preferance'; the nearest is 'preference'" in refused(tmp_path, PAIR, format="preferance")
    assert "on_bad_record: unknown way" in refused(tmp_path, PAIR, on_bad_record="ignore")
    row = {"instruction": "p", "completions": [{"response": "a", "overall_score": 1}]}
    assert "unknown score 'overal_score'; the nearest is 'overall_score'" in refused(
        tmp_path, row, score="overal_score"
    )


def test_the_readme_of_faults_is_capped(tmp_path: Path) -> None:
    message = refused(tmp_path, *[{**PAIR, "rejected": "a"}] * 50)
    assert message.count("identical") == 20
    assert "... and 30 more." in message
    reading, _ = load(tmp_path, *[{**PAIR, "rejected": "a"}] * 50, on_bad_record="skip")
    assert reading.counts.kinds["identical"] == 50
    assert len(reading.counts.odd) == 5


ROW = Row("f", 1, {})
words = st.text(st.sampled_from("ab1 \n.é中。🏔"), max_size=12)


@given(shared=words, chosen=words, rejected=words)
def test_split_strings_only_moves_the_border(shared: str, chosen: str, rejected: str) -> None:
    a, b = shared + chosen, shared + rejected
    assume(a != b)
    try:
        prompt, (first, second) = split_strings(ROW, a, b)
    except BadMeaning:  # one is the other's beginning, or blank
        short, long = sorted((a, b), key=lambda text: len(text.rstrip()))
        assert long.startswith(short.rstrip())
        return
    assert (prompt + first, prompt + second) == (a, b)
    assert first.strip()
    assert second.strip()
    for answer in (first, second):  # never inside a word or a number
        assert not (prompt and prompt[-1].isascii() and prompt[-1].isalnum() and answer[0].isalnum())


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Pi is 3.14", "Pi is 3.15", "Pi is"),
        ("It costs -14", "It costs -15", "It costs"),
        ("At 10:30", "At 10:45", "At"),
        ("a don't", "a don's", "a"),
        ("Q\nA:\nyes", "Q\nA:\nyet", "Q\nA:\n"),
        ("two  spaces", "two  spades", "two  "),
        ("首都？北京", "首都？北方", "首都？"),
        ("Flag 🏴‍☠️", "Flag 🏴‍🔥", "Flag"),
        ("It is 1", "It is 14", "It is"),
        ("It is 1\n", "It is 14", "It is"),
        ("It is 3.1", "It is 3.14", "It is"),
    ],
)
def test_split_strings_examples(chosen: str, rejected: str, prompt: str) -> None:
    assert split_strings(ROW, chosen, rejected)[0] == prompt


turns = st.lists(st.sampled_from([user("u"), user("v"), assistant("a"), assistant("b"), assistant("")]), max_size=5)


@given(chosen=turns, rejected=turns)
def test_split_conversation_never_puts_a_prompt_into_an_answer(chosen: Any, rejected: Any) -> None:
    try:
        prompt, (first, second) = split_conversation(ROW, chosen, rejected)
    except BadMeaning:
        return
    assert (prompt + first, prompt + second) == (chosen, rejected)
    for answer in (first, second):
        assert answer[0]["role"] == answer[-1]["role"] == "assistant"
        assert all(turn["content"] for turn in answer if turn["role"] == "assistant")
    assert prompt
