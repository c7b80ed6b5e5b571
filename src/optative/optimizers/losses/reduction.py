"""From one value per unit to the step's scalar. The only place where means are taken."""

from __future__ import annotations

import torch


def step_mean(values_B: torch.Tensor, num_units: int) -> torch.Tensor:
    """Sum over this micro-batch divided by the units of the *whole step*, so that any split into micro-batches adds up.

    >>> step_mean(torch.tensor([1.0, 2.0]), 4) + step_mean(torch.tensor([3.0, 2.0]), 4)
    tensor(2.)
    """
    return values_B.sum() / num_units
