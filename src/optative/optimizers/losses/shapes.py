"""One check for all losses: an array of the wrong shape is an error, never a silent broadcast."""

from __future__ import annotations

from typing import Any

import torch


def check_shapes(letters: str, **tensors: Any) -> None:
    """All tensors have one axis per letter and agree on its size; plain numbers pass.

    >>> check_shapes("B", chosen_B=torch.zeros(3), rejected_B=torch.zeros(4))
    Traceback (most recent call last):
    ValueError: rejected_B has shape (4,), expected [B] with B=3
    """
    size: dict[str, int] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        shape = tuple(tensor.shape)
        if len(shape) != len(letters):
            hint = "; sum the token log-probabilities first" if len(shape) > len(letters) else ""
            raise ValueError(f"{name} has shape {shape}, expected [{', '.join(letters)}]{hint}")
        for letter, found in zip(letters, shape):
            if size.setdefault(letter, found) != found:
                raise ValueError(
                    f"{name} has shape {shape}, expected [{', '.join(letters)}] with {letter}={size[letter]}"
                )
