"""Weights of tokens and of units, all without gradient.

Knows: statistics of tokens and of completions. Does not know: losses, packs, models.
Shapes: N tokens of completions, B units.
"""

from __future__ import annotations

import torch

from optative.optimizers.losses.reduction import per_token
from optative.optimizers.losses.shapes import check_shapes


def alignment(logps_N: torch.Tensor, sum_p2_N: torch.Tensor) -> torch.Tensor:
    """How each token compares with one drawn from the policy there: log p(token) - log(sum over the vocabulary of p^2).

    Zhou et al. 2024 (WPO), arXiv:2406.11827, sampled alignment; its sum over a completion goes into `wpo`.

    >>> alignment(torch.tensor([0.5]).log(), torch.tensor([0.5]))
    tensor([0.])
    """
    check_shapes("N", logps_N=logps_N, sum_p2_N=sum_p2_N)
    return (logps_N - sum_p2_N.log()).detach()


def wpo(alignment_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    """Weight of each completion, [B]: exp of its mean `alignment`; 1 when it is as likely as a sample of the policy.

    Zhou et al. 2024, arXiv:2406.11827. A pair's loss is multiplied by both of its weights (eq. 2).

    >>> wpo(torch.tensor([-2.0]), torch.tensor([2.0]))
    tensor([0.3679])
    """
    return per_token(alignment_B, tokens_B).exp().detach()


def desensitise(places_N: torch.Tensor, shared_N: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Weight of each token's log-probability, [N]: 1 within the length that both answers reach, `alpha` beyond it.

    `places_N`: 0 for the first token of a completion that counts, 1 for the next; `shared_N`: the smaller number of
    tokens of its pair. Liu et al. 2024 (LD-DPO), arXiv:2409.06411; policy and reference alike.

    >>> desensitise(torch.tensor([0, 1, 2]), torch.tensor([2, 2, 2]), alpha=0.5)
    tensor([1.0000, 1.0000, 0.5000])
    """
    check_shapes("N", places_N=places_N, shared_N=shared_N)
    return torch.where(places_N < shared_N, 1.0, alpha)
