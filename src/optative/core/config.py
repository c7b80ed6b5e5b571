"""The base of all options: frozen, unknown keys refused with the nearest known one.

Knows: pydantic. Does not know: YAML, lines, which parts exist (`runs.spec` does).
An option is written once, as a field with a description; YAML, `--set`, `--help` and the docs come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optative.core.errors import InputError, InputErrors, unknown

__all__ = ["Config", "Field", "Table", "look_up", "one_named", "parse"]

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Options of one part. Subclasses add fields with `Field(default, description=...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True, allow_inf_nan=False)


Table = Mapping[str, tuple[type[Config], str]]  # name -> (its options, "module:function")


def parse(cls: type[C], given: Any, *, at: str = "", file: Any = None, lines: Mapping[str, int] | None = None) -> C:
    """Check `given` (a mapping) against the options `cls`; every fault is one line of one `InputErrors`.

    `at`: dotted path of the mapping inside the document, for messages. `lines`: dotted path -> line in `file`.
    """
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise InputError(
            "wrong type", file=file, line=_line(lines, at), field=at or None, found=given, expected="a mapping"
        )
    try:
        return cls.model_validate(dict(given))
    except ValidationError as error:
        raise InputErrors([_fault(cls, e, at, file, lines) for e in error.errors(include_url=False)]) from None


def one_named(
    table: Table, given: Any, *, at: str, file: Any = None, lines: Mapping[str, int] | None = None
) -> tuple[str, Config]:
    """Name and options of `{name: {options}}` with exactly one name that the table knows."""
    if not isinstance(given, Mapping) or len(given) != 1:
        raise InputError(
            "needs exactly one name",
            file=file,
            line=_line(lines, at),
            field=at,
            found=sorted(given) if isinstance(given, Mapping) else given,
            expected=f"one of {', '.join(table)}",
        )
    name = next(iter(given))
    if name not in table:
        raise InputError(unknown(at, name, table), file=file, line=_line(lines, f"{at}.{name}"), field=at)
    return name, parse(table[name][0], given[name], at=f"{at}.{name}", file=file, lines=lines)


def look_up(table: Table, name: str, what: str) -> tuple[type[Config], Any]:
    """The options and the function behind a literal name; the module is imported only now."""
    if name not in table:
        raise InputError(unknown(what, name, table))
    cls, path = table[name]
    module, _, function = path.partition(":")
    return cls, getattr(import_module(module), function)


def _fault(cls: type[Config], error: Any, at: str, file: Any, lines: Mapping[str, int] | None) -> InputError:
    path = [str(p) for p in error["loc"]]
    field = ".".join(([at] if at else []) + path)
    line = _line(lines, field)
    if error["type"] == "extra_forbidden":
        known = _known(cls, path[:-1])
        return InputError(unknown("key", path[-1], known), file=file, line=line, field=field)
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "value_error" and isinstance(error.get("input"), Mapping):
        return InputError(message, file=file, line=line, field=field)  # about several fields, which it names
    return InputError(message, file=file, line=line, field=field, found=error.get("input"))


def _known(cls: Any, path: list[str]) -> list[str]:
    for name in path:
        field = getattr(cls, "model_fields", {}).get(name)
        if field is None:
            break
        cls = next(
            (a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(a, "model_fields")),
            cls,
        )
    return list(getattr(cls, "model_fields", {}))


def _line(lines: Mapping[str, int] | None, field: str) -> int | None:
    while lines:
        if field in lines:
            return lines[field]
        if "." not in field:
            return None
        field = field.rpartition(".")[0]
    return None
