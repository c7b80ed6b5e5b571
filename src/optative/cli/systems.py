"""`optative systems`: list, show and run the published systems.

Knows: how a standing is shown. Does not know: how it is computed, what a study does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from optative.cli.output import console, print_json
from optative.core.errors import InputError, nearest, unknown
from optative.systems.catalogue import CATALOGUE, find
from optative.systems.record import AnyCriterion, Bound, Criterion, Entry, results_of, with_settings
from optative.systems.status import VERDICTS, Finding, Standing, judge, standing

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


@app.command("show", epilog="Example: optative systems show 36")
def show(
    which: Which,
    json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print only what was asked and measured, as a Markdown table.")
    ] = False,
) -> None:
    """Show what is published, what was measured here, how the two differ, and the verdict."""
    entry = find(which)
    state = standing(entry)
    if json and markdown:
        raise InputError("print one of them", field="--markdown", found="--json too")
    if markdown:
        print(findings_table(state), end="")
        return
    if json:
        print_json(_details(entry, state))
        return
    print(f"{entry.number}. {entry.title}\n{entry.citation}; name here: {entry.name}\n")
    print(f"Published: {entry.claim}")
    print(f"Measured here ({state.verdict}):" + ("" if state.findings else " nothing yet."))
    for finding in state.findings:
        print("  " + _words(finding))
    if state.system is not None and not state.findings:
        for criterion in state.system.criteria:
            print(f"  {_asked(criterion)}: not run")
    for results in state.current:
        print(f"  from {results.file}: {results.command}")
    for results in state.stale:
        print(f"  {results.file} answers earlier criteria and does not count; run it again.")
    if state.system is not None:
        print(f"How they differ: {state.system.differs}")
        if any(finding.met is False for finding in state.findings):
            print(f"Best explanation: {state.system.explanation or 'none yet.'}")


@app.command("run", epilog="Example: optative systems run 36 --full --seeds 0,1,2")
def run(
    which: Which,
    full: Annotated[
        bool, typer.Option("--full", help="The full study, which the criteria are for; without, the quick one.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="Other seeds than the study's own.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one option of the study; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which the study's own folder is made or resumed.")] = Path(
        "runs"
    ),
    json: Json = False,
) -> None:
    """Run a system's study and judge it by the system's criteria. The last line on stdout is the study's folder.

    Cells that an earlier call computed are kept, also after `kill -9`: the same command goes on, other seeds add
    cells. The folder holds study.json (raw results, one paired table) and report.html. An option that names a file
    of your own, for example --set pairs=pairs.jsonl, adds what is measured on it.
    """
    from optative.core.files import write_text
    from optative.evaluation.report.study import study_page

    entry = find(which)
    module = _module(entry)
    settings = list(set_ or ())
    if seeds is not None:
        settings.append(f"seeds={list(_seeds(seeds))}")
    study = with_settings(module.FULL if full else module.Study(), settings)
    folder = out / f"system-{entry.number:02d}-{entry.name}{'-full' if full else ''}"
    found = module.run(study, folder)
    results = results_of(found)
    findings = [judge(criterion, results) for criterion in module.SYSTEM.criteria]
    write_text(folder / "report.html", study_page(found, [_answer(finding) for finding in findings]))
    if json:
        print_json({"folder": str(folder), "findings": [_finding(finding) for finding in findings]})
        return
    words = console(stderr=True)
    for finding in findings:
        words.print(_words(finding))
    print(folder)


@app.command("record", epilog="Example: optative systems record 36 runs/system-36-on-policy-suboptimal-full")
def record(
    which: Which,
    folder: Annotated[Path, typer.Argument(help="The folder of a study that was run with --full.")],
) -> None:
    """Keep a full study's figures with the package, for the ledger (developers, in a checkout)."""
    from optative.core.files import read_json
    from optative.systems.record import command, full_study, keep

    entry = find(which)
    module = _module(entry)
    if not (folder / "study.json").exists():
        raise InputError("holds no finished study", file=folder)
    study = read_json(folder / "study.json")
    if not full_study(entry.number, study["command"], module.FULL):
        asked = command(entry.number, module.FULL, module.FULL)
        raise InputError("not the full study", file=folder, found=study["command"], expected=asked)
    print(keep(entry, module.SYSTEM, study))


def _module(entry: Entry) -> Any:
    if entry.module is None:
        raise InputError(f"system {entry.number}, {entry.name}, is not implemented yet", hint=_implemented(entry))
    from importlib import import_module

    return import_module(entry.module)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise InputError("not seeds", field="--seeds", found=text, expected="numbers such as 0,1,2") from None


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
        "findings": [_finding(finding) for finding in state.findings],
        "results": [
            {"file": r.file, "command": r.command, "hardware": r.hardware, "versions": r.versions}
            for r in state.current
        ],
        "stale": [results.file for results in state.stale],
        "differs": None if system is None else system.differs,
        "explanation": None if system is None else system.explanation or None,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        **asdict(finding.criterion),
        "kind": type(finding.criterion).__name__.lower(),
        "scale": finding.scale,
        "measured": finding.measured,
        "effects": {str(seed): effect for seed, effect in finding.effects.items()},
        "met": finding.met,
    }


def _words(finding: Finding) -> str:
    c, effects = finding.criterion, finding.effects
    if not effects:
        return f"{_asked(c)}: not run"
    what = "by seed" if isinstance(c, Criterion) else "room to the limit by seed"
    scale = "" if finding.scale == "small" else f" ({finding.scale})"
    return f"{_asked(c)}{scale}: {_met(finding)}, {what} {_effects(finding)} (mean: {_measured(finding)})"


def _met(finding: Finding) -> str:
    if finding.met is None:
        seeds = len(finding.effects)
        return f"open, {seeds} of {finding.criterion.seeds} seeds" if seeds else "not run"
    return "met" if finding.met else "not met"


def _effects(finding: Finding) -> str:
    return ", ".join(f"{effect + 0.0:+.3g}" for effect in finding.effects.values())  # + 0.0: never -0


def _measured(finding: Finding) -> str:
    return ", ".join(f"{arm} {value:.3g}" for arm, value in finding.measured.items())


def findings_table(state: Standing) -> str:
    """Every criterion of a system with what was measured, as Markdown; empty without results."""
    if not state.findings:
        return ""
    rows = [_answer(finding) for finding in state.findings]
    head = ("asked", "mean over seeds", "by seed: difference, or room to the limit", "")
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * 4, *rows)]
    return "\n".join(lines) + "\n"


def _answer(finding: Finding) -> tuple[str, ...]:
    """What was asked, what was measured, the effect in each seed, and the verdict."""
    return _asked(finding.criterion), _measured(finding), _effects(finding), _met(finding)


def _asked(c: AnyCriterion) -> str:
    """A criterion in words."""
    if isinstance(c, Criterion):
        return f"{c.metric}: {c.arm} {c.direction} than {c.baseline} by {c.smallest_effect:g} or more"
    if isinstance(c, Bound):
        return f"{c.metric}: {c.arm} {c.direction.replace('_', ' ')} {c.limit:g}"
    return f"{c.metric}: {', '.join(c.arms)} apart by at most {c.at_most:g}"
