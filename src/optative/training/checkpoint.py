"""Checkpoints: parameters, optimizer state and the journal offset of one step, whole or absent.

Knows: tensors by name and one JSON object. Does not know: what they mean.
Layout: `step-N/{parameters.safetensors, optimizer.safetensors, state.json}`, written beside and renamed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from optative.core.files import atomic_folder, read_json, write_json


def save_checkpoint(
    folder: Path,
    step: int,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write `folder/step-N` and then remove older ones. `optimizer` must hold the parameters in the mapping's order."""
    moments = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}//{key}"] = value.detach().reshape(value.shape).contiguous()
    with atomic_folder(folder / f"step-{step}") as new:
        save_file({k: v.detach().contiguous() for k, v in parameters.items()}, new / "parameters.safetensors")
        save_file(moments, new / "optimizer.safetensors")
        write_json(new / "state.json", {"step": step, **state})
    for old in _steps(folder):
        if old != step:
            shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def load_checkpoint(
    folder: Path, key: str, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore the newest checkpoint whose state has this `key`; None when there is none."""
    for step in reversed(_steps(folder)):
        at = folder / f"step-{step}"
        state: dict[str, Any] = read_json(at / "state.json")
        if state.get("key") != key:
            continue
        saved = load_file(at / "parameters.safetensors")
        moments = load_file(at / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
                own = {k.rpartition("//")[2]: v for k, v in moments.items() if k.rpartition("//")[0] == name}
                optimizer.state[parameter] = own
        return state
    return None


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in folder.glob("step-*") if (p / "state.json").is_file())
