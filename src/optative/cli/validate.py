"""`optative validate`: is a spec right? No model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optative.cli.run import JsonOption, SetOption


def validate(
    spec: Annotated[Path, typer.Argument(help="A spec (YAML).")],
    set_: SetOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Check the spec's small form.")] = False,
    json: JsonOption = False,
) -> None:
    """Check a spec without loading a model, and print every option as it will be used."""
    import yaml

    from optative.cli.output import print_json
    from optative.runs.spec import load_spec

    found, _ = load_spec(spec, overrides=set_ or (), quick=quick)
    resolved = found.model_dump(mode="json")
    if json:
        print_json({"valid": True, "key": found.key[:8], "options": resolved})
    else:
        print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), end="")
        print(f"# valid; its run folder would be runs/{found.name}-{found.key[:8]}")
