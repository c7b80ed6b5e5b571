"""Optative: state what is wanted, ask for feedback, steer a model, and check it against the truth.

The front door: `run` walks the whole loop, `align` trains on your own preferences, `evaluate` measures a model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optative.runs.align import align
    from optative.runs.evaluate import evaluate
    from optative.runs.options import Align
    from optative.runs.steer import run

__version__ = "0.1.0"
__all__ = ["Align", "align", "evaluate", "run"]

_HOME = {
    "Align": "optative.runs.options",
    "align": "optative.runs.align",
    "evaluate": "optative.runs.evaluate",
    "run": "optative.runs.steer",
}


def __getattr__(name: str) -> Any:
    """Imported on first use, because they need torch and `--help` does not."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'optative' has no attribute {name!r}")
