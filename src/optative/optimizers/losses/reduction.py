"""From tokens to one value per unit, and from these to the step's scalar. The only place where means are taken."""

from __future__ import annotations

import torch

from optative.optimizers.losses.shapes import check_shapes


def per_token(logps_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of each completion from its sum, [B]; its own tokens, never the width of a padded batch.

    >>> per_token(torch.tensor([-6.0]), torch.tensor([3.0]))
    tensor([-2.])
    """
    check_shapes("B", logps_B=logps_B, tokens_B=tokens_B)
    if bool((tokens_B < 1).any()):
        raise ValueError("a completion has no tokens; empty answers must be refused before the loss")
    return logps_B / tokens_B


def step_mean(values_B: torch.Tensor, num_units: int) -> torch.Tensor:
    """Sum over this micro-batch divided by the units of the *whole step*, so that any split into micro-batches adds up.

    >>> step_mean(torch.tensor([1.0, 2.0]), 4) + step_mean(torch.tensor([3.0, 2.0]), 4)
    tensor(2.)
    """
    return values_B.sum() / num_units
