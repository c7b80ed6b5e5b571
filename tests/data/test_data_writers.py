"""What is written reads back, whole or not at all."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_makers import assistant, user
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_records import judgements

from optative.core.errors import InputError
from optative.data.readers import read
from optative.data.records import BothBad, Incomparable, Judgement, Labels, Order, Ratings
from optative.data.writers import write_judgements, write_pairs

NAMES = ["a.jsonl", "a.jsonl.gz", "a.parquet"]
BETTER = Order(((0,), (1,)))
one_form = st.booleans().flatmap(lambda messages: st.lists(judgements(conversation=messages), min_size=1, max_size=4))


def unique_ids(found: list[Judgement]) -> list[Judgement]:
    return [replace(j, id=f"{i} {j.id}") for i, j in enumerate(found)]


def same(found: list[Judgement], expected: list[Judgement]) -> None:
    assert [j.to_json() for j in found] == [j.to_json() for j in expected]


@settings(max_examples=40)
@given(found=one_form, name=st.sampled_from(NAMES))
def test_full_records_lose_nothing(found: list[Judgement], name: str) -> None:
    found = unique_ids(found)
    with tempfile.TemporaryDirectory() as folder:
        assert write_judgements(Path(folder) / name, found).rows == len(found)
        reading = read(Path(folder) / name)
        same(list(reading), found)
        assert reading.format == "optative"


@settings(max_examples=40)
@given(
    found=st.booleans().flatmap(lambda m: st.lists(judgements(conversation=m, pair=True), min_size=1, max_size=4)),
    name=st.sampled_from(NAMES),
)
def test_pairs_lose_nothing(found: list[Judgement], name: str) -> None:
    found = unique_ids(found)
    with tempfile.TemporaryDirectory() as folder:
        assert write_pairs(Path(folder) / name, found).rows == len(found)
        reading = read(Path(folder) / name)
        same(list(reading), found)
        assert reading.format == "preference"


def test_what_pairs_cannot_hold_is_counted(tmp_path: Path) -> None:
    answers = ("a", "b", "c")
    relations: list[Any] = [
        Ratings((3.0, 1.0, 3.0)),
        Labels((True, False, False)),
        Order(((0, 1, 2),)),
        BothBad(),
        Incomparable(),
    ]
    given = [Judgement(str(i), "p", answers, relation) for i, relation in enumerate(relations)]
    written = write_pairs(tmp_path / "a.jsonl", given)
    assert (written.rows, written.ties, written.both_bad, written.incomparable, written.without_pair) == (4, 4, 1, 1, 3)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("a", "b"), ("c", "b"), ("a", "b"), ("a", "c")]
    assert rows[0]["strength"] == 2.0
    assert len({r["id"] for r in rows}) == 4


def test_who_was_shown_first_follows_its_answer(tmp_path: Path) -> None:
    for relation, expected in ((BETTER, 1), (Order(((1,), (0,))), 0)):
        write_pairs(tmp_path / "a.jsonl", [Judgement("i", "p", ("a", "b"), relation, shown_first=1)])
        (judgement,) = list(read(tmp_path / "a.jsonl"))
        assert judgement.shown_first == expected
        assert judgement.completions[expected] == "b"


def test_columns_that_other_tools_read(tmp_path: Path) -> None:
    """Messages are lists of structs with role and content, also where batches differ in their keys."""
    plain = [Judgement(f"i{i}", [user("p")], ([assistant(f"a{i}")], [assistant("b")]), BETTER) for i in range(1500)]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    tool = {"role": "tool", "content": "1"}
    late = Judgement("late", [user("p"), call, tool], ([assistant("a")], [assistant("b")]), BETTER, strength=2.0)
    write_pairs(tmp_path / "a.parquet", [*plain, late])
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.num_rows == 1501
    assert {"prompt", "chosen", "rejected", "strength", "id"} == set(table.column_names)
    assert [m["content"] for m in table.slice(0, 1).to_pylist()[0]["chosen"]] == ["a0"]
    assert list(read(tmp_path / "a.parquet")) == [*plain, late]


def test_half_written_files_never_appear(tmp_path: Path) -> None:
    def broken() -> Any:
        yield Judgement("i", "p", ("a", "b"), BETTER)
        raise KeyboardInterrupt

    for name in NAMES:
        (tmp_path / name).write_text("old")
        with pytest.raises(KeyboardInterrupt):
            write_pairs(tmp_path / name, broken())
        assert (tmp_path / name).read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    given = [Judgement("i", "p", ("a", "b"), BETTER)]
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_pairs(tmp_path / name, given)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    given = [Judgement("i", "p", ("a", "b"), BETTER)]
    with pytest.raises(InputError, match=r"expected a name ending in \.jsonl"):
        write_pairs(tmp_path / "a.csv", given)
    mixed = [*given, Judgement("j", [user("p")], ([assistant("a")], [assistant("b")]), BETTER)]
    with pytest.raises(InputError, match="does not fit one Parquet table"):
        write_pairs(tmp_path / "a.parquet", mixed)
    write_pairs(tmp_path / "a.jsonl", mixed)
    assert list(read(tmp_path / "a.jsonl")) == mixed
