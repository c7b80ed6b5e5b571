"""`optative align`: your own model on your own preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optative.cli.run import FreshOption, JsonOption, OutOption, SetOption

ModelOption = Annotated[str, typer.Option("--model", help="A built-in model, a Hugging Face folder, or a hub id.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="Name the format instead of having it detected.", show_default=False)
]
SeedOption = Annotated[int, typer.Option("--seed", help="Varies the split, initialisation and order.")]


def align(
    file: Annotated[
        Path, typer.Argument(help="Preferences: JSONL (plain or gz), JSON, CSV, Parquet or a datasets folder.")
    ],
    model: ModelOption = "smollm2-135m-instruct",
    loss: Annotated[
        str, typer.Option("--loss", help="The loss by name; `optative explain` lists all with when to use which.")
    ] = "dpo",
    format: FormatOption = None,
    out: OutOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    fresh: FreshOption = False,
    json: JsonOption = False,
) -> None:
    """Align a model on your own preference file, and check it on records that were kept out.

    The file may hold pairs, ties, ranked or rated lists, answers with thumbs up or down, or a mixture of them; each
    loss takes from a record what it can use, and records that teach it nothing are counted.

    Options of the parts are set by name, for example: --loss kto --set kto.beta=0.2 --set lora.rank=8
    --set kto.epochs=2 --set held_out=0.2 --set on_bad_record=skip --set max_length=512; --set lora=null
    trains all weights. The last line on stdout is the run folder.
    """
    from optative.cli.output import print_run
    from optative.runs.options import align_options

    options = align_options(file, model=model, format=format, seed=seed, overrides=set_ or (), loss=loss)
    from optative.runs.align import align as train
    from optative.training.distribution import world

    done = train(options, out=out, fresh=fresh)
    if world().is_main:
        print_run(done.folder, done.evaluation, json)
