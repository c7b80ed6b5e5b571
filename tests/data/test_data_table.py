"""Tables on disk: the same judgements, read once, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_makers import assistant, jsonl, user

from optative.core.errors import InputError
from optative.data import table as tables
from optative.data.readers import DataWarning, read
from optative.data.table import build_table

ROWS = [{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": "b", "margin": i} for i in range(2500)]


def test_a_table_is_its_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ROWS[:1000], "", *ROWS[1000:])
    table, reading = build_table(path, tmp_path / "cache"), read(path)
    expected = list(reading.numbered())
    assert len(table) == 2500
    assert list(table) == [n.judgement for n in expected]
    assert [table.line(i) for i in range(len(table))] == [n.line for n in expected]
    assert (table.line(999), table.line(1000)) == (1000, 1002)
    assert table[-1] == table[2499] == expected[-1].judgement
    assert table[1022:1026] == [n.judgement for n in expected[1022:1026]]
    assert table.id(3) == expected[3].judgement.id
    assert (table.format, table.fingerprint) == (reading.format, reading.fingerprint)
    assert table.counts == reading.counts
    for index in (2500, -2501):
        with pytest.raises(IndexError):
            table[index]


def test_a_file_is_read_once_until_it_or_the_options_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ROWS[:3])
    first = build_table(path, tmp_path / "cache")
    renamed = path.rename(tmp_path / "b.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "Reading", None)  # opening needs no reader
        assert build_table(renamed, tmp_path / "cache").folder == first.folder
    assert build_table(renamed, tmp_path / "cache", on_bad_record="skip").folder != first.folder
    jsonl(renamed, *ROWS[:4])
    changed = build_table(renamed, tmp_path / "cache")
    assert (len(first), len(changed)) == (3, 4)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_no_table_of_a_faulty_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ROWS, "{")
    with pytest.raises(InputError, match=r"a\.jsonl:2501: broken JSON"):
        build_table(path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_warnings_come_from_the_cache_too(tmp_path: Path) -> None:
    completions = [{"response": "a", "annotations": {"honesty": {"Rating": 1}}, "overall_score": 10}]
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "p", "completions": completions})
    for _ in range(2):
        with pytest.warns(DataWarning, match=r"completions\[0\]\.overall_score"):
            build_table(path, tmp_path / "cache", score="overall_score")


CHILD = """
import resource, sys
from optative.data.table import build_table
import pyarrow.parquet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
table = build_table(sys.argv[1], sys.argv[2])
assert table[len(table) // 2].prompt[0]["role"] == "user"
print(len(table), peak() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """20 MB of messages, which as Python objects are about 150 MB, cost a fraction of that."""
    count = 20_000
    with open(tmp_path / "a.jsonl", "w") as stream:
        for i in range(count):
            text = f"{i} " * 60
            row = {"prompt": [user(text)], "chosen": [assistant(text + "a")], "rejected": [assistant(text + "b")]}
            stream.write(json.dumps(row) + "\n")
    assert (tmp_path / "a.jsonl").stat().st_size > 20_000_000
    command = [sys.executable, "-c", CHILD, str(tmp_path / "a.jsonl"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    length, grown = done.stdout.split()
    assert int(length) == count
    assert float(grown) < 60, f"building the table took {grown} MB more"
