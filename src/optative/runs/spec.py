"""The run spec: YAML (or the same thing as a mapping) to checked options, with the line of every fault.

Knows: the parts' tables of names. Does not know: models, torch; `validate` costs no more than this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import SerializeAsAny

from optative.core.config import Config, Field, Table, one_named, parse
from optative.core.errors import InputError, nearest, unknown
from optative.core.ids import content_hash
from optative.evaluation.options import METRICS
from optative.feedback.options import FEEDBACK, OnPolicy
from optative.generators.options import GENERATORS, LanguageModelOptions
from optative.objectives.options import OBJECTIVES, VerifiableInstructions
from optative.optimizers.options import OPTIMIZERS, Preference

TRACKERS = ("tensorboard",)


class Criterion(Config):
    """What has to come out, or the run ends with exit code 3; the interval must lie above zero too."""

    metric: str = Field("prompt_accuracy", description="Name of a metric of the evaluation.")
    split: Literal["held_out", "unseen_kinds"] = Field("held_out", description="The prompts that it is measured on.")
    smallest_difference: float = Field(
        0.0, description="Steered minus base must reach this (accuracies are shares, 0 to 1)."
    )


class Document(Config):
    """The top level of a spec file; each part is named by its one key."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="First half of the run folder's name."
    )
    objective: dict[str, Any] = Field(..., description="What is wanted.")
    generator: dict[str, Any] = Field(..., description="What is steered.")
    feedback: dict[str, Any] = Field(..., description="Who is asked.")
    optimizer: dict[str, Any] = Field(..., description="How it is steered.")
    evaluation: tuple[str, ...] = Field(tuple(METRICS), description="What is measured on held-out prompts.")
    require: Criterion | None = Field(
        None, description="A criterion; when it is not met the run ends with exit code 3."
    )
    track: tuple[str, ...] = Field((), description="Trackers beside metrics.jsonl: tensorboard.")
    seed: int = Field(
        0, ge=0, description="Varies training prompts, samples, initialisation and order; never the held-out prompts."
    )
    quick: dict[str, Any] = Field({}, description="Overrides (dotted: value) that --quick applies.")


class Spec(Config):
    """A checked spec: every part with its own options."""

    name: str
    objective: VerifiableInstructions
    generator: LanguageModelOptions
    feedback: OnPolicy
    loss: str
    optimizer: SerializeAsAny[Preference]
    evaluation: tuple[str, ...]
    require: Criterion | None = None
    track: tuple[str, ...] = ()
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """All that decides the numbers, as plain JSON; trackers and criteria are not part of it."""
        return self.model_dump(mode="json", exclude={"track", "require"})

    @property
    def key(self) -> str:
        return content_hash(self.options)


def example_text(name: str = "instruction_following") -> str:
    """The text of a spec that comes with the package."""
    return (files("optative.runs") / "examples" / f"{name}.yaml").read_text("utf-8")


def load_spec(
    source: str | Path | Mapping[str, Any] | None = None, *, overrides: Sequence[str] = (), quick: bool = False
) -> tuple[Spec, str]:
    """A spec from a file, a mapping, or (None) the embedded example; returns it with its text as given.

    overrides: `a.b=c` settings that win over the file and over `quick`.
    """
    lines: dict[str, int] = {}
    file: Path | None = None
    if isinstance(source, Mapping):
        raw, text = _deep_copy(source), yaml.safe_dump(_deep_copy(source), sort_keys=False, allow_unicode=True)
    else:
        if source is None:
            text = example_text()
        else:
            file = Path(source)
            if not file.is_file():
                raise InputError("no such spec file", file=file, hint="`optative init` writes one.")
            try:
                text = file.read_text("utf-8-sig")
            except UnicodeDecodeError as error:
                raise InputError(f"not UTF-8 at byte {error.start}", file=file) from None
        raw, lines = read_yaml(text, file)
    if not isinstance(raw, dict):
        raise InputError(
            "wrong type", file=file, found=raw, expected="a mapping with objective, generator, feedback and optimizer"
        )
    if quick:
        settings = raw.get("quick")
        if not settings:
            raise InputError(
                "the spec has no quick form", file=file, field="quick", expected="a mapping of dotted overrides"
            )
        if isinstance(settings, dict):
            for path, value in settings.items():
                _set(raw, str(path), value)
    for setting in overrides:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            raise InputError("not a setting", field="--set", found=setting, expected="a.b=value")
        try:
            _set(raw, path, yaml.safe_load(value))
        except yaml.YAMLError:
            raise InputError("the value is not YAML", field=f"--set {path}", found=value) from None
    raw_quick = raw.pop("quick", {})
    document = parse(Document, {**raw, "quick": raw_quick} if raw_quick else raw, file=file, lines=lines)

    def part(field: str, table: Table) -> tuple[str, Any]:
        return one_named(table, getattr(document, field), at=field, file=file, lines=lines)

    for field, known in (("evaluation", METRICS), ("track", TRACKERS)):
        for name in getattr(document, field):
            if name not in known:
                raise InputError(unknown("name", name, known), file=file, line=lines.get(field), field=field)
    _, generator = part("generator", GENERATORS)
    if not isinstance(generator, LanguageModelOptions):
        raise InputError(
            "an endpoint cannot be steered: its weights are not here; only `optative evaluate` can use it",
            file=file,
            line=lines.get("generator"),
            field="generator",
        )
    loss, optimizer = part("optimizer", OPTIMIZERS)
    if optimizer.eval_every:
        raise InputError(
            "cannot act: an on-policy run has no held-out pairs to measure between steps",
            file=file,
            line=lines.get(f"optimizer.{loss}.eval_every"),
            field=f"optimizer.{loss}.eval_every",
            hint="objective.verifiable_instructions.validation: 100 measures the policy after each round.",
        )
    return (
        Spec(
            name=document.name,
            objective=part("objective", OBJECTIVES)[1],
            generator=generator,
            feedback=part("feedback", FEEDBACK)[1],
            loss=loss,
            optimizer=optimizer,
            evaluation=document.evaluation,
            require=document.require,
            track=document.track,
            seed=document.seed,
        ),
        text,
    )


def read_yaml(text: str, file: Path | None) -> tuple[Any, dict[str, int]]:
    """The value and the line of each dotted path; a key given twice is an error."""
    lines: dict[str, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _lines(node, "", lines, file)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"not YAML: {error.problem}", file=file, line=mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", file=file) from None


def _lines(node: yaml.Node, at: str, lines: dict[str, int], file: Path | None) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{at}.{key.value}" if at else str(key.value)
            line = key.start_mark.line + 1
            if path in lines:
                raise InputError(f"given twice, first in line {lines[path]}", file=file, line=line, field=path)
            lines[path] = line
            _lines(value, path, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{at}.{index}"] = value.start_mark.line + 1
            _lines(value, f"{at}.{index}", lines, file)


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    at = raw
    for depth, name in enumerate(parents):
        if depth == 0 and name not in Document.model_fields:
            close = nearest(name, Document.model_fields)
            raise InputError(f"unknown key {name!r}" + (f"; the nearest is {close!r}" if close else ""), field=path)
        inner = at.get(name)
        if inner is None:
            inner = at[name] = {}
        if not isinstance(inner, dict):
            raise InputError(f"{name} is not a mapping", field=path, found=inner)
        at = inner
    at[last] = value


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _deep_copy(v) for k, v in value.items()}
    return [_deep_copy(v) for v in value] if isinstance(value, (list, tuple)) else value
