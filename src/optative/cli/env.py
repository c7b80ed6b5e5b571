"""`optative env`: what a report of a fault needs, and what a run would choose here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXTRAS = {"gguf": ("gguf", "accelerate"), "tensorboard": ("tensorboard",)}


def env(json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False) -> None:
    """Print versions, hardware, threads, the number format chosen here with its reason, folders and extras."""
    from optative.cli.output import console, print_json

    facts = environment()
    if json:
        print_json(facts)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = "\n".join(f"{k}: {_words(v)}" for k, v in value.items())
        elif isinstance(value, list):
            value = "\n".join(f"{m['name']}: {m['state']}" for m in value)
        table.add_row(name.replace("_", " "), _words(value))
    console().print(table)


def environment() -> dict[str, Any]:
    import importlib.util
    import os

    import torch

    from optative.cli.models import known_models
    from optative.generators.language.dtype import choose_dtype
    from optative.generators.language.load import cache_folder
    from optative.runs.environment import hardware, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_dtype("auto", device)
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    return {
        "versions": versions(),
        "hardware": hardware(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": reason,
        "cache_folder": str(cache_folder()),
        "hub_offline": offline,
        "extras": {
            extra: all(importlib.util.find_spec(package) is not None for package in packages)
            for extra, packages in EXTRAS.items()
        },
        "models": known_models(),
    }


def _words(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
