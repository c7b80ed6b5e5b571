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
import re, sys
from optative.data.readers import read
from optative.data.table import build_table
how, file, cache = sys.argv[1:]
kept = build_table(file, cache) if how == "table" else list(read(file))
assert kept[len(kept) // 2].prompt[0]["role"] == "user"
# Not ru_maxrss, which a child has from its parent.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


def peak_megabytes(how: str, count: int, folder: Path) -> float:
    file = folder / f"{count}.jsonl"
    with open(file, "w") as stream:
        for i in range(count):
            text = f"{i} " * 200
            row = {"prompt": [user(text)], "chosen": [assistant(text + "a")], "rejected": [assistant(text + "b")]}
            stream.write(json.dumps(row) + "\n")
    command = [sys.executable, "-c", CHILD, how, str(file), str(folder / "cache")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """54 MB more of file: a list grows by about 75, a table by 2."""
    assert peak_megabytes("table", 20_000, tmp_path) - peak_megabytes("table", 5_000, tmp_path) < 20


def test_the_measure_of_memory_would_notice(tmp_path: Path) -> None:
    assert peak_megabytes("list", 20_000, tmp_path) - peak_megabytes("list", 5_000, tmp_path) > 40
