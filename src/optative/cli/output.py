"""How verbs write: JSON on stdout for programs, words for people.

Knows: the two streams. Does not know: what is said. With `--json` stdout holds one JSON document and nothing else;
words, warnings and errors go to stderr.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """One JSON document on stdout. ASCII only, so that it is valid under every locale; NaN is refused."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is: what a model or a person wrote is never read as markup."""
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(out: Console, table: Any) -> None:
    """A table as wide as it needs to be; pipes and narrow terminals get whole numbers, not cut ones."""
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    if needed > out.width:
        out = console(stderr=out.stderr, width=needed)
    out.print(table)


def print_run(folder: Any, evaluation: dict[str, Any], as_json: bool) -> None:
    """A finished run: a table of what changed and, as the last line on stdout, the folder."""
    if as_json:
        print_json({"folder": str(folder), "metrics": evaluation["metrics"], "warnings": evaluation["warnings"]})
        return
    from rich.table import Table

    table = Table("metric", "split", "base", "steered", "difference", "interval", "n")
    for m in evaluation["metrics"]:
        numbers = ["not measured" if m[k] is None else f"{m[k]:.3f}" for k in ("base", "steered")]
        difference = "" if m["difference"] is None else f"{m['difference']:+.3f}"
        interval = "" if not m["interval"] or m["interval"][0] is None else "{:+.3f} to {:+.3f}".format(*m["interval"])
        table.add_row(m["name"], m["split"], *numbers, difference, interval, str(m["n"]))
    words = console(stderr=True)
    print_table(words, table)
    for warning in evaluation["warnings"]:
        words.print(f"warning: {warning['message']}")
    print(folder)
