"""What is written down about a published system: its entry, its criteria, and the results that were measured here.

Knows: shapes. Does not know: which systems exist (`catalogue`), verdicts (`status`), how a study is run.

A system is a module of this folder with

    SYSTEM = System(criteria=(Criterion(...), ...), differs="...")
    class Study(StudyOptions): ...                             # the defaults are the quick study
    FULL = Study(seeds=(0, 1, 2), ...)                         # the study that the criteria are for
    def run(study: Study, folder: Path) -> dict[str, Any]: ... # `runs.study.study`; heavy imports inside

Its results are package data, `results/<number>-<name>[-large].json`, written from a study (`optative systems record`)
and never by hand:

    {"system": 26, "criteria": "<hash>", "scale": "small" | "large", "command": "optative systems run 26 --full",
     "hardware": {...}, "versions": {...},
     "results": [{"seed": 0, "arm": "...", "metric": "...", "value": 0.1, "interval": [0.0, 0.2] | null}, ...]}
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optative.core.config import Config, Field, parse
from optative.core.errors import InputError
from optative.core.files import read_json, write_text
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
class Bound:
    """`metric` of `arm` is at least, or at most, `limit` in each of `seeds` or more seeds."""

    metric: str
    arm: str
    direction: Literal["at_least", "at_most"]
    limit: float
    seeds: int

    def __post_init__(self) -> None:
        assert self.direction in ("at_least", "at_most"), f"{self.metric}: direction {self.direction!r}"
        assert self.seeds >= 1, f"{self.metric}: no seeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """`metric` of the largest and of the smallest of `arms` differ by `at_most` in each of `seeds` or more seeds."""

    metric: str
    arms: tuple[str, ...]
    at_most: float
    seeds: int

    def __post_init__(self) -> None:
        assert len(set(self.arms)) >= 2, f"{self.metric}: one arm has no spread"
        assert self.at_most >= 0, f"{self.metric}: no spread is negative"
        assert self.seeds >= 1, f"{self.metric}: no seeds"


AnyCriterion = Criterion | Bound | Spread


def higher(metric: str, arm: str, baseline: str, effect: float, seeds: int = 3) -> Criterion:
    """`metric` of `arm` is above that of `baseline` by `effect` or more."""
    return Criterion(metric=metric, arm=arm, baseline=baseline, smallest_effect=effect, direction="higher", seeds=seeds)


def lower(metric: str, arm: str, baseline: str, effect: float, seeds: int = 3) -> Criterion:
    """`metric` of `arm` is below that of `baseline` by `effect` or more."""
    return Criterion(metric=metric, arm=arm, baseline=baseline, smallest_effect=effect, direction="lower", seeds=seeds)


def at_least(metric: str, arm: str, limit: float, seeds: int = 3) -> Bound:
    return Bound(metric=metric, arm=arm, direction="at_least", limit=limit, seeds=seeds)


def at_most(metric: str, arm: str, limit: float, seeds: int = 3) -> Bound:
    return Bound(metric=metric, arm=arm, direction="at_most", limit=limit, seeds=seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What a system's module declares: what must hold, and how the study here differs from the published one.

    `explanation`: the best one there is for a criterion that was not met; shown beside a negative verdict.
    """

    criteria: tuple[AnyCriterion, ...]
    differs: str
    explanation: str = ""

    def __post_init__(self) -> None:
        assert self.criteria, "a system without a criterion could not fail"

    @property
    def hash(self) -> str:
        """Identity of the criteria: results that answer others are stale."""
        return content_hash([asdict(criterion) for criterion in self.criteria])


class StudyOptions(Config):
    """What every study of a system can be told."""

    seeds: tuple[int, ...] = Field((0,), description="One cell an arm and seed; arms are paired inside a seed.")


def with_settings(study: StudyOptions, settings: Sequence[str]) -> StudyOptions:
    """The study with options changed by `name=value` (YAML values); InputError for what its options do not allow."""
    import yaml

    changed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InputError("not a setting", field="--set", found=setting, expected="name=value")
        if name in changed:
            raise InputError("is set twice", field=f"--set {name}")
        try:
            changed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError("the value is not YAML", field=f"--set {name}", found=value) from None
    return parse(type(study), {**study.model_dump(), **changed}, at="--set") if changed else study


def command(number: int, study: StudyOptions, full: StudyOptions) -> str:
    """The command line of a study: its nearer form, quick or full, and the options that differ from that."""
    own = study.model_dump(mode="json")
    changed: dict[str, Any] = {}
    flag = ""
    for form, named in ((type(study)(), ""), (full, " --full")):
        given = form.model_dump(mode="json")
        differing = {name: value for name, value in own.items() if value != given[name]}
        if not named or len(differing) < len(changed):
            changed, flag = differing, named
    words = [f"--seeds {','.join(map(str, changed.pop('seeds')))}"] if "seeds" in changed else []
    words += [f"--set {shlex.quote(f'{name}={_yaml(value)}')}" for name, value in changed.items()]
    return " ".join([f"optative systems run {number}{flag}", *words])


def full_study(number: int, given: str, full: StudyOptions) -> bool:
    """Is a recorded command that of the full study, with at most the user's own files (options of type Path) named?"""
    asked = command(number, full, full)
    if not given.startswith(asked):
        return False
    words = shlex.split(given.removeprefix(asked))
    settings = [word for word in words if word != "--set"]
    files = {name for name, about in type(full).model_fields.items() if about.annotation == Path | None}
    return all(setting.partition("=")[0] in files for setting in settings)


def _yaml(value: Any) -> str:
    """A JSON value as `--set` reads it back; text without marks where that is the same."""
    import yaml

    if isinstance(value, str):
        try:
            if value and yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value)


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
    return Results(
        path.name,
        raw["criteria"],
        raw["scale"],
        raw["command"],
        raw["hardware"],
        raw["versions"],
        _values(raw["results"], path),
    )


def results_of(study: Mapping[str, Any], scale: str = "small") -> Results:
    """The figures of a study (`study.json`), to be judged before they are recorded, or instead."""
    own = ("criteria", "command", "hardware", "versions")
    criteria, command, hardware, versions = (study[name] for name in own)
    return Results("this study", criteria, scale, command, hardware, versions, _values(study["levels"], "study.json"))


def keep(entry: Entry, system: System, study: Mapping[str, Any], scale: str = "small", folder: Path = RESULTS) -> Path:
    """Write the figures of a study to the system's results file, in place of what it held."""
    if study["criteria"] != system.hash:
        raise InputError("the study answers other criteria; run it again", file="study.json", field="criteria")
    path = folder / f"{entry.number:02d}-{entry.name}{'-large' if scale == 'large' else ''}.json"
    rows = [{name: row[name] for name in ("seed", "arm", "metric", "value", "interval")} for row in study["levels"]]
    facts = {name: study[name] for name in ("criteria", "command", "hardware", "versions")}
    head = json.dumps({"system": entry.number, "scale": scale, **facts}, indent=2, allow_nan=False)
    lines = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in rows)  # one a line, for people and diffs
    write_text(path, f'{head[:-2]},\n  "results": [\n{lines}\n  ]\n}}\n')
    return path


def _values(rows: Iterable[Mapping[str, Any]], file: Any) -> dict[tuple[str, str], dict[int, float]]:
    values: dict[tuple[str, str], dict[int, float]] = {}
    for index, row in enumerate(rows):
        seeds = values.setdefault((row["metric"], row["arm"]), {})
        if row["seed"] in seeds:
            raise InputError("the same seed twice", file=file, field=f"results.{index}.seed", found=row["seed"])
        if not isinstance(row["value"], (int, float)) or not math.isfinite(row["value"]):
            raise InputError("not a number", file=file, field=f"results.{index}.value", found=row["value"])
        seeds[row["seed"]] = float(row["value"])
    return values
