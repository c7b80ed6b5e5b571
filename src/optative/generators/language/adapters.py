"""LoRA adapters: put one on, switch it off, compare with where it started, merge it for a while, save and load it.

Knows: PEFT's layers. Does not know: losses, optimizers, how a run folder is laid out.

The frozen weights stay in the model's dtype; adapters are float32 always. A model carries at most two adapters:
`policy`, which trains (PEFT's name `default`), and, where the policy started from a saved adapter, `reference`, a
frozen copy of that start. The reference of a fresh adapter is the bare base, which is the same policy, because B = 0
adds nothing.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optative.core.errors import InputError, nearest
from optative.core.files import atomic_folder, read_json, write_bytes, write_json
from optative.core.rng import stream
from optative.generators.language.model import LanguageModel
from optative.generators.language.quiet import quiet
from optative.generators.options import LoraOptions

__all__ = [
    "LoraOptions",
    "adapter_off",
    "add_lora",
    "freeze_reference",
    "has_adapter",
    "load_adapter",
    "load_weights",
    "lora_parameters",
    "merged",
    "read_adapter_config",
    "reference_mode",
    "save_adapter",
    "save_weights",
    "write_adapter",
]

POLICY, REFERENCE = "default", "reference"
CONFIG_FILE, WEIGHTS_FILE, EXTRAS_FILE = "adapter_config.json", "adapter_model.safetensors", "optative.json"


def has_adapter(lm: LanguageModel) -> bool:
    return hasattr(lm.model, "peft_config")


def add_lora(lm: LanguageModel, options: LoraOptions, seed: int) -> None:
    """Put a fresh adapter on `lm` (in place); everything else is frozen.

    A is uniform within 1/sqrt(inputs), as PEFT and nn.Linear draw it, B is zero. The numbers are keyed by (seed,
    layer), so that they depend neither on the global random state, which is left as it was, nor on which layers are
    adapted. Raises InputError when a target names no linear layer.
    """
    import peft
    import torch

    if has_adapter(lm):
        raise RuntimeError("the model already has an adapter")
    targets = _targets(lm.model, options.targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=targets,
        lora_dropout=options.dropout,
        bias="none",
    )
    with quiet(), torch.random.fork_rng(_cuda(lm)):
        lm.model = peft.get_peft_model(lm.model, config, autocast_adapter_dtype=True).eval()
    with torch.no_grad():
        for name, parameter in lora_parameters(lm).items():
            if ".lora_A." in name:
                bound = parameter.shape[1] ** -0.5
                layer = name.removeprefix("base_model.model.").replace(f".{POLICY}", "")
                values = stream(seed, "lora", layer).uniform(-bound, bound, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(values))
    lm.model.peft_config[POLICY].base_model_name_or_path = lm.hub_id or lm.name


def lora_parameters(lm: LanguageModel) -> dict[str, Any]:
    """The float32 parameters of the policy's adapter by name, sorted: what is trained and stored in checkpoints."""
    found = {
        n: p for n, p in lm.model.named_parameters() if f".{POLICY}." in n and ("lora_" in n or "modules_to_save" in n)
    }
    return dict(sorted(found.items()))


@contextlib.contextmanager
def adapter_off(lm: LanguageModel) -> Iterator[None]:
    """The bare base model inside the block, dropout off. For the start of a run use `reference_mode`."""
    with _kept(lm):
        if has_adapter(lm):
            lm.model.base_model.disable_adapter_layers()
        yield


@contextlib.contextmanager
def reference_mode(lm: LanguageModel) -> Iterator[None]:
    """The policy as it was at the start, dropout off: the frozen copy of the starting adapter, or else the base."""
    with _kept(lm):
        if has_adapter(lm):
            if REFERENCE in lm.model.peft_config:
                lm.model.set_adapter(REFERENCE, inference_mode=True)
            else:
                lm.model.base_model.disable_adapter_layers()
        yield


@contextlib.contextmanager
def merged(lm: LanguageModel) -> Iterator[None]:
    """Inside the block the adapter is part of the weights, so that sampling pays nothing for it; dropout off.

    The sum is made in float32 and rounded once to the frozen dtype: in float32 it differs from the unmerged model by
    rounding only, in bfloat16 by bfloat16's rounding of the weights. Layers get new weight objects and then their old
    ones back, so that the frozen weights are the same bits afterwards, also after an error, and a head tied to the
    embedding leaves the embedding alone. Costs a second copy of the adapted weights. Cannot be nested.
    """
    import torch

    with _kept(lm):
        layers = list(_lora_layers(lm))
        originals = [layer.base_layer.weight for layer in layers]
        try:
            with torch.no_grad():
                for layer, weight in zip(layers, originals, strict=True):
                    total = weight.float() + layer.get_delta_weight(POLICY).float()
                    layer.base_layer.weight = torch.nn.Parameter(total.to(weight.dtype), requires_grad=False)
                    layer.merged_adapters.append(POLICY)
            yield
        finally:
            for layer, weight in zip(layers, originals, strict=True):
                layer.base_layer.weight = weight
                layer.merged_adapters.clear()


def freeze_reference(lm: LanguageModel) -> None:
    """From now on `reference_mode` gives the policy as it is now: a start from an adapter, or a new round."""
    import torch

    if not has_adapter(lm):
        raise RuntimeError("no adapter to take the reference from")
    if REFERENCE not in lm.model.peft_config:
        config = copy.deepcopy(lm.model.peft_config[POLICY])
        config.inference_mode = True
        with quiet(), torch.random.fork_rng(_cuda(lm)):
            lm.model.add_adapter(REFERENCE, config)
        lm.model.set_adapter(POLICY)
    parameters = dict(lm.model.named_parameters())
    with torch.no_grad():
        for name, parameter in lora_parameters(lm).items():
            other = parameters[name.replace(f".{POLICY}.", f".{REFERENCE}.")]
            other.copy_(parameter)
            other.requires_grad_(False)


def save_adapter(lm: LanguageModel, folder: str | Path) -> None:
    """Write the policy's adapter as a folder in PEFT's layout, whole or not at all; see `write_adapter`."""
    with atomic_folder(folder) as temporary:
        write_adapter(lm, temporary)


def write_adapter(lm: LanguageModel, folder: Path) -> None:
    """Files that `PeftModel.from_pretrained(base, folder)` loads without optative; equal weights give equal bytes.

    The base is named by hub id or name, never by a path. `optative.json` beside it holds the fingerprint of the base
    and the hash of the chat template; `chat_template.jinja` is the template itself.
    """
    from safetensors.torch import save_file

    config = copy.deepcopy(lm.model.peft_config[POLICY])
    config.base_model_name_or_path = lm.hub_id or lm.name
    config.revision = None
    config.inference_mode = True
    if isinstance(config.target_modules, set):  # a set has another order in each process
        config.target_modules = sorted(config.target_modules)
    save_file(_policy_weights(lm), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(lm.template.source, encoding="utf-8", newline="")
    base = {"name": lm.name, "hub_id": lm.hub_id, "fingerprint": lm.fingerprint}
    write_json(folder / EXTRAS_FILE, {"base": base, "template_hash": lm.template.hash})


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The checked `adapter_config.json`: plain LoRA only. InputError names the file, the field and what was found."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"not an adapter: it has no {CONFIG_FILE}", file=folder)
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError("wrong type", file=file, found=config, expected="an object")
    if config.get("peft_type") != "LORA":
        raise InputError(
            "only LoRA adapters", file=file, field="peft_type", found=config.get("peft_type"), expected="'LORA'"
        )
    for field, plain in (("use_dora", False), ("lora_bias", False), ("bias", "none"), ("target_parameters", None)):
        value = config.get(field, plain)
        if value not in (plain, None, []):
            raise InputError("not supported", file=file, field=field, found=value, expected=repr(plain))
    if not any((Path(folder) / name).is_file() for name in (WEIGHTS_FILE, "adapter_model.bin")):
        raise InputError(f"not an adapter: it has no {WEIGHTS_FILE}", file=folder)
    return config


def load_adapter(lm: LanguageModel, folder: str | Path) -> None:
    """Put a saved adapter on `lm` (in place) as the policy, and freeze a copy of it as the reference.

    The adapter's own dropout is not used: log-probabilities of the policy and of the reference have to agree at the
    start. Raises InputError when the folder is no LoRA adapter, or belongs to a base of another shape (first tensor,
    both shapes).
    """
    import peft
    import torch

    config = read_adapter_config(folder)
    weights = _read_weights(folder)
    try:
        lora = peft.LoraConfig.from_pretrained(str(folder))
        lora.lora_dropout, lora.inference_mode = 0.0, False
        lora.base_model_name_or_path = lm.hub_id or lm.name
        with quiet(), torch.random.fork_rng(_cuda(lm)):
            lm.model = peft.get_peft_model(lm.model, lora, autocast_adapter_dtype=True).eval()
    except ValueError as error:  # PEFT: no layer of that name
        raise InputError(
            f"does not fit {lm.name}: {str(error).splitlines()[0]}",
            file=Path(folder) / CONFIG_FILE,
            field="target_modules",
            found=config.get("target_modules"),
            expected=f"names among {', '.join(_linear_names(lm.model))}",
        ) from None
    _put_weights(lm, weights, folder)
    freeze_reference(lm)


def save_weights(lm: LanguageModel, file: str | Path) -> None:
    """The policy's weights alone, for a checkpoint: one safetensors file, atomic; equal weights give equal bytes."""
    from safetensors.torch import save

    write_bytes(file, save(_policy_weights(lm)))


def load_weights(lm: LanguageModel, file: str | Path) -> None:
    """Put weights that `save_weights` wrote into the policy, bit-equal; the reference stays as it is."""
    _put_weights(lm, _read_safetensors(Path(file)), file)


def _policy_weights(lm: LanguageModel) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    if not has_adapter(lm):
        raise RuntimeError("the model has no adapter")
    weights = get_peft_model_state_dict(lm.model, adapter_name=POLICY, save_embedding_layers=False)
    # Clones, because parts of one storage cannot be saved apart.
    return {name: weights[name].detach().cpu().clone().contiguous() for name in sorted(weights)}


def _put_weights(lm: LanguageModel, weights: dict[str, Any], folder: str | Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(lm.model, adapter_name=POLICY, save_embedding_layers=False)
    for name in sorted(expected):
        if name not in weights:
            raise InputError(f"the adapter does not fit {lm.name}: it lacks {name}", file=folder)
        found, needed = tuple(weights[name].shape), tuple(expected[name].shape)
        if found != needed:
            raise InputError(
                f"the adapter belongs to another base than {lm.name}",
                file=folder,
                field=name,
                found=found,
                expected=str(needed),
            )
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise InputError(f"the adapter does not fit {lm.name}: it has {extra[0]}, which the base lacks", file=folder)
    set_peft_model_state_dict(lm.model, weights, adapter_name=POLICY)


def _read_weights(folder: str | Path) -> dict[str, Any]:
    import torch

    file = Path(folder) / WEIGHTS_FILE
    if file.is_file():
        return _read_safetensors(file)
    return torch.load(Path(folder) / "adapter_model.bin", map_location="cpu", weights_only=True)


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"damaged: {error}", file=file) from None


def _lora_layers(lm: LanguageModel) -> Iterator[Any]:
    if has_adapter(lm):
        from peft.tuners.lora import LoraLayer

        for module in lm.model.modules():
            if isinstance(module, LoraLayer):
                yield module


@contextlib.contextmanager
def _kept(lm: LanguageModel) -> Iterator[None]:
    """Evaluation mode inside; afterwards the training modes, the active adapter and every requires_grad as before.

    PEFT's own switches set requires_grad of all adapters anew, and unmerge in place when used on merged layers:
    refused.
    """
    if any(layer.merged for layer in _lora_layers(lm)):
        raise RuntimeError("the adapter is merged: leave `merged(lm)` before another switch")
    if any(layer.disable_adapters or REFERENCE in layer.active_adapters for layer in _lora_layers(lm)):
        raise RuntimeError("the adapter is switched off or to the reference: switches cannot be nested")
    training = [module for module in lm.model.modules() if module.training]
    trainable = [(parameter, parameter.requires_grad) for parameter in lm.model.parameters()]
    lm.model.eval()
    try:
        yield
    finally:
        if has_adapter(lm):
            lm.model.base_model.enable_adapter_layers()
            lm.model.set_adapter(POLICY)
        for module in training:
            module.training = True
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def _targets(model: Any, targets: str | tuple[str, ...]) -> list[str]:
    if isinstance(targets, str):  # all-linear, spelt out: PEFT would store one name for each layer of each block
        head = model.get_output_embeddings()
        return sorted(
            set(_linear_names(model)) - {re.sub(r".*\.", "", n) for n, m in model.named_modules() if m is head}
        )
    names = [name for name, module in model.named_modules() if _is_linear(module)]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            known = _linear_names(model)
            close = nearest(target, known)
            raise InputError(
                f"no linear layer is called {target!r}" + (f"; the nearest is {close!r}" if close else ""),
                field="lora.targets",
                expected=f"all-linear, or names among {', '.join(known)}",
            )
    return list(targets)


def _linear_names(model: Any) -> list[str]:
    return sorted({re.sub(r".*\.", "", name) for name, module in model.named_modules() if _is_linear(module)})


def _is_linear(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, Conv1D))


def _cuda(lm: LanguageModel) -> list[Any]:
    return [lm.device] if lm.device.type == "cuda" else []
