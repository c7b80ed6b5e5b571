"""`optative report FOLDER`: the page of a run folder.

Knows: arguments, streams. Does not know: what is in the page. Heavy imports wait until the verb is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optative.cli.output import print_json


def report(
    folder: Annotated[Path, typer.Argument(help="Run folder, as `optative run` or `align` printed it.")],
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Show the page in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with `folder` and `report`.")] = False,
) -> None:
    """Write a run's report as one HTML file and print its path.

    It reads the run folder alone, and also shows a run that was interrupted: what is missing is named there.
    """
    from optative.evaluation.report import write_report

    path = write_report(folder)
    if as_json:
        print_json({"folder": str(folder), "report": str(path)})
    else:
        print(path)
    if open_page:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
