"""One record of a file before it means anything, and the two kinds of fault that it may have.

Knows: plain values, where they stood, how a number may be written. Does not know: file types, formats.
A fault of structure (broken JSON, missing column, wrong type) always ends the reading with an error. A fault of meaning
(identical pair, empty answer, a score of "85%") follows `on_bad_record`.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from optative.core.errors import InputError, nearest

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"


class BadStructure(InputError):
    """The file is not what it claims to be; nothing is read from it."""


class BadMeaning(InputError):
    """The record is well-formed but cannot be used. `kind` is the count that it goes to."""

    def __init__(self, kind: str, message: str, **where: Any) -> None:
        super().__init__(message, **where)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Row:
    """`line`: the physical line where the record starts, counted from 1 and blank lines included, or its row number in
    a table. `textual`: the file type has only strings (CSV), so that lists and numbers are written as text."""

    file: str
    line: int
    value: dict[str, Any]
    textual: bool = False

    def structure(self, message: str, field: str | None = None, **details: Any) -> BadStructure:
        return BadStructure(message, file=self.file, line=self.line, field=field, **details)

    def meaning(self, kind: str, message: str, field: str | None = None, **details: Any) -> BadMeaning:
        return BadMeaning(kind, message, file=self.file, line=self.line, field=field, **details)

    def get(self, name: str) -> Any:
        """An optional value; None when the column, or the value, is absent (an empty cell of a CSV is absent)."""
        value = self.value.get(name)
        return None if self.textual and value == "" else value

    def need(self, name: str) -> Any:
        """A value whose column must be there; it may be None."""
        if name not in self.value:
            close = nearest(name, self.value)
            hint = f"the nearest is {close!r}" if close else f"found {', '.join(map(repr, self.value)) or 'no column'}"
            raise self.structure(f"missing; {hint}", name)
        return self.value[name]

    def unpacked(self, name: str) -> Any:
        """Like `need`; where a table can only hold text, the JSON of a list or object is unpacked."""
        value = self.need(name)
        if isinstance(value, str) and value[:1] in ("[", "{"):
            try:
                return plain(json.loads(value))
            except ValueError as error:
                raise self.structure("not JSON", name, found=value) from error
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A list of objects."""
        value = self.unpacked(name)
        if not isinstance(value, list):
            raise self.structure("wrong type", name, found=value, expected="a list of objects")
        for i, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.structure("wrong type", f"{name}[{i}]", found=item, expected="an object")
        return value

    def number(self, value: Any, at: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """A finite number, or text that is one; None stays None. A bool, a percentage or a word is a bad value."""
        if value is None:
            return None
        expected = "a number" if low == -math.inf else f"a number from {low:g} to {high:g}"
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            scale = " on the column's scale" if isinstance(value, str) and low == -math.inf else ""
            raise self.meaning("bad_value", "not a number", at, found=_as_json(value), expected=expected + scale)
        if not -1e300 < value < 1e300 or not low <= value <= high:
            raise self.meaning("bad_value", "out of range", at, found=value, expected=expected)
        return float(value)

    def truth(self, name: str) -> bool:
        """True or false; 0 and 1, and the words, count as well."""
        value = self.need(name)
        word = value.strip().lower() if isinstance(value, str) else value
        if isinstance(word, (bool, int, float)) and word in (0, 1):
            return bool(word)
        if isinstance(word, str) and word in ("true", "false", "1", "0"):
            return word in ("true", "1")
        raise self.meaning("bad_value", "not a label", name, found=_as_json(value), expected="true or false")


def plain(value: Any) -> Any:
    """JSON values only, without keys that hold no value.

    Tables give every message the union of all keys, the missing ones as null; a key without a value is therefore no
    key, in every file type alike. NaN, which tables write for a missing number, is null. Raises UnicodeEncodeError for
    half of a surrogate pair.
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode("utf-8")
        return value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        cleaned = ((str(k), plain(v)) for k, v in value.items())
        return {k: v for k, v in cleaned if v is not None}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, decimal.Decimal)):
        return value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode("ascii")}
    return str(value)


def broken_text(value: Any, at: str = "") -> str | None:
    """The path of the first string that is not valid Unicode."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return at
        return None
    if isinstance(value, dict):
        parts = [(v, f"{at}.{k}" if at else str(k)) for k, v in value.items()]
    elif isinstance(value, list):
        parts = [(v, f"{at}[{i}]") for i, v in enumerate(value)]
    else:
        return None
    return next((found for v, path in parts if (found := broken_text(v, path)) is not None), None)


def blank(text: str) -> bool:
    """No visible character."""
    return not text.strip().strip(_INVISIBLE).strip()


class _as_json:
    """Shows a value in messages as it stands in the file: `true`, not `True`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return json.dumps(self.value, ensure_ascii=False, default=str)
