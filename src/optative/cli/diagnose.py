"""`optative diagnose`: what a file of pairs, or a training's log of them, says about a model.

Knows: options and output. Does not know: formulas; nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from optative.cli.output import console, print_json, print_table
from optative.cli.run import JsonOption

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Look into pairs: what a model ranks right, and why."
)

OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder for diagnosis.json and report.html.", show_default=False)
]


@app.callback()
def diagnose() -> None:
    """Look into pairs: what a model ranks right, and why."""


@app.command(
    epilog="Example: optative diagnose pairs pairs.jsonl --model runs/mine/adapter --reference smollm2-135m-instruct"
)
def pairs(
    file: Annotated[Path, typer.Argument(help="Preferences, in any format that `optative align` reads.")],
    model: Annotated[
        str, typer.Option("--model", help="A built-in model, a folder, a hub id, or an adapter's folder.")
    ],
    reference: Annotated[str, typer.Option("--reference", help="What the model was tuned from.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT adapter to put on the model.", show_default=False)
    ] = None,
    reference_adapter: Annotated[
        Path | None, typer.Option("--reference-adapter", help="The same for the reference.", show_default=False)
    ] = None,
    beta: Annotated[
        list[float] | None,
        typer.Option("--beta", help="Of the idealised policy; may be repeated. Default: 0.01 0.1 1 5 10."),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option("--shares", help="Column with the share of voters for the chosen answer.", show_default=False),
    ] = None,
    vote_share: Annotated[
        float | None,
        typer.Option("--vote-share", help="One share for all pairs, where votes are unknown. Default: 0.75."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first N pairs.", show_default=False)
    ] = None,
    max_length: Annotated[
        int, typer.Option("--max-length", min=2, help="Longer pairs are skipped and counted.")
    ] = 1024,
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", min=1, help="Cut prompts on the left to N.", show_default=False)
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Cut both answers to N.", show_default=False)
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Name the format instead of having it detected.", show_default=False)
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Chat template in place of the models' own.", show_default=False)
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option("--dtype", help="Of the weights.")] = "auto",
    out: OutFolder = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")] = 0,
    json: JsonOption = False,
) -> None:
    """How a model ranks pairs, how well it could at best, which pairs its loss cannot fix, and what flipped.

    Scores each pair under the model and its reference; nothing is trained. A second call on the same folder reads the
    scores of the first, also with other betas or shares. The last line on stdout is the folder.
    """
    from optative.core.errors import InputError

    if shares is not None and vote_share is not None:
        raise InputError("cannot act beside --shares, which gives each pair its own", field="--vote-share")
    from optative.runs.diagnose import Length, diagnose_pairs

    more: dict[str, Any] = {} if vote_share is None else {"vote_share": vote_share}
    if beta:
        more["betas"] = beta
    found = diagnose_pairs(
        file,
        model,
        reference,
        adapter=adapter,
        reference_adapter=reference_adapter,
        shares=shares,
        limit=limit,
        length=Length(max_length, prompt_tokens, answer_tokens),
        format=format,
        template=template,
        dtype=dtype,
        out=out,
        seed=seed,
        **more,
    )
    if json:
        print_json(found)
        return
    words = console(stderr=True)
    for table in (_figures(found), _idealised(found)):
        print_table(words, table)
    from optative.evaluation.report.diagnosis import findings, left_out

    for sentence in (*findings(found), left_out(found)):
        words.print(sentence)
    for warning in found["warnings"]:
        words.print(f"warning: {warning['message']}")
    print(found["folder"])


@app.command(epilog="Example: optative diagnose curves runs/mine-1a2b3c4d")
def curves(
    run: Annotated[Path, typer.Argument(help="A run folder with pairs.parquet, or such a file.")],
    out: OutFolder = None,
    json: JsonOption = False,
) -> None:
    """Which pairs a training turned round: learning curves of single pairs, in four classes.

    Each pair is right or wrong under the reference, and right or wrong now. The last line on stdout is the folder.
    """
    from optative.runs.diagnose import diagnose_curves

    found = diagnose_curves(run, out=out)
    if json:
        print_json(found)
        return
    title = f"{found['n']} pairs, {found['part']}"
    table = _table(title, "step", "loss", "ranking", "reward", "flipped", "lost")
    marked = found["steps"].index(found["lowest_loss"]["step"])
    names = ("mean_loss", "ranking_accuracy", "reward_accuracy", "flip_rate", "lost_rate")
    for i, step in enumerate(found["steps"]):
        numbers = [_number(found[name][i]) for name in names]
        table.add_row(f"{step}{' (lowest)' if i == marked else ''}", *numbers)
    words = console(stderr=True)
    print_table(words, table)
    from optative.evaluation.report.diagnosis import curve_findings

    for sentence in curve_findings(found):
        words.print(sentence)
    print(found["folder"])


def _figures(found: dict[str, Any]) -> Any:
    title = f"{found['n']} pairs of {found['prompts']} prompts; difference: model - reference"
    table = _table(title, "figure", "reference", "model", "interval", "difference", "interval")
    for m in found["metrics"]:
        own, change = (_interval(m[k]) for k in ("model_interval", "interval"))
        table.add_row(
            m["name"], _number(m["reference"]), _number(m["model"]), own, _number(m["difference"], "+"), change
        )
    shorter = found["length"]["chosen_is_shorter"]
    table.add_row("baseline: the shorter is better", "", _number(shorter["value"]), _interval(shorter["interval"]))
    return table


def _idealised(found: dict[str, Any]) -> Any:
    title = "idealised: with the objective optimised perfectly"
    table = _table(title, "beta", "whole answers", "interval", "not fixable", "per token", "interval")
    for raw, token in zip(*(found["idealised"][v]["by_beta"] for v in ("raw", "per_token"))):
        cells = [_number(raw["value"]), _interval(raw["interval"]), str(raw["not_fixable"])]
        table.add_row(f"{raw['beta']:g}", *cells, _number(token["value"]), _interval(token["interval"]))
    return table


def _table(title: str, *columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("figure", "beta", "step") else "right", no_wrap=True)
    return table


def _interval(bounds: list[float | None]) -> str:
    return "not defined" if bounds[0] is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _number(value: float | None, sign: str = "") -> str:
    return "not defined" if value is None else f"{value:{sign}.3f}"
