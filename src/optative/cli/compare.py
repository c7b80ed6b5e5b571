"""`optative compare`: two run folders or two result files, item by item. Knows: tables. Does not know: statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optative.cli.output import console, print_json


def compare(
    a: Annotated[Path, typer.Argument(help="A run folder, an evaluation folder or a result file.")],
    b: Annotated[Path, typer.Argument(help="What to compare it with, of the same sort.")],
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two runs or two result files on the items they share, paired by id.

    Differences are A minus B, with intervals from a paired bootstrap and exact McNemar tests. A result file has one
    JSON object a line with "id" and "score", or the judged answers of a run (samples.jsonl).
    """
    from optative.evaluation.compare import compare as compare_results

    found = compare_results(a, b, level=level, seed=seed)
    if json:
        print_json(found)
        return
    out = console()
    out.print(f"A: {_described(found['a'])}\nB: {_described(found['b'])}")
    out.print(f"{found['n']} items in common; differences are A - B, with {level:.0%} intervals")
    for split in dict.fromkeys(row["split"] for row in found["metrics"]):
        figures = [[row for row in found[part] if row["split"] == split] for part in ("metrics", "by_kind")]
        table = _table(split, *figures)
        out.print(table, width=max(out.width, out.measure(table).maximum))
    for warning in found["warnings"]:
        out.print(f"Warning: {warning['message']}")


def _table(split: str, figures: list[dict[str, Any]], kinds: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=split, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("figure", "n", "A", "B", "A - B", "interval", "only A", "only B", "p"):
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for row in figures:
        table.add_row(*_cells(row["name"], row))
    if kinds:
        table.add_section()
    for row in kinds:
        table.add_row(*_cells(row["kind"], row))
    return table


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    interval = "not defined" if low is None else f"{low:+.3f} to {high:+.3f}"
    numbers = [str(row["n"]), _number(row["a"]), _number(row["b"]), _number(row["difference"], "+"), interval]
    return [name, *numbers, str(row.get("only_a", "")), str(row.get("only_b", "")), _p(row.get("p"))]


def _described(side: dict[str, Any]) -> str:
    model = f", model {side['model']}, rules {'/'.join(side['modes'])}" if side["kind"] == "samples" else ""
    return f"{side['name']} ({side['rows']} {'answers' if side['kind'] == 'samples' else 'scores'}{model})"


def _number(value: float | None, sign: str = "") -> str:
    return "not defined" if value is None else f"{value:{sign}.3f}"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
