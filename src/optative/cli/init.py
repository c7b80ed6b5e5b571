"""`optative init`: a commented spec to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("run.yaml"),
    example: Annotated[
        str, typer.Option("--example", help="Which example: instruction_following, instruction_following_full.")
    ] = "instruction_following",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented spec to start from; `optative run FILE` runs it."""
    from importlib.resources import files

    from optative.core.errors import InputError, unknown
    from optative.core.files import write_text
    from optative.runs.spec import example_text

    names = sorted(
        p.name.removesuffix(".yaml")
        for p in (files("optative.runs") / "examples").iterdir()
        if p.name.endswith(".yaml")
    )
    if example not in names:
        raise InputError(unknown("example", example, names), field="--example")
    if file.exists() and not force:
        raise InputError("is there already; it is left as it was", file=file, hint="--force overwrites it.")
    write_text(file, example_text(example))
    print(file)
