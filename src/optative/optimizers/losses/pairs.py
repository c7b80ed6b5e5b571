"""Losses on pairs of completions.

Knows: summed log-probabilities of the two completions of a pair. Does not know: models, tokens, padding, trainers.
Shapes: B pairs. Each function returns one loss per pair, [B]; unit: pair.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from optative.optimizers.losses.shapes import check_shapes


def dpo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
    margin_B: torch.Tensor | float = 0.0,
    confidence_B: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), [B].

    Log-probabilities are *summed* over the tokens of a completion. `margin_B`: offset that the implicit reward
    difference has to exceed (Amini et al. 2024, arXiv:2402.10571, eq. 5). `confidence_B`: probability that the
    label is right; 1 is plain DPO, less is conservative DPO (Mitchell 2023, eq. 3).

    >>> dpo(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([-2.0]), torch.tensor([-2.0]), beta=1.0)
    tensor([0.1269])
    """
    check_shapes(
        "B",
        chosen_B=chosen_B,
        rejected_B=rejected_B,
        ref_chosen_B=ref_chosen_B,
        ref_rejected_B=ref_rejected_B,
        margin_B=margin_B,
        confidence_B=confidence_B,
    )
    z_B = beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)) - margin_B
    return -confidence_B * logsigmoid(z_B) - (1.0 - confidence_B) * logsigmoid(-z_B)


def implicit_rewards(logps_B: torch.Tensor, ref_logps_B: torch.Tensor, *, beta: float) -> torch.Tensor:
    """beta * (log pi - log pi_ref), [B]: the reward that a DPO policy stands for (same paper, section 4)."""
    check_shapes("B", logps_B=logps_B, ref_logps_B=ref_logps_B)
    return beta * (logps_B - ref_logps_B)
