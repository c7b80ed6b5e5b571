"""The supervised loss. Knows: log-probabilities of completions. Does not know: models, padding. Unit: completion."""

from __future__ import annotations

import torch

from optative.optimizers.losses.reduction import per_token


def nll(logps_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of each completion, [B]: -logps / tokens, in nats.

    As the extra term on the chosen answer: Pang et al. 2024, arXiv:2404.19733, eq. 1 (normalised by length, as there).
    TRL's `sft` takes one mean over the tokens of all chosen answers of a batch instead: equal where they are equally
    long, and otherwise long answers count more.

    >>> nll(torch.tensor([-6.0]), torch.tensor([3.0]))
    tensor([2.])
    """
    return -per_token(logps_B, tokens_B)
