"""Losses of telling grades apart, as classes or in their order. Knows: logits. Does not know: what is graded, models.

Shapes: N graded things, K grades, J logits of each (K as classes; K - 1 in order, logit j for "grade above j").
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from optative.optimizers.losses.shapes import check_shapes


def by_class(logits_NJ: torch.Tensor, grades_N: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)_g, [N] (Li et al. 2024, arXiv:2409.17791: a classifier of the degree).

    >>> by_class(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([0.6931])
    """
    check_shapes("NJ", logits_NJ=logits_NJ)
    check_shapes("N", grades_N=grades_N, logits_NJ=logits_NJ[:, 0])
    return cross_entropy(logits_NJ, grades_N, reduction="none")


def in_order(logits_NJ: torch.Tensor, grades_N: torch.Tensor) -> torch.Tensor:
    """Sum over j of the binary cross-entropy of "grade above j" (Frank and Hall 2001), [N].

    >>> in_order(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([1.3863])
    """
    above_NJ = _above(logits_NJ, grades_N)
    return -(above_NJ * logsigmoid(logits_NJ) + (1 - above_NJ) * logsigmoid(-logits_NJ)).sum(1)


def expected(logits_NJ: torch.Tensor, *, ordinal: bool) -> torch.Tensor:
    """The grade that is expected under the logits, [N], between 0 and K - 1."""
    if ordinal:
        return logits_NJ.sigmoid().sum(1)
    return logits_NJ.softmax(1) @ torch.arange(logits_NJ.shape[1], dtype=logits_NJ.dtype, device=logits_NJ.device)


def most_likely(logits_NJ: torch.Tensor, *, ordinal: bool) -> torch.Tensor:
    """The grade that is named when one has to be, [N]; in order: how many borders are more likely passed than not."""
    return (logits_NJ > 0).sum(1) if ordinal else logits_NJ.argmax(1)


def _above(logits_NJ: torch.Tensor, grades_N: torch.Tensor) -> torch.Tensor:
    check_shapes("NJ", logits_NJ=logits_NJ)
    check_shapes("N", grades_N=grades_N, logits_NJ=logits_NJ[:, 0])
    borders_J = torch.arange(logits_NJ.shape[1], device=logits_NJ.device)
    return (grades_N[:, None] > borders_J).to(logits_NJ.dtype)
