"""Studies: arms x seeds, a cell at a time, one paired table.

Knows: keys, cells on disk, pairing inside a seed, the folder. Does not know: what a cell computes, what would be a
success (`systems`). A cell is one arm at one seed: deterministic, at most about 20 minutes, redone whole when it was
cut off. Its key is its content (study, version, options, seed, what moves numbers here), so that the same command goes
on after any interruption, and more seeds or arms on the same folder only add cells. Seeds come one after the other,
each with all arms, so that a study that is not complete yet holds whole pairs.

Arms are compared inside each seed, over the items that both measured; over seeds there is the sign in each and the
mean, never an interval: three seeds carry none.

    plan.json     what was asked for           cells/    one result a cell
    study.json    raw results and the table    report.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from optative.core import stats
from optative.core.errors import InputError
from optative.core.events import Events, default_events
from optative.core.files import lock, read_json, write_json, write_text
from optative.evaluation.independence import Independence
from optative.evaluation.report.study import study_page
from optative.runs.environment import hardware, moving_facts, versions
from optative.runs.stages import Stages

Numbers = float | Sequence[float]
SIGNS = {1: "higher", -1: "lower", 0: "equal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One column of the table. `options`: plain JSON, with the seed all that decides its cells.

    `baseline`: the arm that it is compared with. `panel`: arms of one panel share their plots.
    """

    options: Mapping[str, Any]
    baseline: str | None = None
    panel: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure of the cells is read: who judged it, and the ends of its scale where it has some."""

    judged: Independence
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What one cell found.

    `values`: metric -> one number, or one number an item; item i is the same in all arms of a seed. `clusters`: metric
    -> what item i belongs to, where items share a source. `curves`: name -> (steps, values).
    """

    values: Mapping[str, Numbers]
    clusters: Mapping[str, Sequence[Hashable]] = field(default_factory=dict)
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


def study(
    folder: str | Path,
    *,
    name: str,
    title: str,
    command: str,
    version: int,
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    metrics: Mapping[str, Metric],
    cell: Callable[[Mapping[str, Any], int], Measured],
    criteria: str | None = None,
    notes: Sequence[str] = (),
    events: Events | None = None,
) -> dict[str, Any]:
    """Compute the cells that `folder` lacks and write `study.json` and `report.html`; returns what `study.json` holds.

    `version`: raised when a change of code moves the cells' numbers. `command`: what makes the same study again.
    `criteria`: hash of what the results have to answer. `notes`: sentences on top of the report.
    """
    events = default_events() if events is None else events
    path = Path(folder)
    _check(arms, seeds)
    plan = {"name": name, "version": version, "arms": {a: dict(arm.options) for a, arm in arms.items()}}
    _same_study(path, name)
    with lock(path / ".lock", "another process is at work in this study; wait for it, or name another with --out"):
        write_json(path / "plan.json", {**plan, "seeds": list(seeds), "command": command})
        started = datetime.now(UTC).isoformat(timespec="seconds")
        environment = {**moving_facts("chosen by the cell", "cpu"), "numpy": version_of("numpy")}
        stages = Stages(path / "cells", environment, events)
        for torn in stages.folder.glob(".*.part"):  # of a process that was killed
            torn.unlink()
        todo = [(a, seed, stages.key(name, version, [dict(arms[a].options), seed])) for seed in seeds for a in arms]
        cells = []
        with events.progress(title) as advance:
            for done, (arm, seed, key) in enumerate(todo):
                advance(done, len(todo), f"{arm}, seed {seed}")
                found = stages.value(key, partial(_cell, cell, arms[arm], arm, seed, metrics))
                seconds = stages.wall_seconds([key])[name]
                cells.append({"arm": arm, "seed": seed, "key": key, "seconds": seconds, **found})
            advance(len(todo), len(todo), "")
        result = {
            **plan,
            "arms": {
                a: {"options": dict(arm.options), "baseline": arm.baseline, "panel": arm.panel}
                for a, arm in arms.items()
            },
            "title": title,
            "command": command,
            "criteria": criteria,
            "notes": list(notes),
            "seeds": list(seeds),
            "metrics": {
                m: {"judged": metric.judged, "bounds": metric.bounds and list(metric.bounds)}
                for m, metric in metrics.items()
            },
            "started": started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "versions": versions(),
            "levels": levels(cells, metrics),
            "table": paired_table(cells, arms, metrics),
            "cells": cells,
        }
        write_json(path / "study.json", result)
        result = read_json(path / "study.json")
        write_text(path / "report.html", study_page(result))
    return result


def levels(cells: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Each metric of each cell on its own: the mean over its `n` items with its interval."""
    rows = []
    for metric, about in metrics.items():
        for one in cells:
            if metric in one["values"]:
                found = stats.mean(_items(one, metric), clusters=one["clusters"].get(metric), bounds=about.bounds)
                shown = {"value": found.value, "interval": _interval(one, metric, found)}
                rows.append({"metric": metric, "arm": one["arm"], "seed": one["seed"], **shown, "n": found.n})
    return rows


def paired_table(
    cells: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm], metrics: Mapping[str, Metric]
) -> list[dict[str, Any]]:
    """One row a metric and an arm with a baseline: inside each seed the paired difference and its interval.

    `sign` is `higher`, `lower` or `equal` where all seeds agree, else `mixed`; `mean` is that of the differences.
    """
    at = {(one["arm"], one["seed"]): one for one in cells}
    rows = []
    for metric, about in metrics.items():
        for name, arm in arms.items():
            both = [
                (seed, at[arm.baseline, seed], own)
                for (which, seed), own in at.items()
                if which == name and arm.baseline is not None and (arm.baseline, seed) in at
            ]
            found = [
                _difference(seed, base, own, metric, about)
                for seed, base, own in both
                if metric in own["values"] and metric in base["values"]
            ]
            if found:
                signs = {(row["difference"] > 0) - (row["difference"] < 0) for row in found}
                rows.append(
                    {
                        "metric": metric,
                        "arm": name,
                        "baseline": arm.baseline,
                        "mean": sum(row["difference"] for row in found) / len(found),
                        "sign": SIGNS[signs.pop()] if len(signs) == 1 else "mixed",
                        "seeds": found,
                    }
                )
    return rows


def _difference(
    seed: int, base: Mapping[str, Any], own: Mapping[str, Any], metric: str, about: Metric
) -> dict[str, Any]:
    clusters = own["clusters"].get(metric)
    if base["clusters"].get(metric) != clusters or len(_items(base, metric)) != len(_items(own, metric)):
        raise ValueError(f"{metric}: {own['arm']} and {base['arm']} did not measure the same items with seed {seed}")
    found = stats.paired_difference(_items(base, metric), _items(own, metric), clusters=clusters, bounds=about.bounds)
    return {
        "seed": seed,
        "base": found.base,
        "value": found.other,
        "difference": found.difference,
        "interval": _interval(own, metric, found),
        "n": found.n,
        "clusters": found.clusters,
    }


def _cell(
    compute: Callable[[Mapping[str, Any], int], Measured],
    arm: Arm,
    name: str,
    seed: int,
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    """One cell as JSON; a figure that is not declared or not a number is the study's fault, told before it is kept."""
    found = compute(arm.options, seed)
    if unknown := [metric for metric in found.values if metric not in metrics]:
        raise ValueError(f"{name}, seed {seed}: the study declares no metric {unknown[0]!r}")
    values = {metric: _plain(given) for metric, given in found.values.items()}
    for metric, given in values.items():
        numbers = given if isinstance(given, list) else [given]
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name}, seed {seed}: {metric} is not a number everywhere: {numbers[:5]}")
    return {
        "values": values,
        "clusters": {metric: list(given) for metric, given in found.clusters.items()},
        "curves": {curve: [_plain(steps), _plain(values)] for curve, (steps, values) in found.curves.items()},
    }


def _plain(given: Any) -> Any:
    """A number as a float, anything longer as a list of floats."""
    return [float(number) for number in given] if hasattr(given, "__len__") else float(given)


def _items(one: Mapping[str, Any], metric: str) -> list[float]:
    given = one["values"][metric]
    return given if isinstance(given, list) else [given]


def _interval(
    one: Mapping[str, Any], metric: str, found: stats.Estimate | stats.Difference
) -> list[float | None] | None:
    """Over items; a single number has no items, so that nothing says how far it may be off."""
    return found.interval.to_list() if isinstance(one["values"][metric], list) else None


def _check(arms: Mapping[str, Arm], seeds: Sequence[int]) -> None:
    assert arms, "a study without arms"
    for name, arm in arms.items():
        assert arm.baseline is None or arm.baseline in arms, f"{name}: no arm {arm.baseline!r} to compare with"
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError("wrong seeds", field="--seeds", found=list(seeds), expected="different numbers, at least one")


def _same_study(path: Path, name: str) -> None:
    """Refuse a folder that holds something else."""
    if path.exists() and not path.is_dir():
        raise InputError("is a file, expected a folder for the study", file=path)
    if (path / "plan.json").exists():
        if (older := read_json(path / "plan.json")["name"]) != name:
            raise InputError("holds another study; name another folder", file=path, found=older, expected=name)
    elif path.is_dir() and any(entry.name != ".lock" for entry in path.iterdir()):
        raise InputError("is not empty and holds no study; name another folder", file=path)
