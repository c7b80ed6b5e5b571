"""`optative data`: look into files of preferences.

Knows: options and output. Does not know: formats (`data.inspect` does); nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from optative.data.records import Text

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look into files of preferences.")


@app.callback()
def data() -> None:
    """Look into files of preferences."""


@app.command(epilog="Example: optative data inspect pairs.jsonl --model smollm2-135m-instruct --max-length 1024")
def inspect(
    file: Annotated[
        Path, typer.Argument(help="JSON lines, JSON, CSV, Parquet, Arrow, or a folder saved by `datasets`.")
    ],
    format: Annotated[str | None, typer.Option(help="Name of the format; detected from the columns if absent.")] = None,
    model: Annotated[str | None, typer.Option(help="Count tokens under this model's template.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Show the share that is longer; needs --model.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="How many judgements to show.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a file's format, counts, token lengths, samples and everything odd. Changes nothing.

    Bad records are counted and shown; a file whose structure is broken ends with exit code 2.
    """
    from optative.cli.output import print_json
    from optative.core.errors import InputError
    from optative.data.inspect import inspect_file, render

    if max_length is not None and model is None:
        raise InputError("cannot act without --model, whose tokens it counts", field="--max-length", found=max_length)
    if model is not None:
        inspect_file(file, format=format, samples=0)  # a broken file shows before a model is loaded
    counter = None if model is None else _counter(model)
    report = inspect_file(file, format=format, count_tokens=counter, max_length=max_length, samples=samples)
    if json:
        print_json(report)
    else:
        print(render(report))


def _counter(model: str) -> Any:
    from optative.generators.language.load import load_language_model
    from optative.generators.language.tokens import encode_completion, encode_prompt

    lm = load_language_model(model)

    def count(prompt: Text, answer: Text | None) -> int:
        return len(encode_prompt(lm, prompt) if answer is None else encode_completion(lm, prompt, answer))

    return count
