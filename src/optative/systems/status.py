"""Verdicts on the published systems, computed from recorded results and never typed.

Knows: criteria and per-seed values. Does not know: how they were measured.
missing: no module. runs: a module, but no current results with seeds enough. negative: every criterion answered, one or
more not met. reproduced: all met. scaled: reproduced, and all met again on a large model or GPU.
A criterion is met when the mean paired effect over seeds reaches the smallest effect and no seed contradicts the sign;
three seeds carry no normal interval, so none is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from optative.systems.record import RESULTS, Criterion, Entry, Results, System, read_results

VERDICTS = ("missing", "runs", "negative", "reproduced", "scaled")


@dataclass(frozen=True, slots=True)
class Finding:
    """One criterion under one results file. `effects`: seed -> arm minus baseline, positive when as claimed.

    `met` is None as long as there are fewer paired seeds than the criterion asks for.
    """

    criterion: Criterion
    scale: str
    effects: dict[int, float]
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


def judge(criterion: Criterion, results: Results) -> Finding:
    """Compare arm and baseline seed by seed; a seed that only one of them has is not counted."""
    arm = results.values.get((criterion.metric, criterion.arm), {})
    baseline = results.values.get((criterion.metric, criterion.baseline), {})
    sign = 1.0 if criterion.direction == "higher" else -1.0
    effects = {seed: sign * (arm[seed] - baseline[seed]) for seed in sorted(arm.keys() & baseline.keys())}
    met = None
    if len(effects) >= criterion.seeds:
        mean = sum(effects.values()) / len(effects)
        met = mean >= criterion.smallest_effect and min(effects.values()) > 0
    return Finding(criterion, results.scale, effects, met)


def verdict(findings: tuple[Finding, ...]) -> str:
    """The verdict on a system that has a module. Small-scale results decide; large ones can only raise it."""
    small = [finding.met for finding in findings if finding.scale == "small"]
    large = [finding.met for finding in findings if finding.scale == "large"]
    if not small or None in small:
        return "runs"
    if not all(small):
        return "negative"
    return "scaled" if large and all(large) else "reproduced"
