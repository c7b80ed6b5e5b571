"""Kinds of files: the same records from each, and one clear error for what is broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_makers import jsonl
from hypothesis import given
from hypothesis import strategies as st

from optative.core.errors import InputError, InputErrors
from optative.data import files
from optative.data.readers import read
from optative.data.records import fingerprint

ROWS = [
    {"id": "q1", "prompt": "Name a metal, é.", "chosen": 'Iron; "Fe"\nor Cu', "rejected": "Wood", "margin": 1.5},
    {"id": "q2", "prompt": "Name a sea.", "chosen": "Aral", "rejected": "The\u2028Alps 🏔", "margin": 0.5},
    {"id": "q3", "prompt": "Name a fruit.", "chosen": "Fig, ripe", "rejected": "Fork", "margin": 2},
]
GOOD = '{"prompt": "p", "chosen": "a", "rejected": "b"}'
LINE = GOOD.encode()


def as_lines() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def as_csv(delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


def arrow(path: Path, rows: list[dict[str, Any]], *, stream: bool) -> None:
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def saved(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """A folder as `datasets` saves it: two shards of an Arrow stream and a state that names them."""
    folder.mkdir(parents=True)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    arrow(folder / names[0], rows[:1], stream=True)
    arrow(folder / names[1], rows[1:], stream=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def shards(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows[:2]), folder / f"{split}-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:] or rows[:1]), folder / f"{split}-00001-of-00002.parquet")


def make(kind: str, folder: Path) -> Path:
    path = folder / kind
    match kind.split("-")[0]:
        case "lines.jsonl" | "packed.jsonl.gz" | "misnamed.jsonl":
            data = as_lines().encode()
            path.write_bytes(data if kind == "lines.jsonl" else gzip.compress(data, mtime=0))
        case "marked.jsonl.gz":
            path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + as_lines().encode(), mtime=0))
        case "joined.jsonl":
            path.write_bytes(
                b"".join(b"\xef\xbb\xbf" + line + b"\r\n\r\n" for line in as_lines().encode().splitlines())
            )
        case "wide.jsonl":
            path.write_bytes(as_lines().encode("utf-16"))
        case "wide_unmarked.jsonl":
            path.write_bytes(as_lines().encode("utf-16-le"))
        case "list.json":
            path.write_text(json.dumps(ROWS, indent=1))
        case "list.jsonl":
            path.write_text("\n [" + ",\n".join(as_lines().strip().split("\n")) + "]\n")
        case "wrapped.json":
            path.write_text(json.dumps({"version": 1, "data": ROWS, "note": ["x"]}, indent=1))
        case "wrapped.jsonl":
            path.write_text(json.dumps({"data": ROWS}))
        case "cells.csv":
            path.write_bytes(as_csv().encode())
        case "cells_marked.csv":
            path.write_bytes(as_csv().encode("utf-8-sig"))
        case "cells_wide.csv":
            path.write_bytes(as_csv().encode("utf-16"))
        case "cells_semicolon.csv":
            path.write_bytes(as_csv(";").encode())
        case "cells.tsv":
            path.write_bytes(as_csv("\t").encode())
        case "cells.csv.gz":
            path.write_bytes(gzip.compress(as_csv().encode(), mtime=0))
        case "table.parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
        case "file.arrow" | "stream.arrow":
            arrow(path, ROWS, stream=kind == "stream.arrow")
        case "saved":
            saved(path)
        case "splits":
            saved(path / "train")
            saved(path / "test", ROWS[:2])
            (path / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "train"]}))
        case "parquets":
            shards(path / "data", "train", ROWS)
            shards(path / "data", "test", ROWS[:1])
        case "parts":
            path.mkdir()
            pq.write_table(pa.Table.from_pylist(ROWS[:1]), path / "part-0.parquet")
            pq.write_table(pa.Table.from_pylist(ROWS[1:]), path / "part-1.parquet")
    return path


KINDS = [
    "lines.jsonl",
    "packed.jsonl.gz",
    "misnamed.jsonl",
    "marked.jsonl.gz",
    "joined.jsonl",
    "wide.jsonl",
    "wide_unmarked.jsonl",
    "list.json",
    "list.jsonl",
    "wrapped.json",
    "wrapped.jsonl",
    "cells.csv",
    "cells_marked.csv",
    "cells_wide.csv",
    "cells_semicolon.csv",
    "cells.tsv",
    "cells.csv.gz",
    "table.parquet",
    "file.arrow",
    "stream.arrow",
    "saved",
    "splits",
    "parquets",
    "parts",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_records(kind: str, tmp_path: Path) -> None:
    reading = read(make(kind, tmp_path))
    found = list(reading)
    assert [(j.id, j.prompt, *j.completions, j.strength) for j in found] == [tuple(row.values()) for row in ROWS]
    assert all(j.meta == {} for j in found)
    expected = "cbd920fea2135903"
    assert reading.fingerprint == fingerprint(found)
    assert reading.fingerprint[:16] == expected, "fingerprints are cached on disk: a change needs a new table.VERSION"


def test_splits_that_were_not_read_are_named(tmp_path: Path) -> None:
    reading = read(make("splits", tmp_path))
    list(reading)
    assert reading.source.split == "train"
    assert [o.message for o in reading.counts.odd] == ["read train, not test"]


def test_lines_are_physical(tmp_path: Path) -> None:
    pretty = tmp_path / "list.json"
    pretty.write_text(json.dumps(ROWS, indent=1))
    assert [n.line for n in read(pretty).numbered()] == [2, 9, 16]
    cells = tmp_path / "cells.csv"
    cells.write_text(as_csv().replace("\r\n", "\n"))
    assert [n.line for n in read(cells).numbered()] == [2, 4, 5]  # the first cell holds a line break
    assert [n.line for n in read(make("saved", tmp_path)).numbered()] == [1, 2, 3]  # rows count on over the shards


def test_messages_in_cells_are_json(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}]
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["prompt", "chosen", "rejected"], [json.dumps(turns), "[a]", "b"]])
    (judgement,) = list(read(tmp_path / "a.csv"))
    assert judgement.prompt == turns
    assert judgement.completions[0] == [{"role": "assistant", "content": "[a]"}]


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", r"a\.jsonl: empty file"),
    ("a.jsonl", b"\n  \r\n\xef\xbb\xbf", r"a\.jsonl: empty file"),
    ("a.jsonl", b"\xef\xbb\xbf", r"a\.jsonl: empty file"),
    ("a.json", b" [ ] ", r"a\.json: no records"),
    ("a.json", b'{"data": []}', r"a\.json: no records"),
    ("a.csv", b"prompt,chosen,rejected\n", r"a\.csv: no records"),
    ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz: empty file"),
    ("a.jsonl.gz", gzip.compress(LINE * 9999, mtime=0)[:60], "damaged or cut short"),
    ("a.jsonl", LINE + b'\n{"prompt": "p"\n', r"a\.jsonl:2: broken JSON at character \d+"),
    ("a.jsonl", LINE + b",\n" + LINE, r"a\.jsonl:1: broken JSON.*Extra data(.|\n)*without a comma"),
    ("a.jsonl", LINE[:-1] + b",}", r"a\.jsonl:1: broken JSON"),
    ("a.jsonl", LINE + b"\r" + LINE, r"a\.jsonl:1: broken JSON(.|\n)*CR alone"),
    ("a.jsonl", json.dumps(ROWS[0], indent=1).encode(), r"a\.jsonl:1: broken JSON(.|\n)*stands on one line"),
    ("a.jsonl", LINE + b"\n" + LINE[:-1] + b', "prompt": "q"}', ":2:.*'prompt' stands twice"),
    ("a.jsonl", LINE[:-1] + b', "margin": NaN}', ":1: broken JSON: NaN is not a JSON number"),
    ("a.jsonl", LINE[:-1] + b', "margin": -Infinity}', "-Infinity is not a JSON number"),
    ("a.jsonl", LINE[:-1] + b', "margin": 1e999}', "1e999 is too large"),
    ("a.jsonl", LINE[:-1] + b', "margin": 1' + b"0" * 5000 + b"}", ":1: broken JSON"),
    ("a.jsonl", b'{"prompt": ' + b"[" * 100_000, ":1: broken JSON: nested too deeply"),
    ("a.jsonl", LINE + b"\n" + LINE.replace(b'"p"', b'"\xe9"'), r"a\.jsonl:2: not UTF-8"),
    ("a.json", b"[\n" + LINE.replace(b'"p"', b'"\xe9"') + b"]", r"a\.json:2: not UTF-8"),
    ("a.csv", b"prompt,chosen,rejected\np,a,b\np,\xe9,b\n", r"a\.csv:3: not UTF-8"),
    ("a.jsonl", b'"text"\n[1]\nnull\n' + LINE, r":1: not a record(.|\n)*:3: not a record"),
    ("a.json", b"[\n" + LINE + b",\n]", r"a\.json:3: broken JSON: a comma before the closing"),
    ("a.json", b"[\n" + LINE + b"\n" + LINE + b"]", r"a\.json:3: broken JSON: expected a comma"),
    ("a.json", b"[\n" + LINE + b"\n", r"a\.json:3: broken JSON: expected a comma or ']'; found 'the end"),
    ("a.json", b'[\n{"prompt": "p",\n"chosen": }]', r"a\.json:3: broken JSON"),
    ("a.json", b"[" + LINE + b"]\n!", r"a\.json:2: broken JSON: something stands after the end"),
    ("a.json", b'{"data": [' + LINE + b'],\n"train": [' + LINE + b"]}", "two lists of records"),
    ("a.csv", b'prompt,chosen,rejected\np,a,b\np,"a,b\n', r"a\.csv:3: broken CSV: unexpected end of data"),
    ("a.csv", b"prompt,chosen,rejected\np,a,b\np,a\np,a,b,c\n", r":3: wrong number.*found 2(.|\n)*:4: .*found 4"),
    ("a.csv", b"prompt,chosen,chosen\np,a,b\n", "two of one name"),
    ("a.csv", b"prompt,chosen,rejected\n\"[{'role': 'user'}\n {'role': 'tool'}]\",a,b", "messages written as Python"),
    ("a.parquet", LINE, "is not parquet"),
    ("a.parquet", b"PAR1 and then nothing", r"a\.parquet: cannot be read"),
    ("a.arrow", b"\xff\xff\xff\xff and then nothing", r"a\.arrow: cannot be read"),
    ("a.jsonl.zst", b"\x28\xb5\x2f\xfd0000", "found 'Zstandard', expected plain or gzip"),
    ("a.xlsx", b"PK\x03\x04....", "a ZIP archive"),
    ("a.txt", b"hello", "unknown kind of file"),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["error", "skip"])
@pytest.mark.parametrize(("name", "data", "expected"), BROKEN)
def test_broken_files_end_with_one_clear_error(
    name: str, data: bytes, expected: str, mode: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=expected):
        list(read(tmp_path / name, on_bad_record=mode))


def test_all_faults_show_at_once_and_no_judgement_follows_them(tmp_path: Path) -> None:
    broken = [GOOD, "{", GOOD, '{"prompt": 1, "chosen": "a", "rejected": "b"}', *['{"chosen": "a"}'] * 40]
    given, reading = [], read(jsonl(tmp_path / "a.jsonl", *[GOOD, *broken[2:]]))
    with pytest.raises(InputErrors) as error:
        given.extend(reading)
    assert len(given) == 2
    assert len(error.value.errors) == 20
    assert [e.line for e in error.value.errors[:3]] == [3, 4, 5]
    assert str(error.value).endswith("... and 21 more.")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: (f / "data-00001-of-00002.arrow").unlink(), "a part is missing; expected data-00001-of-00002.arrow"),
        (lambda f: (f / "state.json").write_text('{"_data_files": []}'), "names no data file"),
        (lambda f: (f / "state.json").write_text("{"), "not JSON"),
        (lambda f: (f / "state.json").unlink(), "nothing to read in this folder"),
        (lambda f: (f / "state.json").write_text('{"_indices_data_files": [1]}'), "a view of another data set"),
    ],
)
def test_broken_folders(spoil: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    spoil(saved(tmp_path / "saved"))
    with pytest.raises(InputError, match=expected):
        read(tmp_path / "saved")


def test_missing_parts_and_unclear_splits(tmp_path: Path) -> None:
    shards(tmp_path / "a", "train", ROWS)
    (tmp_path / "a" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="found '1 parts', expected 2 parts"):
        read(tmp_path / "a")
    shards(tmp_path / "b", "test", ROWS)
    shards(tmp_path / "b", "validation", ROWS)
    with pytest.raises(InputError, match="several splits and none is `train`; found 'test, validation'"):
        read(tmp_path / "b")
    with pytest.raises(InputError, match=r"no such file; the nearest is 'pairs\.jsonl'"):
        read(jsonl(tmp_path / "pairs.jsonl", GOOD).with_name("pair.jsonl"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(
    values=st.lists(json_values, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.integers(1, 40),
    ascii=st.booleans(),
)
def test_the_scanner_reads_what_json_reads(values: list[Any], indent: int | None, chunk: int, ascii: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    scan = files._Scanner(Path("x"), Pieces(text, chunk))  # type: ignore[arg-type]
    scan.take("[", "a list")
    found = [scan.value() for _ in scan.items("]")]
    assert [value for _, value in found] == values
    assert scan.peek() == ""
    if indent is not None:
        at = 0
        for line, _ in found:  # every value starts where its line says
            assert line > at
            at = line


class Pieces:
    """A text stream that gives a few characters at a time, whatever is asked for."""

    def __init__(self, text: str, size: int) -> None:
        self.text, self.size = text, size

    def read(self, _: int) -> str:
        piece, self.text = self.text[: self.size], self.text[self.size :]
        return piece
