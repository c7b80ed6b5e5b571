"""Stages of a run: each is cached under the hash of what it reads, and redone whole in units when it was cut off.

Knows: keys, files under `stages/`, wall times. Does not know: what a stage computes.
A stage of rows is a journal with one line a chunk; a line that was cut off by a crash is dropped and its chunk redone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optative.core.events import Events
from optative.core.files import Journal, read_json, write_json
from optative.core.ids import content_hash
from optative.core.memory import release

Chunk = TypeVar("Chunk")


class Stages:
    """The stages of one run folder. `environment`: facts that move numbers (dtype, device kind, threads, versions)."""

    def __init__(self, folder: Path, environment: Mapping[str, Any], events: Events) -> None:
        self.folder, self.environment, self.events = folder, dict(environment), events
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, name: str, version: int, inputs: Any) -> str:
        """`name-<hash>`: raise `version` when a change of code moves the stage's numbers."""
        return f"{name}-{content_hash([name, version, inputs, self.environment])[:12]}"

    def rows(
        self,
        key: str,
        chunks: Sequence[Chunk],
        compute: Callable[[Chunk, Callable[[int, int], None]], list[Any]],
        words: str,
        size: Callable[[Chunk], int],
    ) -> list[Any]:
        """All rows of a stage. `compute(chunk, progress)` gives the rows of a chunk, `size(chunk)` counts its work."""
        path = self.folder / f"{key}.jsonl"
        done, offset = _whole_lines(path)
        if len(done) < len(chunks):
            seconds = self._seconds(key)
            total = sum(map(size, chunks))
            with Journal(path, offset) as journal, self.events.progress(words) as advance:
                before = sum(size(chunk) for chunk in chunks[: len(done)])
                for chunk in chunks[len(done) :]:
                    started = time.perf_counter()
                    at = before
                    rows = compute(chunk, lambda n, _, at=at: advance(at + n, total, ""))  # type: ignore[misc]
                    before += size(chunk)
                    journal.append(rows)
                    assert journal.offset  # flushed to disk before the chunk counts as done
                    done.append(rows)
                    seconds += time.perf_counter() - started
                    write_json(self.folder / f"{key}.time.json", {"seconds": seconds})
                    advance(before, total, "")
                    release()
        return [row for rows in done for row in rows]

    def value(self, key: str, compute: Callable[[], Any]) -> Any:
        """One JSON value, computed once."""
        path = self.folder / f"{key}.json"
        if not path.exists():
            started = time.perf_counter()
            write_json(path, compute(), indent=None)
            write_json(self.folder / f"{key}.time.json", {"seconds": time.perf_counter() - started})
        return read_json(path)

    def add_seconds(self, key: str, seconds: float) -> None:
        write_json(self.folder / f"{key}.time.json", {"seconds": self._seconds(key) + seconds})

    def wall_seconds(self, keys: Iterable[str]) -> dict[str, float]:
        """Seconds that each stage took over all attempts, by its name without the hash."""
        return {key.rpartition("-")[0]: round(self._seconds(key), 2) for key in keys}

    def _seconds(self, key: str) -> float:
        path = self.folder / f"{key}.time.json"
        return float(read_json(path)["seconds"]) if path.exists() else 0.0


def chunked(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _whole_lines(path: Path) -> tuple[list[list[Any]], int]:
    """The chunks that are whole, and the offset behind the last of them."""
    done: list[list[Any]] = []
    offset = 0
    if path.exists():
        with open(path, "rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                done.append(json.loads(line))
                offset += len(line)
    return done, offset
