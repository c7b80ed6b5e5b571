"""A weighted sum of losses. Knows: names and options of its terms. Does not know: what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optative.optimizers.losses.bind import function_of, tensors_of


def mixture(*, terms: Sequence[Mapping[str, Mapping[str, Any]]], **tensors_B: torch.Tensor) -> torch.Tensor:
    """Sum over the terms of weight times loss, [B] (Wang et al. 2024, MPO, arXiv:2411.10442).

    terms: `{name: {"weight": ..., and all numbers of the loss}}`, as a checked `options.Mixture` has them; each term
    takes those of the tensors that it knows.

    >>> l = torch.tensor([-2.0])
    >>> pair = {"chosen_B": l, "rejected_B": l, "ref_chosen_B": l, "ref_rejected_B": l}
    >>> mixture(terms=[{"dpo": {"weight": 2.0, "beta": 0.1}}, {"apo_zero": {"weight": 1.0, "beta": 0.1}}], **pair)
    tensor([2.3863])
    """
    total_B: Any = 0.0
    for term in terms:
        for name, options in term.items():
            numbers = {field: value for field, value in options.items() if field != "weight"}
            own = {tensor: tensors_B[tensor] for tensor in tensors_of(function_of(name)) if tensor in tensors_B}
            total_B = total_B + options["weight"] * function_of(name)(**own, **numbers)
    return total_B
