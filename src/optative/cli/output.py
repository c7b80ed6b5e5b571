"""How verbs write: JSON on stdout for programs, words for people.

Knows: the two streams. Does not know: what is said. With `--json` stdout holds one JSON document and nothing else;
words, warnings and errors go to stderr.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """One JSON document on stdout. ASCII only, so that it is valid under every locale; NaN is refused."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: what a model or a person wrote is never read as markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)
