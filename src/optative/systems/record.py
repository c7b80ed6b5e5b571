"""What is written down about a published system: its entry, its criteria, and the results that were measured here.

Knows: shapes. Does not know: which systems exist (`catalogue`), verdicts (`status`), how a study is run.

A system is a module of this folder with

    SYSTEM = System(criteria=(Criterion(...), ...), differs="...")
    class Study(Config): ...                 # its options; the defaults are the quick study
    def run(study: Study, folder: Path): ... # heavy imports inside

Its results are package data, `results/<number>-<name>[-large].json`, written from a run and never by hand:

    {"system": 26, "criteria": "<hash>", "scale": "small" | "large", "command": "optative systems run 26",
     "hardware": {...}, "versions": {...}, "results": [{"seed": 0, "arm": "...", "metric": "...", "value": 0.1}, ...]}
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optative.core.errors import InputError
from optative.core.files import read_json
from optative.core.ids import content_hash

RESULTS = Path(__file__).parent / "results"
SCALES = ("small", "large")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue. `module`: dotted name of the implementation, or None."""

    number: int
    name: str
    title: str
    citation: str
    claim: str
    module: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """`arm` must differ from `baseline` on `metric` by `smallest_effect` or more, over `seeds` or more paired seeds."""

    metric: str
    arm: str
    baseline: str
    smallest_effect: float
    direction: Literal["higher", "lower"]
    seeds: int

    def __post_init__(self) -> None:
        assert self.smallest_effect > 0, f"{self.metric}: an effect of zero cannot be told from none"
        assert self.direction in ("higher", "lower"), f"{self.metric}: direction {self.direction!r}"
        assert self.seeds >= 1, f"{self.metric}: no seeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What a system's module declares: what must hold, and how the study here differs from the published one.

    `explanation`: the best one there is for a criterion that was not met; shown beside a negative verdict.
    """

    criteria: tuple[Criterion, ...]
    differs: str
    explanation: str = ""

    def __post_init__(self) -> None:
        assert self.criteria, "a system without a criterion could not fail"

    @property
    def hash(self) -> str:
        """Identity of the criteria: results that answer others are stale."""
        return content_hash([asdict(criterion) for criterion in self.criteria])


@dataclass(frozen=True, slots=True)
class Results:
    """One results file. `values`: (metric, arm) -> seed -> value."""

    file: str
    criteria: str
    scale: str
    command: str
    hardware: dict[str, Any]
    versions: dict[str, Any]
    values: dict[tuple[str, str], dict[int, float]]


def read_results(entry: Entry, folder: Path = RESULTS) -> list[Results]:
    """The recorded results of a system, current or stale; a file that is not as described above is an error."""
    return [_read(entry, path) for path in sorted(folder.glob(f"{entry.number:02d}-*.json"))]


def _read(entry: Entry, path: Path) -> Results:
    raw = read_json(path)
    fields = {"system", "criteria", "scale", "command", "hardware", "versions", "results"}
    if not isinstance(raw, dict) or set(raw) != fields:
        raise InputError("not a results file", file=path, found=sorted(raw), expected=f"the fields {sorted(fields)}")
    if raw["system"] != entry.number:
        raise InputError(
            "results of another system", file=path, field="system", found=raw["system"], expected=str(entry.number)
        )
    if raw["scale"] not in SCALES:
        raise InputError("unknown scale", file=path, field="scale", found=raw["scale"], expected=" or ".join(SCALES))
    values: dict[tuple[str, str], dict[int, float]] = {}
    for index, row in enumerate(raw["results"]):
        seeds = values.setdefault((row["metric"], row["arm"]), {})
        if row["seed"] in seeds:
            raise InputError("the same seed twice", file=path, field=f"results.{index}.seed", found=row["seed"])
        if not isinstance(row["value"], (int, float)) or not math.isfinite(row["value"]):
            raise InputError("not a number", file=path, field=f"results.{index}.value", found=row["value"])
        seeds[row["seed"]] = float(row["value"])
    return Results(path.name, raw["criteria"], raw["scale"], raw["command"], raw["hardware"], raw["versions"], values)
