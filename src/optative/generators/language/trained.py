"""Which weights of a model are trained: those of its adapter, or all of them.

Knows: parameters by name, and the weights that training began with. Does not know: losses, runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optative.core.errors import InputError
from optative.core.files import write_bytes
from optative.core.ids import file_hash
from optative.generators.language import adapters
from optative.generators.language.model import LanguageModel
from optative.generators.options import LoraOptions

_START = "_optative_start"  # on the module: the weights before full fine-tuning, for the reference


def prepare_training(lm: LanguageModel, lora: LoraOptions | None, seed: int, *, keep_start: bool = False) -> None:
    """Put a fresh adapter on the model, or with `lora=None` make all its weights trainable.

    keep_start: keep a copy of all weights, so that `starting_point` can give the policy as it began while it is
    trained. An adapter needs none. Raises InputError for full fine-tuning in another dtype than float32: updates
    smaller than a rounding step of bfloat16 would be lost.
    """
    if lora is not None:
        if not adapters.has_adapter(lm):  # else the model came with one to start from
            adapters.add_lora(lm, lora, seed=seed)
        return
    import torch

    if lm.dtype != torch.float32:
        raise InputError(
            "full fine-tuning trains float32 weights",
            field="dtype",
            found=str(lm.dtype).removeprefix("torch."),
            expected="float32",
        )
    for parameter in lm.model.parameters():
        parameter.requires_grad_(True)
    start = {name: p.detach().clone() for name, p in lm.model.named_parameters()} if keep_start else None
    object.__setattr__(lm.model, _START, (start, _version(lm)))


def is_full(lm: LanguageModel) -> bool:
    """Are all weights trained?"""
    return not adapters.has_adapter(lm)


def trained_parameters(lm: LanguageModel) -> dict[str, Any]:
    """The float32 parameters that are trained, by name, sorted; tied ones once, frozen ones not at all."""
    if is_full(lm):
        found = {name: p for name, p in sorted(lm.model.named_parameters()) if p.requires_grad}
        assert found, "no weight of this model is trained; prepare_training comes first"
        return found
    return adapters.lora_parameters(lm)


@contextlib.contextmanager
def starting_point(lm: LanguageModel) -> Iterator[None]:
    """The policy as it was when training began, dropout off; the trained weights are back afterwards, bit-equal."""
    if not is_full(lm):
        with adapters.reference_mode(lm):
            yield
        return
    import torch

    start, version = getattr(lm.model, _START)
    if start is None and _version(lm) != version:
        raise RuntimeError("the weights that training began with were not kept")
    parameters = dict(lm.model.named_parameters())
    trained = {name: p.data for name, p in parameters.items()}
    training = lm.model.training
    lm.model.eval()
    try:
        for name, parameter in parameters.items() if start else ():
            parameter.data = start[name]
        with torch.no_grad():
            yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = trained[name]
        lm.model.train(training)


def _version(lm: LanguageModel) -> int:
    """Goes up with every change of a weight in place, such as a step's."""
    return sum(int(parameter._version) for parameter in lm.model.parameters())


def save_trained(lm: LanguageModel, file: Path) -> str:
    """Write the trained weights as one safetensors file, whole or not at all, and return its hash."""
    if not is_full(lm):
        adapters.save_weights(lm, file)
    else:
        from safetensors.torch import save

        write_bytes(file, save({name: p.detach().cpu().contiguous() for name, p in trained_parameters(lm).items()}))
    return file_hash(file)


def interpolate(lm: LanguageModel, start: Mapping[str, Any], end: Mapping[str, Any], share: float) -> None:
    """Set the trained weights to `start` + share x (`end` - `start`), by name; 0 and 1 give the ends bit-equal."""
    import torch

    with torch.no_grad():
        for name, parameter in trained_parameters(lm).items():
            parameter.copy_(torch.lerp(start[name], end[name], share))


def copied(lm: LanguageModel) -> dict[str, Any]:
    """The trained weights as they are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(lm).items()}


def load_trained(lm: LanguageModel, file: Path) -> None:
    """Put weights that `save_trained` wrote into the model, bit-equal."""
    if not is_full(lm):
        adapters.load_weights(lm, file)
        return
    import torch
    from safetensors.torch import load_file

    saved = load_file(file)
    with torch.no_grad():
        for name, parameter in trained_parameters(lm).items():
            parameter.copy_(saved[name])
