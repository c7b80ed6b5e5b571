"""Physical formats: which kind of file it is, and its records with the lines where they stand.

Knows: JSON lines, JSON documents, CSV, Parquet, Arrow, folders of `datasets`; gzip, byte-order marks, encodings.
Does not know: what a record means. Everything streams; a fault of one record does not stop the reading of the next, so
that all faults of a file show at once. What a file is, its first bytes say; its name is asked only where they are
silent.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from optative.core.errors import InputError, nearest
from optative.core.files import read_json
from optative.data.rows import BadMeaning, BadStructure, Row, broken_text, plain

Kind = Literal["jsonl", "json", "csv", "parquet", "arrow"]
Record = Row | BadStructure | BadMeaning

WRAPPERS = ("data", "rows", "records", "examples", "instances", "items", "train")
"""Keys under which a JSON document may hold its list of records."""

_CHUNK = 1 << 20
_BLANK = " \t\r\n\ufeff"  # what JSON calls blank, and the mark that joined files carry inside
_SHARD = re.compile(r"(?P<split>.+?)-(?P<n>\d{5})-of-(?P<of>\d{5})$")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_OTHER = ((b"\x28\xb5\x2f\xfd", "Zstandard"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"PK\x03\x04", "a ZIP archive"))


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder that can be read. `split` and `other_splits` tell which part of a data set was taken."""

    path: Path
    kind: Kind
    files: tuple[Path, ...]
    split: str | None = None
    other_splits: tuple[str, ...] = ()

    def rows(self) -> Iterator[Record]:
        """Every record, or the fault in its place. Raises InputError where no further record can be found."""
        readers: dict[str, Callable[[], Iterator[Record]]] = {
            "jsonl": lambda: _jsonl(self.files[0]),
            "json": lambda: _json_document(self.files[0]),
            "csv": lambda: _csv(self.files[0]),
            "parquet": lambda: _tables(self.path, _parquet_batches(self.files)),
            "arrow": lambda: _tables(self.path, _arrow_batches(self.files)),
        }
        with _readable(self.path):
            yield from readers[self.kind]()


def source(path: str | Path) -> Source:
    """Look at a path and say how it is to be read. Raises InputError if it is nothing that can be read."""
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise InputError("no such file" + (f"; the nearest is {near!r}" if near else ""), file=path)
    with _readable(path):
        kind = _kind(path)
    return Source(path, kind, (path,))


def _kind(path: Path) -> Kind:
    with open(path, "rb") as stream:
        head = stream.read(8)
    if not head:
        raise InputError("empty file", file=path, expected="records")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    for magic, name in _OTHER:
        if head.startswith(magic):
            raise InputError("compressed in a way that is not read", file=path, found=name, expected="plain or gzip")
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in (".parquet", ".arrow"):
        raise InputError(f"is not {suffix[1:]}, whatever its name says", file=path, found=head)
    start = ""
    with _text(path, errors="replace") as stream:
        while (piece := stream.read(_CHUNK)) and not (start := (start + piece).lstrip(_BLANK)):
            pass
        if not start:
            raise InputError("empty file", file=path, expected="records")
        if start[0] == "[":
            return "json"
        if start[0] != "{" and suffix not in (".json", ".jsonl", ".ndjson"):
            expected = "JSON lines, a JSON list, CSV, Parquet, Arrow, or a folder of `datasets`"
            raise InputError("unknown kind of file", file=path, found=start[:20], expected=expected)
        line = (start + (stream.readline() if "\n" not in start else "")).split("\n", 1)[0]
    return "jsonl" if _is_lines(line, suffix in (".jsonl", ".ndjson")) else "json"


def _is_lines(first: str, by_name: bool) -> bool:
    """Whether the first line is a whole record, and not (the start of) a document that holds the records."""
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return by_name
    if not isinstance(value, dict):
        return True
    return not any(key in WRAPPERS and isinstance(value[key], list) for key in value)


# Text files


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of the layers below into one that names the file."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        found = bytes(error.object[error.start : error.start + 8])
        message = f"not {error.encoding.upper()}: {error.reason}"
        raise BadStructure(message, file=path, line=_undecodable(path, error.encoding), found=found) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadStructure(f"the gzip data is damaged or cut short: {error}", file=path) from None
    except pa.ArrowException as error:
        raise BadStructure(f"cannot be read: {str(error).splitlines()[0]}", file=path) from None
    except OSError as error:
        raise InputError(error.strerror or str(error), file=path) from None


def _undecodable(path: Path, encoding: str) -> int | None:
    """The first line that is not UTF-8; looked for only after a decoder, which reads in chunks, has failed."""
    with _bytes(path) as stream:
        lines = enumerate(stream, 1) if encoding == "utf-8" else ()
        return next((number for number, line in lines if not _decodes(line)), None)


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _bytes(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as raw:
        if raw.read(2) == b"\x1f\x8b":
            raw.seek(0)
            with gzip.open(raw) as stream:
                yield stream  # type: ignore[misc]
        else:
            raw.seek(0)
            yield raw


def _encoding(stream: IO[bytes]) -> str:
    """The encoding that the first bytes tell: UTF-8, or UTF-16/32 by their mark or by the zeros of ASCII."""
    head = stream.read(4)
    stream.seek(0)
    return json.detect_encoding(head) if len(head) > 1 else "utf-8"


@contextmanager
def _text(path: Path, newline: str = "\n", errors: str = "strict") -> Iterator[IO[str]]:
    with _bytes(path) as stream, io.TextIOWrapper(stream, _encoding(stream), errors, newline) as text:
        yield text


def _lines(path: Path) -> Iterator[tuple[int, str | BadStructure]]:
    """Physical lines, ended by LF alone: U+2028, U+2029 and U+0085 are text."""
    with _bytes(path) as stream:
        encoding = _encoding(stream)
        if not encoding.startswith("utf-8"):
            with io.TextIOWrapper(stream, encoding, newline="\n") as text:
                yield from enumerate(text, 1)
            return
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = line[max(0, error.start - 12) : error.start + 12]
                yield number, BadStructure("not UTF-8", file=path, line=number, found=found, expected="UTF-8 text")


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if isinstance(line, BadStructure):
            yield line
        elif stripped := line.strip(_BLANK):
            try:
                value = _loads(stripped)
            except (ValueError, RecursionError) as error:
                fault = _broken_json(path, number, stripped, error)
                if stripped in ("{", "["):
                    raise fault from None  # every further line would be one
                yield fault
            else:
                yield _row(path, number, value)


def _broken_json(path: Path, line: int, text: str, error: Exception) -> BadStructure:
    if not isinstance(error, json.JSONDecodeError):
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        return BadStructure(f"broken JSON: {reason}", file=path, line=line)
    at = error.pos
    hint = None
    if text in ("{", "["):
        hint = "In a .jsonl file a record stands on one line; name the file .json if it is one document."
    elif "\r" in text:
        hint = "Lines that end in CR alone are not read; save the file with LF."
    elif error.msg == "Extra data":
        hint = "One record a line, without a comma after it."
    found = text[max(0, at - 20) : at + 20]
    return BadStructure(f"broken JSON at character {at + 1}: {error.msg}", file=path, line=line, found=found, hint=hint)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) != len(items):
        keys = [k for k, _ in items]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return value


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large for a number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _loads(text: str) -> Any:
    return _DECODER.decode(text)


def _row(path: Path, line: int, value: Any, *, textual: bool = False) -> Record:
    if not isinstance(value, dict):
        return BadStructure("not a record", file=path, line=line, found=value, expected="an object with named fields")
    try:
        cleaned = {str(k): plain(v) for k, v in value.items()}
    except UnicodeEncodeError:
        message = "not valid Unicode (half of a surrogate pair)"
        return BadMeaning("broken_text", message, file=path, line=line, field=broken_text(value))
    return Row(str(path), line, cleaned, textual)


class _Scanner:
    """Reads one JSON value after another from a stream that is longer than memory, and counts lines."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self.path, self._stream, self._text, self._at, self.line, self._ended = path, stream, "", 0, 1, False

    def _more(self) -> bool:
        piece = "" if self._ended else self._stream.read(max(_CHUNK, len(self._text)))
        self._ended = not piece
        if piece:  # places in the text hold until there is more of it
            self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            to = self._at
            while to < len(self._text) and self._text[to] in _BLANK:
                to += 1
            self._advance(to)
            if to < len(self._text):
                return self._text[to]
            if not self._more():
                return ""

    def take(self, character: str, what: str) -> None:
        if self.peek() != character:
            raise self.fault(f"expected {what}")
        self._at += 1

    def value(self) -> tuple[int, Any]:
        """The next value and the line where it starts."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # A value cut by the end of what was read so far looks like a fault near that end.
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - 64
                )
                if cut and self._more():
                    continue
                if not isinstance(error, json.JSONDecodeError):
                    raise _broken_json(self.path, self.line, "", error) from None
                line = self.line + self._text.count("\n", self._at, error.pos)
                found = self._text[max(0, error.pos - 20) : error.pos + 20]
                raise BadStructure(f"broken JSON: {error.msg}", file=self.path, line=line, found=found) from None
            if end > len(self._text) - 4 and self._more():
                continue  # a number may go on: `1`, then `.5` or `e+5`
            start = self.line
            self._advance(end)
            return start, value

    def fault(self, message: str) -> BadStructure:
        self.peek()
        found = self._text[self._at : self._at + 30] or "the end of the file"
        return BadStructure(f"broken JSON: {message}", file=self.path, line=self.line, found=found)

    def items(self, close: str) -> Iterator[None]:
        """Step through the members of a list or object whose opening bracket was taken."""
        if self.peek() == close:
            self._at += 1
            return
        while True:
            yield
            if self.peek() == close:
                self._at += 1
                return
            self.take(",", f"a comma or {close!r}")
            if self.peek() == close:
                raise self.fault("a comma before the closing bracket")


def _json_document(path: Path) -> Iterator[Record]:
    """The records of a list, of an object that wraps a list of them (`WRAPPERS`), or of one object."""
    with _text(path) as stream:
        scan = _Scanner(path, stream)
        if scan.peek() == "[":
            yield from _list(path, scan)
        else:
            line = scan.line
            scan.take("{", "a list or an object")
            rest: dict[str, Any] = {}
            wrapper = None
            for _ in scan.items("}"):
                at, key = scan.value()
                if not isinstance(key, str):
                    raise BadStructure("broken JSON: a key is no string", file=path, line=at, found=key)
                if key in rest or key == wrapper:
                    raise BadStructure(f"broken JSON: the key {key!r} stands twice in one object", file=path, line=at)
                scan.take(":", "a colon")
                if key in WRAPPERS and scan.peek() == "[":
                    if wrapper is not None:
                        message = f"two lists of records, {wrapper!r} and {key!r}"
                        raise BadStructure(message, file=path, line=at, hint="Put each into a file of its own.")
                    wrapper = key
                    yield from _list(path, scan)
                else:
                    rest[key] = scan.value()[1]
            if wrapper is None:
                yield _row(path, line, rest)
        if scan.peek():
            raise scan.fault("something stands after the end")


def _list(path: Path, scan: _Scanner) -> Iterator[Record]:
    scan.take("[", "a list")
    for _ in scan.items("]"):
        line, value = scan.value()
        yield _row(path, line, value)


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    with _text(path, newline="") as stream:
        first = stream.readline().lstrip("\ufeff")
        delimiter = "\t" if "\t" in first and "," not in first else ";" if ";" in first and "," not in first else ","
        stream.seek(0)
        reader = csv.reader(_without_mark(stream), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadStructure(f"broken CSV: {error}", file=path, line=line) from None
            if not cells:
                continue
            if header is None:
                header = [c.strip() for c in cells]
                if not all(header) or len(set(header)) != len(header):
                    raise BadStructure(
                        "a column without a name, or two of one name", file=path, line=line, found=header
                    )
            elif len(cells) == 1 and not cells[0].strip() and len(header) > 1:
                continue  # a line of blanks
            elif len(cells) != len(header):
                expected = f"{len(header)}, as in the first line"
                yield BadStructure("wrong number of cells", file=path, line=line, found=len(cells), expected=expected)
            else:
                yield _row(path, line, dict(zip(header, cells, strict=True)), textual=True)


def _without_mark(stream: IO[str]) -> Iterator[str]:
    for number, line in enumerate(stream):
        yield line if number else line.lstrip("\ufeff")


# Tables


def _tables(path: Path, batches: Iterable[Any]) -> Iterator[Record]:
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 512):
            for value in batch.slice(start, 512).to_pylist():
                row += 1
                yield _row(path, row, value)


def _parquet_batches(files: Iterable[Path]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for file in files:
        # A row group may be the whole file: read its columns through small buffers, not at once.
        with _readable(file), pq.ParquetFile(file, buffer_size=_CHUNK, pre_buffer=False) as parquet:
            yield from parquet.iter_batches(batch_size=1024, use_threads=False)


def _arrow_batches(files: Iterable[Path]) -> Iterator[Any]:
    import pyarrow as pa

    for file in files:
        with _readable(file), pa.memory_map(str(file)) as memory:
            if memory.read(6) == b"ARROW1":
                table = pa.ipc.open_file(memory)
                yield from (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                memory.seek(0)
                yield from pa.ipc.open_stream(memory)


# Folders


def _folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits", [])
        split, others = _choose(path, splits)
        inner = path / split
        if not (inner / "state.json").is_file():
            raise InputError("its dataset_dict.json names a split that is not there", file=path, found=split)
        return Source(path, "arrow", _saved(inner), split, others)
    if (path / "state.json").is_file():
        return Source(path, "arrow", _saved(path))
    for folder in (path, path / "data"):
        if files := sorted(folder.glob("*.parquet")):
            groups: dict[str, list[Path]] = {}
            for file in files:
                shard = _SHARD.match(file.stem)
                name = shard["split"] if shard else file.stem
                groups.setdefault(name if name in _SPLITS or shard else "", []).append(file)
            split, others = _choose(path, list(groups))
            chosen = groups[split]
            shard = _SHARD.match(chosen[0].stem)
            if shard and len(chosen) != int(shard["of"]):
                raise InputError(
                    "a part is missing", file=path, found=f"{len(chosen)} parts", expected=f"{int(shard['of'])} parts"
                )
            return Source(path, "parquet", tuple(chosen), split or None, others)
    expected = "a data set saved by `datasets` (state.json or dataset_dict.json) or Parquet files"
    raise InputError("nothing to read in this folder", file=path, expected=expected)


def _saved(folder: Path) -> tuple[Path, ...]:
    state = read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise InputError(
            "was saved as a view of another data set", file=folder, hint="Call flatten_indices() and save it again."
        )
    files = [folder / str(part["filename"]) for part in state.get("_data_files", [])]
    for file in files:
        if not file.is_file():
            raise InputError("a part is missing", file=folder, expected=file.name)
    if not files:
        raise InputError("names no data file", file=folder / "state.json")
    return tuple(files)


def _choose(path: Path, splits: list[str]) -> tuple[str, tuple[str, ...]]:
    """The only split, or `train`; the caller shows which were left out."""
    if len(splits) == 1 or "train" in splits:
        split = splits[0] if len(splits) == 1 else "train"
        return split, tuple(s for s in splits if s != split)
    raise InputError(
        "several splits and none is `train`",
        file=path,
        found=", ".join(splits),
        hint="Name the split's own folder or file.",
    )
