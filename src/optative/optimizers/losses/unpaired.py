"""Losses on single completions that are each good or bad.

Knows: summed log-probabilities of completions and whether each is desirable. Does not know: models, other units,
except for the one number `kl` that KTO compares with.
Shapes: B completions. Each function returns one loss per completion, [B]; unit: completion. `confidence_B`:
probability that the label is right; below 1 the loss is the expectation over both labels.
"""

from __future__ import annotations

import torch

from optative.optimizers.losses.labels import Numbers
from optative.optimizers.losses.shapes import check_shapes


def kto(
    logps_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    desirable_B: torch.Tensor,
    kl: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7), [B].

    `kl`: the reference point, a scalar in nats (see `reference_point`); it is a constant here and gets no gradient.

    >>> l = torch.tensor([-2.0])
    >>> kto(l, l, torch.tensor([True]), torch.tensor(0.0), beta=0.5)
    tensor([0.5000])
    """
    check_shapes("", kl=kl)
    check_shapes("B", logps_B=logps_B, ref_logps_B=ref_logps_B, desirable_B=desirable_B, confidence_B=confidence_B)
    good_B = _good(logps_B, desirable_B, confidence_B)
    z_B = beta * (logps_B - ref_logps_B - kl.detach())
    return good_B * desirable_weight * torch.sigmoid(-z_B) + (1 - good_B) * undesirable_weight * torch.sigmoid(z_B)


def reference_point(mismatched_B: torch.Tensor, ref_mismatched_B: torch.Tensor) -> torch.Tensor:
    """KTO's estimate of KL(policy, reference): mean log-ratio of answers under prompts not their own, a scalar >= 0.

    Same paper. Without gradient. A text that is right for both prompts is no mismatch: leave it out.

    >>> reference_point(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -5.0]))
    tensor(0.5000)
    """
    check_shapes("B", mismatched_B=mismatched_B, ref_mismatched_B=ref_mismatched_B)
    if not len(mismatched_B):
        raise ValueError("no mismatched answer: the reference point cannot be estimated")
    return (mismatched_B - ref_mismatched_B).detach().mean().clamp(min=0)


def apo_zero_unpaired(
    logps_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    desirable_B: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
) -> torch.Tensor:
    """Anchored preference optimisation of single answers: one side of arXiv:2408.06266, eq. 7, for each, [B].

    >>> l = torch.tensor([-2.0])
    >>> apo_zero_unpaired(l, l, torch.tensor([False]), beta=0.5)
    tensor([0.5000])
    """
    check_shapes("B", logps_B=logps_B, ref_logps_B=ref_logps_B, desirable_B=desirable_B, confidence_B=confidence_B)
    good_B = _good(logps_B, desirable_B, confidence_B)
    z_B = beta * (logps_B - ref_logps_B)
    return good_B * torch.sigmoid(-z_B) + (1 - good_B) * torch.sigmoid(z_B)


def _good(logps_B: torch.Tensor, desirable_B: torch.Tensor, confidence_B: Numbers) -> torch.Tensor:
    """Probability that a completion is good, [B]."""
    if desirable_B.dtype != torch.bool:
        raise ValueError(f"desirable_B has dtype {desirable_B.dtype}, expected bool")
    confidence_B = torch.as_tensor(confidence_B, dtype=logps_B.dtype, device=logps_B.device)
    return torch.where(desirable_B, confidence_B, 1 - confidence_B)
