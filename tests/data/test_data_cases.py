"""Small inputs that broke other tools, remade here; where the shared files lie beside the checkout, they are read."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_makers import assistant, jsonl, user

from optative.core.errors import InputError
from optative.data.readers import DataWarning, read
from optative.data.records import Judgement, Order, Ratings, fingerprint, pairs, ties
from optative.data.writers import write_judgements, write_pairs

BETTER = Order(((0,), (1,)))


# 01: byte-order mark, CRLF, blank lines

MARKED = (
    b'\xef\xbb\xbf{"prompt": "Name a metal.", "chosen": "Copper.", "rejected": "Cotton.", "meta": {"a": 1}}\r\n\r\n'
    b'{"prompt": "Name a fruit.", "chosen": "A fig.\\r\\nOr a plum.", "rejected": "A fork.", "meta": {"b": 2}}\r\n'
    b"   \r\n"
    b'{"prompt": "Name a sea.", "chosen": "The Aral Sea.", "rejected": "The Alps.", "meta": {"a": 3, "b": 4}}'
)


def check_marked(path: Path) -> None:
    reading = read(path)
    found = list(reading.numbered())
    assert [n.line for n in found] == [1, 3, 5]
    assert next(iter(reading.columns)) == "prompt"
    assert [n.judgement.meta for n in found] == [{"a": 1}, {"b": 2}, {"a": 3, "b": 4}]
    assert found[1].judgement.completions == ("A fig.\r\nOr a plum.", "A fork.")
    for n in found:
        assert not any(str(text).endswith("\r") for text in (n.judgement.prompt, *n.judgement.completions))


def test_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(MARKED)
    packed.write_bytes(gzip.compress(MARKED))
    check_marked(plain)
    check_marked(packed)
    assert list(read(plain)) == list(read(packed))


@pytest.mark.parametrize("mode", ["error", "skip"])
def test_missing_column_of_one_record_names_its_physical_line(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARKED.replace(b', "rejected": "The Alps."', b""))
    with pytest.raises(InputError, match=r"a\.jsonl:5: rejected: missing"):
        list(read(path, on_bad_record=mode))


def test_shared_mark(shared: Path) -> None:
    check_marked(shared / "cases" / "01-bom-crlf-blank.jsonl")


# 02: a rating of 1 that became a 10


def ultrafeedback() -> dict[str, Any]:
    ratings = {"m1": "5545", "m2": "1121", "m3": "3N33", "m4": "4555"}
    overall = {"m1": 8.5, "m2": 10.0, "m3": 5.0, "m4": 8.0}
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    completions = [
        {
            "model": name,
            "response": f"answer of {name}",
            "annotations": {a: {"Rating": r if r != "N" else "N/A"} for a, r in zip(aspects, digits)},
            "overall_score": overall[name],
        }
        for name, digits in ratings.items()
    ]
    return {"source": "made-up", "instruction": "Why is the sky blue?", "completions": completions}


def check_ten(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (judgement,) = list(read(path))
    assert judgement.relation == Ratings((4.75, 1.25, 3.0, 4.75))
    names = {c: m["model"] for c, m in zip(judgement.completions, judgement.meta["completions"])}  # type: ignore[misc]
    found = {(names[p.chosen], names[p.rejected]) for p in pairs(judgement)}  # type: ignore[index]
    assert found == {("m1", "m2"), ("m1", "m3"), ("m4", "m2"), ("m4", "m3"), ("m3", "m2")}
    assert ties(judgement) == 1
    reading_by_score = read(path, score="overall_score")
    with pytest.warns(DataWarning) as seen:
        (judgement,) = list(reading_by_score)
    assert len(seen) == 1
    text = str(seen[0].message)
    assert all(part in text for part in (":1:", "completions[1].overall_score", "10.0", "1.25"))
    assert reading_by_score.counts.kinds["score_differs"] == 1
    assert judgement.relation == Ratings((8.5, 10.0, 5.0, 8.0))


def test_ultrafeedback_ten(tmp_path: Path) -> None:
    check_ten(jsonl(tmp_path / "u.jsonl", ultrafeedback()))


def test_scores_compare_as_numbers(tmp_path: Path) -> None:
    record = ultrafeedback()
    for completion, score in zip(record["completions"], ("9", "10", "8.5", "8")):
        completion["overall_score"] = score
    with pytest.warns(DataWarning):
        (judgement,) = list(read(jsonl(tmp_path / "u.jsonl", record), score="overall_score"))
    assert judgement.relation == Ratings((9.0, 10.0, 8.5, 8.0))


def test_shared_ten(shared: Path) -> None:
    check_ten(shared / "cases" / "02-ultrafeedback-ten.jsonl")


# 03: HH transcripts that part before the last turn

HH = [
    {
        "chosen": "\n\nHuman: How do I season a pan?\n\nAssistant: Heat it with a thin film of oil."
        "\n\nHuman: How often?\n\nAssistant: A few times a year.",
        "rejected": "\n\nHuman: How do I season a pan?\n\nAssistant: With salt and pepper.",
    },
    {
        "chosen": "\n\nHuman: What does the box say?\n\nAssistant: The label reads "
        '"Human: lift with care" and "Assistant: none".',
        "rejected": "\n\nHuman: What does the box say?\n\nAssistant: I cannot see it.",
    },
    {"chosen": "\n\nHuman: Greet me.\n\nAssistant: Hello there.", "rejected": "\n\nHuman: Greet me.\n\nAssistant:"},
    {
        "chosen": "\n\nHuman: Pick a colour.\n\nAssistant: Red.\n\nHuman: Another?",
        "rejected": "\n\nHuman: Pick a colour.\n\nAssistant: Seven.\n\nHuman: Another?",
    },
]


def check_hh(path: Path) -> None:
    reading = read(path, on_bad_record="skip")
    first, second = list(reading)
    assert reading.format == "hh"
    assert first.prompt == [user("How do I season a pan?")]
    oil = [assistant("Heat it with a thin film of oil."), user("How often?"), assistant("A few times a year.")]
    assert first.completions == (oil, [assistant("With salt and pepper.")])
    assert second.completions[0] == [assistant('The label reads "Human: lift with care" and "Assistant: none".')]
    numbers = reading.counts.numbers()
    assert (numbers["skipped"], numbers["empty"], numbers["no_answer"]) == (2, 1, 1)
    assert {(o.kind, o.line, o.field) for o in reading.counts.odd} == {
        ("empty", 3, "rejected"),
        ("no_answer", 4, "chosen"),
    }
    with pytest.raises(InputError) as error:
        list(read(path))
    assert ":3: rejected: empty answer" in str(error.value)
    assert ":4: chosen: ends without an answer" in str(error.value)


def test_hh_differs_early(tmp_path: Path) -> None:
    check_hh(jsonl(tmp_path / "hh.jsonl", *HH))


def test_shared_hh(shared: Path) -> None:
    check_hh(shared / "cases" / "03-hh-differs-early.jsonl")


# 04: where the prompt ends when it is only implied

IMPLICIT = [
    {"chosen": "Oslo ", "rejected": "Lima"},
    {"chosen": "Q: 7+7?\nA: 14", "rejected": "Q: 7+7?\nA: 15"},
    {"chosen": "Snow is cold", "rejected": "Snow is cold and wet"},
    {"chosen": [user("Tea?"), assistant("Yes.")], "rejected": [user("Tea?"), assistant("Yes."), user("Milk?")]},
    {"chosen": [user("Tea?"), assistant("Yes.")], "rejected": [user("Tea? "), assistant("No.")]},
]


def check_implicit(path: Path) -> None:
    reading = read(path, on_bad_record="skip")
    first, second = list(reading)
    assert (first.prompt, first.completions) == ("", ("Oslo ", "Lima"))
    assert (second.prompt, second.completions) == ("Q: 7+7?\nA:", (" 14", " 15"))
    counts = reading.counts
    assert (counts.records, counts.kept, counts.skipped) == (5, 2, 3)
    refused = {(o.line, o.field) for o in counts.odd if o.kind in ("empty", "border")}
    assert refused == {(3, "chosen"), (4, "chosen"), (5, "rejected[0].content")}
    with pytest.raises(InputError, match=r":5: rejected\[0\]\.content: differs from chosen\[0\]\.content"):
        list(read(path))


def test_implicit_border(tmp_path: Path) -> None:
    check_implicit(jsonl(tmp_path / "i.jsonl", *IMPLICIT))


def test_shared_implicit(shared: Path) -> None:
    check_implicit(shared / "cases" / "04-implicit-border.jsonl")


# 05: messages from Parquet come back with keys they never had

CALLS = [{"name": "mul", "arguments": '{"a":3,"b":4}'}]
PADDED = [
    {
        "prompt": [
            user("What is 3*4?"),
            {"role": "assistant", "content": "", "tool_calls": CALLS},
            {"role": "tool", "name": "mul", "content": "12"},
        ],
        "chosen": [assistant("It is 12.")],
        "rejected": [assistant("It is 7.")],
    },
    {"prompt": [user("Say hi.")], "chosen": [assistant("Hi.")], "rejected": [assistant("No.")]},
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls is defined %}[calls]{% endif %}"
    "{% if m.name is defined %}({{ m.name }}){% endif %}{{ m.content }}<|end|>{% endfor %}<|assistant|>"
)


def check_padded(as_lines: Path, as_table: Path) -> None:
    import jinja2

    lines, table = list(read(as_lines)), list(read(as_table))
    assert lines == table
    assert [j.prompt for j in table] == [row["prompt"] for row in PADDED]
    assert fingerprint(lines) == fingerprint(table)
    rendered = [jinja2.Template(TEMPLATE).render(messages=j.prompt) for j in table]
    assert rendered == [
        "<|user|>What is 3*4?<|end|><|assistant|>[calls]<|end|><|tool|>(mul)12<|end|><|assistant|>",
        "<|user|>Say hi.<|end|><|assistant|>",
    ]


def test_null_padded_messages(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PADDED), tmp_path / "p.parquet")
    padded = pq.read_table(tmp_path / "p.parquet").to_pylist()[1]["prompt"][0]
    assert padded["tool_calls"] is None, "the table does not pad, so this test tests nothing"
    check_padded(jsonl(tmp_path / "p.jsonl", *PADDED), tmp_path / "p.parquet")


def test_shared_padded(shared: Path) -> None:
    cases = shared / "cases"
    check_padded(cases / "05-null-padded-messages.jsonl", cases / "05-null-padded-messages.parquet")


# 06: Unicode line separators inside a JSON string

SEPARATED = [("one\u2028two", "one"), ("a\u0085b", "c"), ("p\u2029q", "r")]


def check_separated(path: Path, tmp_path: Path) -> None:
    found = list(read(path))
    assert [j.completions for j in found] == SEPARATED
    assert [len(j.completions[0]) for j in found] == [7, 3, 3]
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        write_pairs(tmp_path / name, found)
        assert [j.completions for j in read(tmp_path / name)] == SEPARATED
        write_judgements(tmp_path / name, found)
        assert list(read(tmp_path / name)) == found
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(path.read_bytes().replace(b'"rejected": "r"', b'"rejected": r'))
    with pytest.raises(InputError, match=r"broken\.jsonl:3: broken JSON"):
        list(read(broken))


def test_line_separator(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": chosen, "rejected": rejected} for chosen, rejected in SEPARATED]
    check_separated(jsonl(tmp_path / "s.jsonl", *rows), tmp_path)


def test_shared_separated(shared: Path, tmp_path: Path) -> None:
    check_separated(shared / "cases" / "06-line-separator.jsonl", tmp_path)


# 07: numbers, strings, percents and nulls in one score column

SCORED = [
    [("Nine.", 9), ("Eleven.", "10"), ("Seven?", 9.5), ("Dunno.", None)],
    [("Sixteen.", 0.9), ("Twelve.", "85%")],
    [("Eight.", True), ("Ten.", 0)],
]


def check_scored(path: Path) -> None:
    reading = read(path, on_bad_record="skip")
    (judgement,) = list(reading)
    order = [("Eleven.", "Seven?"), ("Eleven.", "Nine."), ("Seven?", "Nine.")]
    assert [(p.chosen, p.rejected) for p in pairs(judgement)] == order
    counts = reading.counts
    assert (counts.records, counts.kept, counts.skipped, counts.kinds["unrated"]) == (3, 1, 2, 1)
    assert [o.line for o in counts.odd if o.kind == "bad_value"] == [2, 3]
    with pytest.raises(InputError) as error:
        list(read(path))
    text = str(error.value)
    assert ':2: responses[1].score: not a number; found "85%", expected a number on the column\'s scale' in text
    assert ":3: responses[0].score: not a number; found true, expected a number" in text


def test_scores_as_text(tmp_path: Path) -> None:
    rows = [{"prompt": "Name one.", "responses": [{"text": t, "score": s} for t, s in row]} for row in SCORED]
    check_scored(jsonl(tmp_path / "s.jsonl", *rows))


def test_shared_scored(shared: Path) -> None:
    check_scored(shared / "cases" / "07-scores-as-text.jsonl")


# 23, of ids: 1 and "1" are the same id


def test_repeated_ids_are_told_apart_and_counted(tmp_path: Path) -> None:
    rows = [
        {"id": id, "prompt": "p", "chosen": chosen, "rejected": "r"}
        for id, chosen in ((1, "a"), ("1", "b"), ("q", "c"), (1, "d"))
    ]
    reading = read(jsonl(tmp_path / "i.jsonl", *rows))
    found: list[Judgement] = list(reading)
    assert [j.id for j in found] == ["1", "1#2", "q", "1#4"]
    assert reading.counts.kinds["repeated_ids"] == 2
    assert [(o.line, o.message) for o in reading.counts.odd] == [
        (2, "'1' first seen in line 1"),
        (4, "'1' first seen in line 1"),
    ]
    assert found[0].relation == BETTER
