"""Files that are whole or absent, journals that can be cut back, and one lock.

Knows: the file system. Does not know: what is written.
Atomic: written beside the target, flushed to disk, then renamed. A journal is JSON lines with one writer; on resume it
is truncated to a known offset, so that no line is doubled or missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from optative.core.errors import InputError


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically; readers see the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """JSON without NaN: a number that does not exist is null, and the caller has to say so."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", file=path, line=error.lineno) from None


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends well; an older one is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():
                os.chmod(file, 0o666 & ~_umask())
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        old = None
        if path.exists():
            old = path.parent / f".{path.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(temporary, path)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """The records of a JSON-lines file that optative wrote (for users' files see `data.readers`)."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"not JSON: {error.msg}", file=path, line=number) from None


class Journal:
    """An append-only JSON-lines file with one writer. `offset` is what a checkpoint stores to cut back to."""

    def __init__(self, path: str | Path, offset: int | None = None) -> None:
        """Open for appending; with `offset`, first cut the file back to that many bytes."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: IO[bytes] = open(self.path, "ab")  # noqa: SIM115  (closed by `close`)
        if offset is not None:
            if self._stream.tell() < offset:
                raise InputError("shorter than its checkpoint says; it was changed by hand", file=self.path)
            self._stream.truncate(offset)
            self._stream.seek(offset)

    @property
    def offset(self) -> int:
        """Bytes that are safely on disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def append(self, record: Any) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        self._stream.write(line.encode("utf-8", "surrogatepass"))
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def lock(path: str | Path, busy: str) -> Iterator[None]:
    """Hold `path` with flock until the block ends; `busy` is the error when another process holds it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(busy, file=path) from None
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
