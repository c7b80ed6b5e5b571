"""Verdicts on the published systems, computed from recorded results and never typed.

Knows: criteria and per-seed values. Does not know: how they were measured.
missing: no module. runs: a module, but no current results with seeds enough. negative: every criterion answered, one or
more not met. reproduced: all met. scaled: reproduced, and all met again on a large model or GPU.
A difference is met when the mean paired effect over seeds reaches the smallest effect and no seed contradicts the
sign; a bound or a spread when it holds in every seed. Three seeds carry no normal interval, so none is computed. A
criterion without results is not run, and never reads as met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from optative.systems.record import (
    RESULTS,
    AnyCriterion,
    Bound,
    Criterion,
    Entry,
    Results,
    System,
    read_results,
)

VERDICTS = ("missing", "runs", "negative", "reproduced", "scaled")


@dataclass(frozen=True, slots=True)
class Finding:
    """One criterion under one results file. `measured`: arm -> its mean over the seeds that count.

    `effects`, by seed: of a difference, arm minus baseline, positive when as claimed; of a bound or a spread, the room
    left to the limit, negative when it is broken. `met` is None as long as there are fewer seeds than asked for.
    """

    criterion: AnyCriterion
    scale: str
    effects: dict[int, float]
    measured: dict[str, float]
    met: bool | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a system stands: its verdict and what it rests on. `stale`: results that answer other criteria."""

    verdict: str
    system: System | None = None
    findings: tuple[Finding, ...] = ()
    current: tuple[Results, ...] = ()
    stale: tuple[Results, ...] = ()


def standing(entry: Entry, folder: Path = RESULTS) -> Standing:
    """The verdict on one system, from its module's criteria and the results recorded in `folder`."""
    if entry.module is None:
        return Standing("missing")
    system: System = import_module(entry.module).SYSTEM
    recorded = read_results(entry, folder)
    current = tuple(results for results in recorded if results.criteria == system.hash)
    stale = tuple(results for results in recorded if results.criteria != system.hash)
    findings = tuple(judge(criterion, results) for results in current for criterion in system.criteria)
    return Standing(verdict(findings), system, findings, current, stale)


def judge(criterion: AnyCriterion, results: Results) -> Finding:
    """Judge a criterion seed by seed; a seed that only one of its arms has is not counted."""
    arms = arms_of(criterion)
    values = [results.values.get((criterion.metric, arm), {}) for arm in arms]
    seeds = sorted(set.intersection(*(set(own) for own in values)))
    effects = {seed: _effect(criterion, [own[seed] for own in values]) for seed in seeds}
    measured = {arm: sum(own[seed] for seed in seeds) / len(seeds) for arm, own in zip(arms, values) if seeds}
    met = None
    if len(effects) >= criterion.seeds:
        if isinstance(criterion, Criterion):
            mean = sum(effects.values()) / len(effects)
            met = _over(mean, criterion.smallest_effect) >= 0 and min(effects.values()) > 0
        else:
            met = min(effects.values()) >= 0
    return Finding(criterion, results.scale, effects, measured, met)


def arms_of(criterion: AnyCriterion) -> tuple[str, ...]:
    """The arms that a criterion speaks of, its own first."""
    if isinstance(criterion, Criterion):
        return criterion.arm, criterion.baseline
    return (criterion.arm,) if isinstance(criterion, Bound) else criterion.arms


def _effect(criterion: AnyCriterion, values: list[float]) -> float:
    if isinstance(criterion, Criterion):
        return (values[0] - values[1]) * (1.0 if criterion.direction == "higher" else -1.0)
    if isinstance(criterion, Bound):
        return _over(values[0], criterion.limit) * (1.0 if criterion.direction == "at_least" else -1.0)
    return _over(criterion.at_most, max(values) - min(values))


def _over(value: float, other: float) -> float:
    """The difference; none where only the rounding of a computation parts them. A limit of 0 has to be kept exactly."""
    return 0.0 if math.isclose(value, other, rel_tol=1e-12) else value - other


def verdict(findings: tuple[Finding, ...]) -> str:
    """The verdict on a system that has a module. Small-scale results decide; large ones can only raise it."""
    small = [finding.met for finding in findings if finding.scale == "small"]
    large = [finding.met for finding in findings if finding.scale == "large"]
    if not small or None in small:
        return "runs"
    if not all(small):
        return "negative"
    return "scaled" if large and all(large) else "reproduced"
