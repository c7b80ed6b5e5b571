"""`optative systems`: list, show and run the published systems.

Knows: how a standing is shown. Does not know: how it is computed, what a study does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from optative.cli.output import print_json
from optative.core.errors import InputError, nearest, unknown
from optative.systems.catalogue import CATALOGUE, find
from optative.systems.record import Entry
from optative.systems.status import VERDICTS, Finding, Standing, standing

app = typer.Typer(help="List, show and run the published systems.", add_completion=False, no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Which = Annotated[str, typer.Argument(metavar="SYSTEM", help="Number or name, e.g. 26 or constrained-rlhf.")]


@app.command("list", epilog="Example: optative systems list --status reproduced")
def list_systems(
    json: Json = False,
    status: Annotated[
        str | None, typer.Option(help="Only those with this verdict: " + ", ".join(VERDICTS) + ".")
    ] = None,
) -> None:
    """List the 77 systems with their verdicts, which are computed from recorded results."""
    if status is not None and status not in VERDICTS:
        raise InputError(unknown("status", status, VERDICTS), field="--status")
    rows = [(entry, standing(entry)) for entry in CATALOGUE]
    shown = [(entry, state) for entry, state in rows if status in (None, state.verdict)]
    if json:
        print_json([_summary(entry, state) for entry, state in shown])
        return
    width = max(len(entry.name) for entry in CATALOGUE)
    for entry, state in shown:
        print(f"{entry.number:2}  {state.verdict:10}  {entry.name:{width}}  {entry.title}")
    counts = Counter(state.verdict for _, state in rows)
    print(f"{len(rows)} systems: " + ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name]))


@app.command("show", epilog="Example: optative systems show 26")
def show(which: Which, json: Json = False) -> None:
    """Show what is published, what was measured here, and how the two differ."""
    entry = find(which)
    state = standing(entry)
    if json:
        print_json(_details(entry, state))
        return
    print(f"{entry.number}. {entry.title}\n{entry.citation}; name here: {entry.name}\n")
    print(f"Published: {entry.claim}")
    print(f"Measured here ({state.verdict}):" + ("" if state.findings else " nothing yet."))
    for finding in state.findings:
        print("  " + _words(finding))
    for results in state.current:
        print(f"  from {results.file}: {results.command}")
    for results in state.stale:
        print(f"  {results.file} answers earlier criteria and does not count; run it again.")
    if state.system is not None:
        print(f"How they differ: {state.system.differs}")
        if state.verdict == "negative":
            print(f"Best explanation: {state.system.explanation or 'none yet.'}")


@app.command("run", epilog="Example: optative systems run 26 --out runs")
def run(
    which: Which,
    out: Annotated[Path, typer.Option(help="Folder in which the study's own folder is made or resumed.")] = Path(
        "runs"
    ),
) -> None:
    """Run a system's quick study."""
    entry = find(which)
    if entry.module is None:
        raise InputError(f"system {entry.number}, {entry.name}, is not implemented yet", hint=_implemented(entry))
    from importlib import import_module

    module = import_module(entry.module)
    folder = out / f"system-{entry.number:02d}-{entry.name}"
    module.run(module.Study(), folder)
    print(folder)


def _implemented(entry: Entry) -> str:
    names = {other.name: other.number for other in CATALOGUE if other.module is not None}
    if not names:
        return f"None of the {len(CATALOGUE)} is so far."
    close = nearest(entry.name, names)
    listed = ", ".join(f"{number} {name}" for name, number in names.items())
    return f"Implemented: {listed}." + (f" The nearest is {close!r}." if close else "")


def _summary(entry: Entry, state: Standing) -> dict[str, Any]:
    return {
        "number": entry.number,
        "name": entry.name,
        "title": entry.title,
        "status": state.verdict,
        "claim": entry.claim,
    }


def _details(entry: Entry, state: Standing) -> dict[str, Any]:
    system = state.system
    return {
        **_summary(entry, state),
        "citation": entry.citation,
        "findings": [
            {
                **asdict(f.criterion),
                "scale": f.scale,
                "effects": {str(s): e for s, e in f.effects.items()},
                "met": f.met,
            }
            for f in state.findings
        ],
        "results": [
            {"file": r.file, "command": r.command, "hardware": r.hardware, "versions": r.versions}
            for r in state.current
        ],
        "stale": [results.file for results in state.stale],
        "differs": None if system is None else system.differs,
        "explanation": None if system is None else system.explanation or None,
    }


def _words(finding: Finding) -> str:
    c, effects = finding.criterion, finding.effects
    asked = f"{c.metric} ({finding.scale}): {c.arm} {c.direction} than {c.baseline} by {c.smallest_effect:g} or more"
    if finding.met is None:
        return f"{asked}: open, {len(effects)} of {c.seeds} seeds"
    sizes = ", ".join(f"{effect:+.3g}" for effect in effects.values())
    return f"{asked}: {'met' if finding.met else 'not met'}, by seed {sizes}"
