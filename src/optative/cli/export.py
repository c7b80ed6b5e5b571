"""`optative export`: a run's adapter, or any LoRA adapter, merged into a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path | None, typer.Argument(help="A finished run folder.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The new folder; it must not exist yet.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="In place of a run: the base model.", show_default=False)
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="In place of a run: a LoRA adapter.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Merge an adapter into its base, in float32, as a folder that Transformers loads. Prints the folder.

    The result is read back and compared with the unmerged model; the largest difference of logits is shown.
    """
    from optative.cli.output import console, print_json
    from optative.core.errors import InputError

    if out is None:
        raise InputError("name the new folder", field="--out")
    if (run is None) == (adapter is None):
        raise InputError("give either a run folder, or --adapter with --model")
    if run is not None and model is not None:
        raise InputError("a run names its own model; give --adapter with it", field="--model", found=model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists already and is left as it is", file=out, hint="Name another folder with --out.")
    from optative.generators.language.load import load_language_model
    from optative.runs.export import export_model, open_run

    if run is not None:
        lm = open_run(run, dtype="float32")
    elif model is None:
        lm = load_language_model(str(adapter), dtype="float32")
    else:
        lm = load_language_model(model, adapter=adapter, dtype="float32")
    difference = export_model(lm, out)
    if json:
        print_json({"folder": str(out), "largest_logit_difference": difference})
        return
    console(stderr=True).print(f"Merged {lm.name}; largest difference of logits before and after: {difference:.2g}")
    print(out)
