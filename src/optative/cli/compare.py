"""`optative compare`: two run folders or two result files, item by item. Knows: tables. Does not know: statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from optative.cli.output import console, print_json, print_table

MOST_KINDS = 5


def compare(
    a: Annotated[Path, typer.Argument(help="A run folder, an evaluation folder or a result file.")],
    b: Annotated[Path, typer.Argument(help="What to compare it with, of the same sort.")],
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    repeat: Annotated[
        Path | None, typer.Option("--repeat", help="B measured once more: the noise floor.", show_default=False)
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option("--verdicts", help="A judge's verdicts, one JSON object a line: id, winner, first."),
    ] = None,
    dead_zone: Annotated[
        float | None,
        typer.Option("--dead-zone", min=0, help="Graded scores that move by no more than this did not flip."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two runs or two result files on the items they share, paired by id.

    Differences are A minus B, with intervals from a paired bootstrap and exact McNemar tests. A result file has one
    JSON object a line with "id" and "score", or the judged answers of a run (samples.jsonl). Flips are told from B, the
    old model, to A, the new one.
    """
    from optative.evaluation.compare import compare as compare_results

    found = compare_results(a, b, level=level, seed=seed, repeat=repeat, verdicts=verdicts, dead_zone=dead_zone)
    if json:
        print_json(found)
        return
    out = console()
    out.print(f"A: {_described(found['a'])}\nB: {_described(found['b'])}")
    out.print(f"{found['n']} items in common; differences are A - B, with {level:.0%} intervals")
    for split in dict.fromkeys(row["split"] for row in found["metrics"]):
        figures = [[row for row in found[part] if row["split"] == split] for part in ("metrics", "by_kind")]
        print_table(out, _table(split, *figures))
    for split, flips in found["flips"].items():
        for table in _flips(split, flips):
            print_table(out, table)
    if found["win_rate"] is not None:
        for line in _wins(found["win_rate"]):
            out.print(line)
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


def _flips(split: str, flips: dict[str, Any]) -> Iterator[Any]:
    """What A repaired and broke of B: counts, rates with intervals, and where the broken ones are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, column in enumerate(columns):
            made.add_column(column, justify="right" if i else "left", no_wrap=True)
        return made

    graded = "dead_zone" in flips
    top = table(f"{split}: what changed from B to A", "rate", "value", "interval", "B against its repeat")
    names = {"nfr": "fell" if graded else "right, then wrong", "pfr": "rose" if graded else "wrong, then right"}
    if not graded:
        names |= {"nfr_mc": "wrong now, and another answer", "backward_trust": "kept of what was right"}
    for name, label in names.items():
        if flips[name] is not None:
            floor = ((flips["noise_floor"] or {}).get(name) or {}).get("value")
            cells = [_number(flips[name]["value"]), _interval(flips[name]["interval"], "")]
            top.add_row(label, *cells, "" if floor is None else _number(floor))
    if not graded:
        wrong = f"{flips['both_wrong']} both wrong"
        if "both_wrong_same" in flips:
            wrong += f" ({flips['both_wrong_same']} the same, {flips['both_wrong_different']} another answer)"
        top.caption, top.caption_justify = (
            f"{flips['both_right']} both right, {flips['positive_flip']} repaired, ",
            "left",
        )
        top.caption += f"{flips['negative_flip']} broken, {wrong}"
    yield top
    parts = [(kind, row) for kind, row in flips["by_kind"].items() if row["nfr"]["value"] > 0]
    parts = sorted(parts, key=lambda part: -part[1]["nfr"]["value"])[:MOST_KINDS]
    parts += [
        (f"length of B's answer {row['length_b'][0]:g} to {row['length_b'][1]:g}", row) for row in flips["by_length"]
    ]
    if parts:
        below = table(f"{split}: where", "part", "n", names["nfr"], "interval", names["pfr"])
        for label, row in parts:
            nfr = row["nfr"]
            cells = [_number(nfr["value"]), _interval(nfr["interval"], ""), _number(row["pfr"]["value"])]
            below.add_row(label, str(row["n"]), *cells)
        yield below


def _wins(wins: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{wins[name]} {name}" for name in ("wins", "losses", "ties", "missing"))
    low, high = wins["interval"]
    if wins["rate"] is None:
        yield f"Win rate of A by {wins['by']}: none ({counts})"
        return
    spread = "" if low is None else f" ({low:.3f} to {high:.3f})"
    yield f"Win rate of A by {wins['by']}: {wins['rate']:.3f}{spread}; {counts}; sign test p {_p(wins['p'])}"
    if wins["orders"]:
        orders = wins["orders"]
        yield (
            f"  both orders: the judge agrees with itself on {orders['consistent']} of {orders['items']} items; the "
            f"answer shown first wins {orders['first_shown_wins']} of {orders['verdicts']} verdicts"
        )
    if wins["length_controlled"]:
        controlled = wins["length_controlled"]
        yield f"  length controlled: {controlled['rate']:.3f} ({_interval(controlled['interval'], '')})"


def _interval(bounds: list[float | None], sign: str = "+") -> str:
    low, high = bounds
    return "not defined" if low is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    numbers = [
        str(row["n"]),
        _number(row["a"]),
        _number(row["b"]),
        _number(row["difference"], "+"),
        _interval(row["interval"]),
    ]
    return [name, *numbers, str(row.get("only_a", "")), str(row.get("only_b", "")), _p(row.get("p"))]


def _described(side: dict[str, Any]) -> str:
    model = f", model {side['model']}, rules {'/'.join(side['modes'])}" if side["kind"] == "samples" else ""
    return f"{side['name']} ({side['rows']} {'answers' if side['kind'] == 'samples' else 'scores'}{model})"


def _number(value: float | None, sign: str = "") -> str:
    return "not defined" if value is None else f"{value:{sign}.3f}"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
