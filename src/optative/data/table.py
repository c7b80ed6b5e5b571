"""Judgements on disk: a million of them without a million Python objects.

Knows: Arrow files, the cache, random access. Does not know: formats (`readers` does), models.
A table is a folder `<cache>/<key>/` with `judgements.arrow` (line, id, the full record as JSON) and `table.json`
(format, counts, fingerprint). The key is made of the source's bytes and of everything that decides how they are read,
so that the same file is parsed once and a changed one never mistaken for it. Records are memory-mapped: only what is
asked for is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from optative.core.files import atomic_folder, read_json, write_json
from optative.core.ids import content_hash, file_hash
from optative.data.counts import Counts
from optative.data.files import Source, source
from optative.data.readers import Numbered, OnBadRecord, Reading, warn
from optative.data.records import Judgement

VERSION = 1  # of the table's layout and of how files are read; raised when either changes what a table holds
_BATCH = 1024
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class JudgementTable(Sequence[Judgement]):
    """The judgements of one file, in its order. `table[i]` is made when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        import pyarrow as pa

        facts = read_json(Path(folder) / "table.json")
        self.folder = Path(folder)
        self.format: str = facts["format"]
        self.fingerprint: str = facts["fingerprint"]
        self.columns: tuple[str, ...] = tuple(facts["columns"])
        self.split: str | None = facts["split"]
        self.counts = Counts.from_json(facts)
        self._memory = pa.memory_map(str(self.folder / "judgements.arrow"))
        reader = pa.ipc.open_file(self._memory)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._length = sum(batch.num_rows for batch in self._batches)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Judgement: ...
    @overload
    def __getitem__(self, index: slice) -> list[Judgement]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Judgement.from_json(json.loads(self._cell("record", index)))

    def __iter__(self) -> Iterator[Judgement]:
        return (self[i] for i in range(len(self)))

    def line(self, index: int) -> int:
        """Where the record of judgement `index` starts in the source: physical line, or row of a table."""
        return int(self._cell("line", index))

    def id(self, index: int) -> str:
        return str(self._cell("id", index))

    def _cell(self, column: str, index: int) -> Any:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._batches[index // _BATCH].column(column)[index % _BATCH].as_py()


def build_table(
    path: str | Path,
    cache: str | Path,
    *,
    format: str | None = None,
    on_bad_record: OnBadRecord = "error",
    score: str | None = None,
) -> JudgementTable:
    """Read a file of preferences (see `readers.read`) into a table below the folder `cache`, or open the one made
    before.

    Raises InputErrors for whatever is wrong with the file; no table appears then.
    """
    found = source(path)
    facts = {"version": VERSION, "format": format, "on_bad_record": on_bad_record, "score": score}
    key = content_hash(
        {**facts, "kind": found.kind, "split": found.split, "files": [file_hash(f) for f in found.files]}
    )
    folder = Path(cache) / key[:16]
    if (folder / "table.json").exists():
        table = JudgementTable(folder)
        warn(table.counts, Path(path))
        return table
    reading = Reading(path, format=format, on_bad_record=on_bad_record, score=score)
    with atomic_folder(folder) as temporary:
        _write(temporary / "judgements.arrow", reading)
        write_json(temporary / "table.json", _facts(reading, found))
    return JudgementTable(folder)


def _facts(reading: Reading, found: Source) -> dict[str, Any]:
    return {
        "format": reading.format,
        "fingerprint": reading.fingerprint,
        "columns": list(reading.columns),
        "split": found.split,
        **reading.counts.to_json(),
    }


def _write(path: Path, reading: Reading) -> None:
    import pyarrow as pa

    schema = pa.schema([("line", pa.int64()), ("id", pa.string()), ("record", pa.large_string())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        waiting: list[Numbered] = []

        def flush() -> None:
            records = [_encode(n.judgement.to_json()) for n in waiting]
            columns = [[n.line for n in waiting], [n.judgement.id for n in waiting], records]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            waiting.clear()

        for numbered in reading.numbered():
            waiting.append(numbered)
            if len(waiting) == _BATCH:
                flush()
        if waiting:
            flush()
