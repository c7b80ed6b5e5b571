"""`optative run`: walk the whole loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the spec; may be repeated.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder. Default: runs/<name>-<key>.", show_default=False)
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Throw away an earlier run in the folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def run(
    spec: Annotated[
        Path | None,
        typer.Argument(help="A spec (YAML). Without one, the example that comes with optative.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The spec's small form: the whole loop in minutes.")] = False,
    out: OutOption = None,
    set_: SetOption = None,
    fresh: FreshOption = False,
    json: JsonOption = False,
) -> None:
    """Walk the whole loop: state, ask, steer, check. The last line on stdout is the run folder.

    The same command on the same folder resumes where it was cut off.
    """
    from optative.cli.output import print_run
    from optative.core.errors import CriterionNotMet
    from optative.runs.spec import load_spec

    load_spec(spec, overrides=set_ or (), quick=quick)  # a fault of the spec is told before torch is even imported
    from optative.runs.steer import run as steer

    done = steer(spec, out=out, overrides=set_ or (), quick=quick, fresh=fresh)
    print_run(done.folder, done.evaluation, json)
    if not done.met:
        raise CriterionNotMet(f"the run is complete, but its criterion is not met: {done.why}")
