"""DPO on pairs some of which are tied, by models of paired comparison that give ties a probability.

Knows: summed log-probabilities of the two completions, which pairs are tied. Does not know: models, trainers.
Shapes and arguments as in `pairs`; `tied_B` [bool]; of a tied pair it does not matter which answer is called chosen.
Source: Chen et al. 2024, arXiv:2409.17431.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from optative.optimizers.losses.shapes import check_shapes


def rao_kupper(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    tied_B: torch.Tensor,
    *,
    beta: float,
    nu: float,
) -> torch.Tensor:
    """Minus the log-probability of what was said of each pair, in the Rao-Kupper (1967) model, [B].

    With strengths exp(reward): P(win) = w / (w + nu l), P(tie) = (nu^2 - 1) w l / ((w + nu l) (l + nu w)), nu > 1.

    >>> l = torch.tensor([-2.0, -2.0])
    >>> rao_kupper(l, l, l, l, torch.tensor([True, False]), beta=0.5, nu=3.0).neg().exp()
    tensor([0.5000, 0.2500])
    """
    d_B = _difference(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, tied_B, beta)
    won_B, lost_B = logsigmoid(d_B - math.log(nu)), logsigmoid(-d_B - math.log(nu))
    return torch.where(tied_B, -math.log(nu**2 - 1) - won_B - lost_B, -won_B)


def davidson(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    tied_B: torch.Tensor,
    *,
    beta: float,
    nu: float,
) -> torch.Tensor:
    """Minus the log-probability of what was said of each pair, in the Davidson (1970) model, [B].

    With strengths exp(reward): win, loss and tie are as w : l : 2 nu sqrt(w l), nu > 0.

    >>> l = torch.tensor([-2.0, -2.0])
    >>> davidson(l, l, l, l, torch.tensor([True, False]), beta=0.5, nu=1.0).neg().exp()
    tensor([0.5000, 0.2500])
    """
    d_B = _difference(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, tied_B, beta)
    tie_B = math.log(2 * nu) - d_B / 2  # all three relative to the win
    total_B = torch.stack([torch.zeros_like(d_B), -d_B, tie_B]).logsumexp(dim=0)
    return total_B - torch.where(tied_B, tie_B, 0.0)


def _difference(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    tied_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    check_shapes(
        "B",
        chosen_B=chosen_B,
        rejected_B=rejected_B,
        ref_chosen_B=ref_chosen_B,
        ref_rejected_B=ref_rejected_B,
        tied_B=tied_B,
    )
    if tied_B.dtype != torch.bool:
        raise ValueError(f"tied_B has dtype {tied_B.dtype}, expected bool")
    return beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B))
