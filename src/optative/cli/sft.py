"""`optative sft`: your own model on answers that it should give."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optative.cli.align import FormatOption, ModelOption, SeedOption
from optative.cli.run import FreshOption, JsonOption, OutOption, SetOption


def sft(
    file: Annotated[
        Path,
        typer.Argument(help="Answers: prompt and completion, or messages, in JSONL, JSON, CSV or Parquet."),
    ],
    model: ModelOption = "smollm2-135m-instruct",
    format: FormatOption = None,
    out: OutOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    fresh: FreshOption = False,
    json: JsonOption = False,
) -> None:
    """Supervised training on completions, checked on completions that were kept out.

    Of preference files the chosen answers are taken, of labelled ones the desirable answers. The loss is the negative
    log-likelihood per token of each answer; prompts and other speakers' turns carry none.

    Options of the parts are set by name, for example: --set sft.epochs=2 --set sft.learning_rate=1e-4 --set lora.rank=8
    --set held_out=0.2; --set lora=null trains all weights. The last line on stdout is the run folder.
    """
    from optative.cli.output import print_run
    from optative.runs.options import align_options

    options = align_options(file, model=model, format=format, seed=seed, overrides=set_ or (), loss="sft")
    from optative.runs.align import align as train
    from optative.training.distribution import world

    done = train(options, out=out, fresh=fresh)
    if world().is_main:
        print_run(done.folder, done.evaluation, json)
