"""`optative evaluate`: measure a model or an endpoint; no run is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from optative.cli.run import JsonOption


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A built-in model, a folder, a hub id, or an endpoint's address (http...).")
    ],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT adapter to put on the model.", show_default=False)
    ] = None,
    ifeval: Annotated[
        Path | None,
        typer.Option(
            "--ifeval",
            help="The public benchmark's file; default: optative's own held-out prompts.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first N prompts.", show_default=False)
    ] = None,
    mode: Annotated[
        Literal["strict", "published"] | None,
        typer.Option("--mode", help="Rules: published (default with --ifeval) or strict.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Longest answer; default 128, and 1280 with --ifeval."),
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option("--endpoint-model", help="The model's name at the endpoint.", show_default=False)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", help="Environment variable with the endpoint's key.", show_default=False),
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option("--dtype", help="Of the weights.")] = "auto",
    template: Annotated[
        str | None, typer.Option("--template", help="Chat template in place of the model's own.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for samples.jsonl and evaluation.json. Default: evaluations/<model>-<key>.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure how well a model follows verifiable instructions: prompt- and instruction-level, strict and loose.

    Two folders written by this verb can be compared, paired by prompt: optative compare A B
    """
    from optative.cli.output import console, print_json
    from optative.runs.evaluate import evaluate as measure

    done = measure(
        model,
        adapter=adapter,
        ifeval=ifeval,
        limit=limit,
        mode=mode,
        max_new_tokens=max_new_tokens,
        endpoint_model=endpoint_model,
        api_key_env=api_key_env,
        dtype=dtype,
        template=template,
        out=out,
    )
    if json:
        print_json(done)
        return
    from rich.table import Table

    def shown(value: float | None, name: str) -> str:
        return "not defined" if value is None else f"{value:.1%}" if "accuracy" in name else f"{value:.3f}"

    table = Table("metric", "split", "value", "interval", "n", title=f"{done['model']}, rules: {done['mode']}")
    for m in done["metrics"]:
        bounds = " to ".join(shown(end, m["name"]) for end in m.get("base_interval") or ())
        table.add_row(m["name"], m["split"], shown(m["base"], m["name"]), bounds, str(m["n"]))
    words = console(stderr=True)
    words.print(table)
    for warning in done["warnings"]:
        words.print(f"warning: {warning['message']}")
    print(done["folder"])
