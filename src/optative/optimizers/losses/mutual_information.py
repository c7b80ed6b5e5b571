"""Mutual information between what was asked and what was answered: the two-sided contrastive loss and its bounds.

Knows: a square of log-probabilities for each query. Does not know: models, constitutions, how answers were drawn.
Shapes: B queries, C constitutions with one answer each. `logps_BCC[b, j, k]` is log pi(answer k | query, constitution
j): summed over the answer's tokens (the theory), or their mean (what was released: sums favour short answers in the
rows, means favour long ones in the columns); `per_response` makes the one from the other. The diagonal is right.
Source: Fränken et al. 2024, arXiv:2404.14313 (SAMI), equations 2 and 3; the bound is that of contrastive predictive
coding (van den Oord et al. 2018, arXiv:1807.03748), which never exceeds log C.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from optative.optimizers.losses.shapes import check_shapes

Length = Literal["mean", "sum"]


class Sides(NamedTuple):
    """One value a query, [B], from each side.

    rows: for a constitution, which of the C answers; columns: for an answer, which of the C constitutions.
    """

    rows_B: torch.Tensor
    columns_B: torch.Tensor

    @property
    def mean_B(self) -> torch.Tensor:
        return (self.rows_B + self.columns_B) / 2


def per_response(sums_BCC: torch.Tensor, tokens_BC: torch.Tensor, length: Length) -> torch.Tensor:
    """Sums as they are, or divided by the tokens of each answer (the last axis), [B, C, C]."""
    check_shapes("BCC", sums_BCC=sums_BCC)
    check_shapes("BC", tokens_BC=tokens_BC)
    if bool((tokens_BC < 1).any()):
        raise ValueError("an answer has no tokens; empty answers must be left out before the loss")
    return sums_BCC / tokens_BC[:, None, :] if length == "mean" else sums_BCC


def two_sided(logps_BCC: torch.Tensor) -> torch.Tensor:
    """The loss, [B]: mean cross-entropy of the rows and of the columns with the diagonal, halved (eq. 3).

    >>> two_sided(torch.tensor([[[0.0, -1.0], [-1.0, 0.0]]]))
    tensor([0.3133])
    """
    diagonal_BC = _diagonal(logps_BCC)
    rows_BC, columns_BC = logps_BCC.logsumexp(2) - diagonal_BC, logps_BCC.logsumexp(1) - diagonal_BC
    return (rows_BC.mean(1) + columns_BC.mean(1)) / 2


def bounds(logps_BCC: torch.Tensor) -> Sides:
    """Lower bounds on I(answer; constitution | query) in nats, one-query estimates, each at most log C (eq. 2).

    columns: mean over j of log pi(y_j | c_j) - log mean_k pi(y_j | c_k); rows: the same with the answers in the
    denominator, where only the sampled ones stand in for all. They are bounds in expectation over the policy's own
    answers and with sums of log-probabilities; with means, or on answers of others, they are scores.

    >>> bounds(torch.zeros(1, 3, 3)).mean_B
    tensor([0.])
    """
    diagonal_BC, log_c = _diagonal(logps_BCC), math.log(logps_BCC.shape[-1])
    rows_BC, columns_BC = diagonal_BC - logps_BCC.logsumexp(2), diagonal_BC - logps_BCC.logsumexp(1)
    return Sides(log_c + rows_BC.mean(1), log_c + columns_BC.mean(1))


def accuracies(logps_BCC: torch.Tensor) -> Sides:
    """How often the diagonal is strictly the largest of its row, and of its column; chance is 1 / C, a tie is wrong."""
    diagonal_BC = _diagonal(logps_BCC)
    own = torch.eye(logps_BCC.shape[-1], dtype=torch.bool, device=logps_BCC.device)
    others_BCC = logps_BCC.masked_fill(own, -math.inf)
    rows_BC, columns_BC = diagonal_BC > others_BCC.amax(2), diagonal_BC > others_BCC.amax(1)
    return Sides(rows_BC.float().mean(1), columns_BC.float().mean(1))


def _diagonal(logps_BCC: torch.Tensor) -> torch.Tensor:
    check_shapes("BCC", logps_BCC=logps_BCC)
    if logps_BCC.shape[-1] < 2:
        raise ValueError("one constitution has nothing to be told from; give two or more")
    return logps_BCC.diagonal(dim1=1, dim2=2)
