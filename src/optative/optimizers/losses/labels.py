"""How sure a label is: losses in expectation over whether it is right. Knows: probabilities. Does not know: models."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

Numbers = torch.Tensor | float


def right(confidence_B: Numbers, label_smoothing: float) -> Numbers:
    """Probability that a label is right, when its annotator is right with `confidence_B` and a share is flipped after.

    >>> right(1.0, 0.25), right(0.5, 0.25)
    (0.75, 0.5)
    """
    return confidence_B * (1.0 - label_smoothing) + (1.0 - confidence_B) * label_smoothing


def logistic(z_B: torch.Tensor, right_B: Numbers) -> torch.Tensor:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z): cross-entropy of a label that is right with probability p.

    >>> logistic(torch.tensor([0.0]), 1.0)
    tensor([0.6931])
    """
    return -right_B * logsigmoid(z_B) - (1.0 - right_B) * logsigmoid(-z_B)
