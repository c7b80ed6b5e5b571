"""Checkpoints: parameters, optimizer state and the journal offset of one step, whole or absent.

Knows: tensors by name and one JSON object. Does not know: what they mean.
Layout: `step-N/{parameters.safetensors, optimizer.safetensors, state.json}` and, for the best evaluation,
`best-N/{parameters.safetensors, state.json}`; written beside and renamed. Only the newest step is kept, and the best
one that it knows of. Tensors are stored whole, so that any number of ranks can read them; rank 0 writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from optative.core.errors import InputError
from optative.core.files import atomic_folder, read_json, write_json
from optative.training.distribution import like, whole, world

PARAMETERS, MOMENTS, STATE = "parameters.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    best: int = 0,
) -> None:
    """Write `folder/step-N`, then remove other steps and all best ones but `best`. Called by every rank."""
    files = {
        PARAMETERS: parameters,
        MOMENTS: {f"{n}//{k}": v for n, p in parameters.items() for k, v in optimizer.state.get(p, {}).items()},
    }
    if _write(folder / f"step-{step}", files, {"step": step, **state}):
        _remove(folder / f"step-{old}" for old in _numbers(folder, "step") if old != step)
        _remove(folder / f"best-{old}" for old in _numbers(folder, "best") if old != best)


def load_checkpoint(
    folder: Path, key: str, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore the newest checkpoint whose state has this `key`; None when there is none. Called by every rank."""
    for step in reversed(_numbers(folder, "step")):
        at = folder / f"step-{step}"
        state: dict[str, Any] = read_json(at / STATE)
        if state.get("key") != key:
            continue
        _put(parameters, at / PARAMETERS)
        for full_name, value in load_file(at / MOMENTS).items():
            name, _, kind = full_name.rpartition("//")
            parameter = parameters[name]
            if kind == "step":
                optimizer.state[parameter][kind] = value.to(parameter.device)
            else:  # in the parameter's own order in memory, which fused kernels take for granted
                optimizer.state[parameter][kind] = torch.empty_like(parameter).copy_(like(value, parameter))
        return state
    return None


def save_best(
    folder: Path, step: int, parameters: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, older: int
) -> None:
    """Write `folder/best-N` and remove all but it and `older`, the one that the newest checkpoint knows of."""
    if _write(folder / f"best-{step}", {PARAMETERS: parameters}, {"step": step, **state}):
        _remove(folder / f"best-{n}" for n in _numbers(folder, "best") if n not in (step, older))


def load_best(folder: Path, step: int, key: str, parameters: Mapping[str, torch.Tensor]) -> None:
    """Put the parameters of `best-N` back. Raises InputError when it is not there or of another training."""
    at = folder / f"best-{step}"
    if not (at / STATE).is_file() or read_json(at / STATE).get("key") != key:
        raise InputError("the weights of the best evaluation are not there; start the run anew", file=at)
    _put(parameters, at / PARAMETERS)


def _write(at: Path, files: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> bool:
    """Whether this rank is the one that wrote."""
    main = world().is_main
    gathered: dict[str, dict[str, torch.Tensor]] = {}
    for file, tensors in files.items():
        gathered[file] = {}
        for name, tensor in tensors.items():
            value = whole(tensor.detach())
            if main:
                gathered[file][name] = value.cpu().contiguous()
    if main:
        _remove(at.parent.glob(".*.part"))  # what a kill in the middle of a write has left
        with atomic_folder(at) as new:
            for file, tensors in gathered.items():
                save_file(dict(tensors), new / file)
            write_json(new / STATE, dict(state))
    return main


def _put(parameters: Mapping[str, torch.Tensor], file: Path) -> None:
    saved = load_file(file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(saved.pop(name), parameter))


def _numbers(folder: Path, kind: str) -> list[int]:
    found = folder.glob(f"{kind}-*/{STATE}")
    return sorted(int(file.parent.name.removeprefix(f"{kind}-")) for file in found)


def _remove(folders: Iterable[Path]) -> None:
    """Renamed first, so that a kill never leaves a part of a folder under its own name."""
    for folder in list(folders):
        if not folder.name.endswith(".part"):
            folder = folder.rename(folder.with_name(f".{folder.name}.part"))
        shutil.rmtree(folder, ignore_errors=True)
