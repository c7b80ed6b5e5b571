"""Write judgements: as pairs that every trainer reads, or as full records that lose nothing.

Knows: JSON lines (plain or gz) and Parquet, told by the file's name. Does not know: where judgements come from.
Files are whole or absent. In Parquet `meta`, `aspects` and `relation` are JSON text, because a table gives every row
the keys of all rows.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from optative.core.errors import InputError
from optative.data.records import BothBad, Incomparable, Judgement, pairs, ties

_BATCH = 1024
_AS_TEXT = ("meta", "aspects", "relation")


@dataclass
class Written:
    """What was written, and what pairs cannot hold: `without_pair` judgements have no strict preference in them."""

    rows: int = 0
    ties: int = 0
    both_bad: int = 0
    incomparable: int = 0
    without_pair: int = 0


def write_pairs(path: str | Path, judgements: Iterable[Judgement]) -> Written:
    """The strict pairs as rows of `prompt`, `chosen`, `rejected`, and the fields that are known beside them.

    Ties, both_bad and incomparable give no row; they are counted in what is returned. Raises InputError for a file name
    that tells no format and for texts that one Parquet column cannot hold.
    """
    written = Written()
    _write(Path(path), _pair_rows(judgements, written))
    return written


def write_judgements(path: str | Path, judgements: Iterable[Judgement]) -> Written:
    """Full records, one a row; `readers.read` gives equal judgements back."""
    written = Written()

    def rows() -> Iterator[dict[str, Any]]:
        for judgement in judgements:
            written.rows += 1
            yield judgement.to_json()

    _write(Path(path), rows())
    return written


def _pair_rows(judgements: Iterable[Judgement], written: Written) -> Iterator[dict[str, Any]]:
    for judgement in judgements:
        written.ties += ties(judgement)
        written.both_bad += isinstance(judgement.relation, BothBad)
        written.incomparable += isinstance(judgement.relation, Incomparable)
        strict = pairs(judgement)
        written.without_pair += not strict
        for pair in strict:
            written.rows += 1
            row = {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            beside = {
                "strength": pair.strength,
                "confidence": pair.confidence,
                "rationale": judgement.rationale,
                "annotator": judgement.annotator,
                "source": judgement.source,
                "shown_first": _shown_first(judgement, pair.chosen),
                "seconds": judgement.seconds,
                "aspects": judgement.aspects,
                "meta": judgement.meta or None,
            }
            yield row | {k: v for k, v in beside.items() if v is not None}


def _shown_first(judgement: Judgement, chosen: Any) -> int | None:
    """0 if the chosen answer was shown first, 1 if the rejected one was; unknown where more than two were shown."""
    if judgement.shown_first is None or len(judgement.completions) != 2:
        return None
    return int(judgement.completions[judgement.shown_first] != chosen)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        with _atomic(path) as stream:
            if name.endswith(".gz"):
                # No time and no name inside: equal content gives equal bytes.
                with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed:
                    packed.writelines(_line(row) for row in rows)
            else:
                stream.writelines(_line(row) for row in rows)
    elif name.endswith(".parquet"):
        _write_parquet(path, rows)
    else:
        raise InputError("unknown kind of file", file=path, expected="a name ending in .jsonl, .jsonl.gz or .parquet")


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Two passes over a spool, because the columns of a table are known only after the last row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with tempfile.TemporaryFile(dir=_folder(path)) as spool:
            schema = pa.schema([])
            for batch in _batches(_as_cells(row) for row in rows):
                spool.writelines(_line(row) for row in batch)
                schema = pa.unify_schemas([schema, _columns(batch)], promote_options="permissive")
            spool.seek(0)
            schema = pa.schema([pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in schema])
            with _atomic(path) as stream, pq.ParquetWriter(stream, schema) as writer:
                for batch in _batches(json.loads(line) for line in spool):
                    writer.write_table(pa.Table.from_pylist(batch, schema))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        message = f"does not fit one Parquet table: {str(error).splitlines()[0]}"
        hint = "Strings and messages cannot share a column; a .jsonl file holds both."
        raise InputError(message, file=path, hint=hint) from None


def _columns(batch: list[dict[str, Any]]) -> Any:
    """The schema of a batch. Arrow takes the columns of its first row for all; rows may differ here."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in batch for name in row)
    return pa.schema([pa.field(name, pa.array([row.get(name) for row in batch]).type) for name in names])


def _as_cells(row: dict[str, Any]) -> dict[str, Any]:
    text = {
        k: json.dumps(row[k], ensure_ascii=False, allow_nan=False) for k in _AS_TEXT if isinstance(row.get(k), dict)
    }
    return row | text


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose file appears under its name only when the block ends well."""
    handle, temporary = tempfile.mkstemp(dir=_folder(path), prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.umask(mask := os.umask(0))
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
