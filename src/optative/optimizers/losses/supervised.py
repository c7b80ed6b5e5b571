"""The supervised loss. Knows: log-probabilities of completions. Does not know: models, padding. Unit: sequence."""

from __future__ import annotations

import torch

from optative.optimizers.losses.shapes import check_shapes


def nll(logps_B: torch.Tensor, num_tokens_B: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of each completion, [B]: -logps / tokens, in nats.

    As the extra term on the chosen answer: Pang et al. 2024, arXiv:2404.19733, eq. 1 (normalised by length, as there).

    >>> nll(torch.tensor([-6.0]), torch.tensor([3.0]))
    tensor([2.])
    """
    check_shapes("B", logps_B=logps_B, num_tokens_B=num_tokens_B)
    if bool((num_tokens_B < 1).any()):
        raise ValueError("num_tokens_B has a completion without tokens; empty answers must be refused before the loss")
    return -logps_B / num_tokens_B
