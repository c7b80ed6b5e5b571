"""`optative explain`: what a name in a spec stands for.

Knows: the tables of names and their options, how they are shown. Does not know: what is behind a name; nothing heavy
is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from optative.core.config import Config, Table

LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def explain(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A name, such as optimizer.simpo, or a part: optimizer.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of all losses as Markdown.")] = False,
) -> None:
    """Say what a name in a spec stands for: what it does and needs, its options, when to use it, its source.

    Without a name: all names. A loss is an optimizer: `optative explain optimizer.dpo`, or only `dpo`.
    """
    from optative.cli.output import print_json
    from optative.core.errors import InputError

    if markdown:
        if name not in (None, "optimizer") or json:
            raise InputError("prints the table of all losses and takes neither a name nor --json", field="--markdown")
        print(losses_table(), end="")
        return
    parts = tables()
    if name is None or name in parts:
        listed = [entry for part in parts if name in (None, part) for entry in _listed(part, parts[part])]
        if json:
            print_json(listed)
            return
        width = max(len(entry["name"]) for entry in listed)
        for entry in listed:
            print(f"{entry['name']:{width}}  {entry['about']}")
        return
    found = details(*_resolve(name, parts))
    if json:
        print_json(found)
    else:
        print("\n".join(_words(found)))


def tables() -> dict[str, Table]:
    """The tables of names, by the key of a spec under which they stand."""
    from optative.evaluation.options import METRICS
    from optative.feedback.options import FEEDBACK
    from optative.generators.options import GENERATORS
    from optative.objectives.options import OBJECTIVES
    from optative.optimizers.options import OPTIMIZERS

    return {
        "objective": OBJECTIVES,
        "generator": GENERATORS,
        "feedback": FEEDBACK,
        "optimizer": OPTIMIZERS,
        "evaluation": METRICS,
    }


def details(part: str, name: str) -> dict[str, Any]:
    """All that is known of a name, as plain JSON."""
    from optative.optimizers.options import LOSSES, VARIANTS, own_fields

    if part == "optimizer" and name in VARIANTS:
        base, settings, source = VARIANTS[name]
        return {"name": f"{part}.{name}", "is": f"{part}.{base}", "settings": settings, "source": source}
    config = tables()[part][name][0]
    found: dict[str, Any] = {"name": f"{part}.{name}", "about": _about(config)}
    own = list(config.model_fields)
    if part == "optimizer":
        loss, own = LOSSES[name], own_fields(LOSSES[name].config)
        found |= {
            "formula": loss.formula,
            "needs": loss.needs,
            "kind": loss.kind,
            "reference": loss.reference,
            "coupled": loss.coupled,
            "when": loss.when,
            "source": loss.source,
            "variants": [variant for variant, (base, *_) in VARIANTS.items() if base == name],
        }
    options = [{**option, "common": option["name"].partition(".")[0] not in own} for option in _options(config)]
    return {**found, "options": sorted(options, key=lambda option: option["common"])}


def losses_table() -> str:
    """The page of all losses, as Markdown."""
    from optative.optimizers.options import LEGEND, LOSSES, VARIANTS

    lines = [
        "# Losses",
        "",
        "Written by `optative explain --markdown > docs/losses.md` from `optative.optimizers.options`; do not edit.",
        "`optative explain optimizer.NAME` prints the options of a loss, with their defaults.",
        "",
        *(f"- {item}" for item in LEGEND.rstrip(".").split("; ")),
        "",
        "| name | formula | needs | when | source |",
        "|---|---|---|---|---|",
        *(_row(f"`{name}`", f"`{loss.formula}`", loss.needs, loss.when, loss.source) for name, loss in LOSSES.items()),
        "",
        "With a confidence p of a label, or a `label_smoothing`, a loss f(z) of a pair becomes p f(z) + (1 - p) f(-z),",
        "where the loss has that option. Other names in use, which are settings of the losses above:",
        "",
        "| name | is | with | source |",
        "|---|---|---|---|",
        *(
            _row(f"`{name}`", f"`{base}`", f"`{_settings(settings)}`" if settings else "", source)
            for name, (base, settings, source) in VARIANTS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _resolve(name: str, parts: Mapping[str, Table]) -> tuple[str, str]:
    """Part and name of `optimizer.dpo`, or of `dpo` alone where only one part has it."""
    from optative.core.errors import InputError, unknown
    from optative.optimizers.options import VARIANTS

    known = {part: [*table, *(VARIANTS if part == "optimizer" else ())] for part, table in parts.items()}
    part, dot, rest = name.partition(".")
    if dot and part in known:
        if rest not in known[part]:
            raise InputError(unknown(part, rest, known[part]))
        return part, rest
    owners = [part for part in known if name in known[part]]
    if len(owners) == 1:
        return owners[0], name
    full = [f"{part}.{entry}" for part in known for entry in known[part]]
    if not dot:
        full += [entry for entries in known.values() for entry in entries] + list(parts)
    raise InputError(unknown("name", name, full))


def _listed(part: str, table: Table) -> Iterator[dict[str, str]]:
    from optative.optimizers.options import LOSSES, VARIANTS

    for name, (config, _) in table.items():
        yield {"name": f"{part}.{name}", "about": LOSSES[name].when if part == "optimizer" else _about(config)}
    if part == "optimizer":
        for name, (base, settings, _) in VARIANTS.items():
            yield {"name": f"{part}.{name}", "about": _variant(base, settings)}


def _variant(base: str, settings: Mapping[str, Any]) -> str:
    return f"the same as {base}" + (f" with {_settings(settings)}" if settings else "")


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}: {_value(value)}" for field, value in settings.items())


def _about(config: type[Config]) -> str:
    return " ".join((config.__doc__ or "").partition("\n\n")[0].split())


def _options(config: type[Config], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Every option with its default; those of a part within are named `lora.rank`."""
    from optative.core.config import Config as Base

    for name, field in config.model_fields.items():
        if isinstance(field.default, Base):
            yield from _options(type(field.default), f"{prefix}{name}.")
            continue
        required = field.is_required()
        yield {
            "name": prefix + name,
            "required": required,
            "default": None if required else field.default,
            "allowed": _allowed(field),
            "description": field.description or "",
        }


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " | ".join(map(str, get_args(field.annotation)))
    limits = [
        f"{word} {limit:g}"
        for rule in field.metadata
        for sign, word in LIMITS.items()
        if (limit := getattr(rule, sign, None)) is not None
    ]
    return ", ".join(limits)


def _words(found: Mapping[str, Any]) -> Iterator[str]:
    if "is" in found:
        base = found["is"]
        yield f"{found['name']}: {_variant(base, found['settings'])}"
        yield f"source   {found['source']}"
        yield f"options  optative explain {base}"
        return
    yield f"{found['name']}: {found['about']}"
    if "formula" in found:
        from optative.optimizers.options import LEGEND

        for field in ("formula", "needs", "when", "source"):
            yield f"{field:8} {found[field]}"
        if found["variants"]:
            yield f"{'also':8} {', '.join(found['variants'])}"
        yield f"\n{LEGEND}"
    width = max((len(option["name"]) for option in found["options"]), default=0)
    for common in (False, True):
        options = [option for option in found["options"] if option["common"] is common]
        if options:
            yield "\nCommon options:" if common else "\nOptions:"
        for option in options:
            default = "required" if option["required"] else f"default {_value(option['default'])}"
            facts = "; ".join(filter(None, [default, option["allowed"]]))
            yield f"  {option['name']:{width}}  {option['description']} ({facts})"


def _value(value: Any) -> str:
    """A value as YAML has it on one line."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
