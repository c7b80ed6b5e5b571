"""Errors and the exit codes they end with.

Knows: what a person must be told (file, line, field, found, expected). Does not know: who prints it.
Exit codes: 0 done, 1 our own fault, 2 input or environment, 3 ran but a criterion was not met, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

DONE, OUR_FAULT, BAD_INPUT, NOT_MET, INTERRUPTED = 0, 1, 2, 3, 130

_ABSENT: Any = object()


class OptativeError(Exception):
    """Anything optative raises on purpose. `exit_code` is what the command line ends with."""

    exit_code = OUR_FAULT


class InputError(OptativeError, ValueError):
    """The user's input or environment is at fault: exit code 2.

    Give what is known: the message is rendered as `file:line: field: message (found ..., expected ...)`.

    >>> print(InputError("not a number", file="pairs.jsonl", line=4, field="score", found="85%", expected="a number"))
    pairs.jsonl:4: score: not a number; found '85%', expected a number
    """

    exit_code = BAD_INPUT

    def __init__(
        self,
        message: str,
        *,
        file: Any = None,
        line: int | None = None,
        field: str | None = None,
        found: Any = _ABSENT,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.field, self.expected, self.hint = (
            message,
            file,
            line,
            field,
            expected,
            hint,
        )
        self.found = None if found is _ABSENT else found
        where = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
        where += "" if field is None else f"{field}: "
        details = [] if found is _ABSENT else [f"found {_short(found)}"]
        details += [] if expected is None else [f"expected {expected}"]
        text = where + message + ("; " + ", ".join(details) if details else "")
        super().__init__(text + (f"\n  {hint}" if hint else ""))


class InputErrors(InputError):
    """Several faults of one file, found in one pass, so that all of them show at once."""

    def __init__(self, errors: Iterable[InputError], summary: str = "") -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join([*map(str, self.errors), *([summary] if summary else [])]))


class CriterionNotMet(OptativeError):
    """The run finished, but a criterion that was asked for was not met: exit code 3."""

    exit_code = NOT_MET


def missing_extra(package: str, extra: str) -> InputError:
    """The error for an optional dependency that is not installed."""
    return InputError(f"{package} is not installed", hint=f"pip install 'optative[{extra}]' brings it.")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to a mistyped one, or None when nothing is close."""
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """`unknown kind 'keyword:existence'; the nearest is 'keywords:existence'`"""
    known = sorted(known)
    close = nearest(word, known)
    return f"unknown {what} {word!r}; " + (f"the nearest is {close!r}" if close else f"known: {', '.join(known)}")


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
