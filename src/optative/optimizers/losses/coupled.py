"""Losses whose value depends on all pairs of a step: distributions of rewards are compared, not single pairs.

Knows: log-probabilities of *all* pairs of the step. Does not know: models, micro-batches; a part of a step gives
another loss than the whole.
Shapes: B pairs. Value i belongs to the i-th smallest margin, not to pair i; only their mean has a meaning.
Source: Melnyk et al. 2024, arXiv:2406.05882 (first-order stochastic dominance by sorting).
"""

from __future__ import annotations

import torch

from optative.optimizers.losses.labels import logistic, right
from optative.optimizers.losses.shapes import check_shapes


def aot(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Paired alignment by optimal transport: the policy's margins should dominate the reference's, [B].

    >>> c, r, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0]), torch.tensor([-2.0, -2.0])
    >>> aot(c, r, ref, ref, beta=1.0)
    tensor([0.6931, 0.3133])
    """
    _check(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B)
    difference_B = (chosen_B - rejected_B).sort().values - (ref_chosen_B - ref_rejected_B).sort().values
    return logistic(beta * difference_B, right(1.0, label_smoothing))


def aot_unpaired(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Unpaired alignment by optimal transport: rewards of chosen answers should dominate those of rejected ones, [B].

    >>> c, r, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0]), torch.tensor([-2.0, -2.0])
    >>> aot_unpaired(c, r, ref, ref, beta=1.0)
    tensor([0.6931, 0.3133])
    """
    _check(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B)
    difference_B = (chosen_B - ref_chosen_B).sort().values - (rejected_B - ref_rejected_B).sort().values
    return logistic(beta * difference_B, right(1.0, label_smoothing))


def _check(
    chosen_B: torch.Tensor, rejected_B: torch.Tensor, ref_chosen_B: torch.Tensor, ref_rejected_B: torch.Tensor
) -> None:
    check_shapes(
        "B", chosen_B=chosen_B, rejected_B=rejected_B, ref_chosen_B=ref_chosen_B, ref_rejected_B=ref_rejected_B
    )
