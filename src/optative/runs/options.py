"""Options of `optative align`: a preference file and a model, no spec.

Knows: which options there are. Does not know: torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import field_validator

from optative.core.config import Config, Field, one_named, parse
from optative.core.errors import InputError, unknown
from optative.generators.options import LoraOptions
from optative.optimizers.options import OPTIMIZERS, Preference

STARTS: dict[str, dict[str, Any]] = {"dpo": {"nll_weight": 0.1}}  # what `align` adds to a loss's own defaults


class Align(Config):
    """Offline preference training with a held-out part of the pairs."""

    file: str = Field(..., description="The preference file.")
    model: str = Field(
        "smollm2-135m-instruct", min_length=1, description="A built-in model, a Hugging Face folder, or a hub id."
    )
    format: str | None = Field(None, description="Format of the file; detected when not named.")
    template: str | None = Field(
        None, description="Chat template in place of the model's own: a named one or a Jinja file."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of the frozen weights.")
    lora: LoraOptions | None = Field(
        LoraOptions(), description="The adapter that is trained; null trains all weights, in float32."
    )
    optimizer: dict[str, dict[str, Any]] = Field(
        {"dpo": {"learning_rate": 2e-4, **STARTS["dpo"]}},
        description="One loss by name, with its options; `optative explain optimizer` lists them.",
    )
    max_length: int = Field(1024, ge=2, description="Most tokens of a prompt and an answer together.")
    on_long_prompt: Literal["error", "truncate_left"] = Field(
        "error", description="What to do with a prompt that leaves no room."
    )
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="Identical pair, empty answer, too long prompt: stop, or skip and count."
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of the prompts whose pairs are kept for the evaluation."
    )
    seed: int = Field(0, ge=0, description="Varies the split, initialisation and order.")

    @field_validator("optimizer")
    @classmethod
    def _complete(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        name, options = one_named(OPTIMIZERS, given, at="optimizer")
        return {name: options.model_dump(mode="json")}

    @property
    def loss(self) -> str:
        return next(iter(self.optimizer))

    @property
    def training(self) -> Preference:
        config, _ = OPTIMIZERS[self.loss]
        found = config.model_validate(self.optimizer[self.loss])
        assert isinstance(found, Preference)
        return found


def align_options(
    file: Path, *, model: str, format: str | None, seed: int, overrides: Sequence[str], loss: str = "dpo"
) -> Align:
    """Options from the command line; `a.b=c` settings are checked like a spec."""
    if not file.exists():
        raise InputError("no such file", file=file)
    if loss not in OPTIMIZERS:
        raise InputError(unknown("loss", loss, OPTIMIZERS), field="--loss", hint="`optative explain` lists them.")
    start: dict[str, Any] = {"learning_rate": 2e-4, **STARTS.get(loss, {})}
    raw: dict[str, Any] = {
        "file": str(file),
        "model": model,
        "format": format,
        "seed": seed,
        "optimizer": {loss: start},
    }
    for setting in overrides:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            raise InputError("not a setting", field="--set", found=setting, expected="a.b=value")
        if path.split(".")[0] in OPTIMIZERS:
            path = f"optimizer.{path}"
        if path.startswith("optimizer.") and path.split(".")[1] != loss:
            raise InputError("not the loss of this run", field=f"--set {path}", expected=f"--loss {path.split('.')[1]}")
        *parents, last = path.split(".")
        at: Any = raw
        for name in parents:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise InputError("is not a mapping", field=f"--set {path}", found=at)
        at[last] = yaml.safe_load(value)
    one_named(OPTIMIZERS, raw["optimizer"], at="optimizer")  # its faults are told under the names of its options
    return parse(Align, raw)
