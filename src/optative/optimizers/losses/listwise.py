"""Losses on ranked lists of completions.

Knows: summed log-probabilities of the completions of a list and their ranks. Does not know: models, trainers.
Shapes: B lists, K places. Each function returns one loss per list, [B]; unit: list.
"""

from __future__ import annotations

import torch

from optative.optimizers.losses.shapes import check_shapes


def plackett_luce(
    logps_BK: torch.Tensor,
    ref_logps_BK: torch.Tensor,
    ranks_BK: torch.Tensor,
    *,
    beta: float,
    places: int = 0,
) -> torch.Tensor:
    """DPO on rankings (Rafailov et al. 2023, arXiv:2305.18290, appendix A.3), [B]; with two answers it is plain DPO.

    `ranks_BK`: 0 is best, equal numbers are tied, -1 is padding. Tied answers are treated as Breslow (1974,
    Biometrics 30, 89-99) treats tied times in the same likelihood: each is set against its tied ones and all that are
    worse, so that a tie draws its answers together.
    `places`: only answers with fewer than so many better ones count; 0: all. 1 is the softmax loss of S-DPO (Chen et
    al. 2024, arXiv:2406.09215). A list with fewer than two answers has loss 0.

    >>> logps, ref = torch.tensor([[-1.0, -3.0, 0.0]]), torch.tensor([[-2.0, -2.0, 0.0]])
    >>> plackett_luce(logps, ref, torch.tensor([[0, 1, -1]]), beta=1.0)
    tensor([0.1269])
    """
    check_shapes("BK", logps_BK=logps_BK, ref_logps_BK=ref_logps_BK, ranks_BK=ranks_BK)
    real_BK = ranks_BK >= 0
    rewards_BK = torch.where(real_BK, beta * (logps_BK - ref_logps_BK), 0.0)
    better_BKK = (ranks_BK[:, None, :] < ranks_BK[:, :, None]) & real_BK[:, None, :]  # [.., i, j]: j is better than i
    against_BKK = ~better_BKK & real_BK[:, None, :]
    against_BKK |= torch.eye(ranks_BK.shape[1], dtype=torch.bool, device=ranks_BK.device)  # rows of padding: not empty
    total_BK = rewards_BK[:, None, :].masked_fill(~against_BKK, -torch.inf).logsumexp(dim=2)
    counts_BK = real_BK & (better_BKK.sum(dim=2) < places) if places else real_BK
    return torch.where(counts_BK, total_BK - rewards_BK, 0.0).sum(dim=1)
