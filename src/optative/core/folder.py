"""The layout of a run folder, and who may write into it.

Knows: names of files, the lock, whether an older run in the folder is the same. Does not know: what the files mean.
The same spec on an existing folder resumes; a different one is refused with the difference shown.

Several processes at one run: rank 0 holds the lock and the folder. Every other rank works in a copy of what rank 0
found, `.ranks/N`, so that all of them skip the same cached stages, and removes it at the end; metrics and checkpoints,
which rank 0 alone writes, it reads where they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from optative.core.errors import InputError
from optative.core.files import lock, read_json, write_json, write_text
from optative.core.ids import content_hash

RANKS = ".ranks"
NOT_COPIED = (".lock", RANKS, "metrics.jsonl", "checkpoints", "adapter", "model")


class Peers(Protocol):
    """The processes of one run: which one this is, and waiting for the others."""

    @property
    def rank(self) -> int: ...

    def wait(self) -> None: ...


class RunFolder:
    """Paths of one run. Nothing is created before `claim`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spec = self.path / "spec.yaml"
        self.resolved = self.path / "resolved.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.stages = self.path / "stages"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.evaluation = self.path / "evaluation.json"
        self.samples = self.path / "samples.jsonl"
        self.report = self.path / "report.html"
        self.card = self.path / "README.md"

    @contextmanager
    def claim(
        self, options: Mapping[str, Any], spec_text: str, *, fresh: bool = False, peers: Peers | None = None
    ) -> Iterator[bool]:
        """Lock the folder for this run; yields True when an earlier attempt at the same run is resumed.

        options: everything that decides the result, as plain JSON. fresh: throw an earlier run of this folder away.
        peers: the processes at this run, each of which calls this; by default one.
        """
        if peers is not None and peers.rank:
            peers.wait()  # until rank 0 holds the folder
            with self._copy(peers) as resumed:
                yield resumed
            return
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file, expected a folder for the run", file=self.path)
        if self.path.is_dir() and not self.resolved.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise InputError("is not empty and holds no run; name another folder", file=self.path)
        with lock(
            self.path / ".lock",
            "another process is at work in this run folder; wait for it, or name another with --out",
        ):
            if fresh:
                for entry in self.path.iterdir():
                    if entry.name != ".lock":
                        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            resumed = self.resolved.exists() and self._has_results()
            if resumed:
                older = read_json(self.resolved)["options"]
                if content_hash(older) != content_hash(options):
                    lines = difference(older, options)
                    raise InputError(
                        "holds a run of another spec; it is left as it was.\n  " + "\n  ".join(lines),
                        file=self.path,
                        hint="Name another folder with --out, or throw the old run away with --fresh.",
                    )
            else:
                write_text(self.spec, spec_text)
                write_json(self.resolved, {"options": dict(options)})
            if peers is not None:
                shutil.rmtree(self.path / RANKS, ignore_errors=True)
                peers.wait()
                peers.wait()  # until all have their copy
            yield resumed

    @contextmanager
    def _copy(self, peers: Peers) -> Iterator[bool]:
        """Inside, all paths but those of metrics and checkpoints are those of this rank's copy."""
        shared, resumed = dict(vars(self)), self._has_results()
        own = RunFolder(self.path / RANKS / str(peers.rank))
        shutil.copytree(self.path, own.path, ignore=shutil.ignore_patterns(*NOT_COPIED))
        own.metrics, own.checkpoints = self.metrics, self.checkpoints
        peers.wait()
        vars(self).update(vars(own))
        yield resumed
        vars(self).update(shared)
        shutil.rmtree(own.path)
        with suppress(OSError):  # another rank is still at work
            own.path.parent.rmdir()

    def _has_results(self) -> bool:
        """Whether there is something to resume, or to lose: a spec alone, of a run that failed at once, is nothing."""
        found = [self.metrics, self.evaluation, *(self.stages.iterdir() if self.stages.is_dir() else ())]
        return any(path.is_file() for path in found)


def difference(old: Any, new: Any, at: str = "") -> list[str]:
    """Lines `a.b.c: old -> new` for each leaf that differs.

    >>> difference({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})
    ['a.b: 1 -> 2', 'a.c: absent -> 3']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in [*old, *(k for k in new if k not in old)]:
            path = f"{at}.{key}" if at else str(key)
            if key not in new:
                lines.append(f"{path}: {old[key]!r} -> absent")
            elif key not in old:
                lines.append(f"{path}: absent -> {new[key]!r}")
            else:
                lines += difference(old[key], new[key], path)
        return lines
    return [] if content_hash(old) == content_hash(new) else [f"{at}: {old!r} -> {new!r}"]
