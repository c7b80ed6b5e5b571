"""Losses on pairs of completions, without a reference.

Knows: summed log-probabilities and numbers of tokens of the two completions. Does not know: models, trainers.
Shapes and arguments as in `pairs`; unit: pair. The NLL of the chosen answer that belongs to ORPO and CPO is the common
term `nll_weight` (1 by default for them), not part of these functions.
"""

from __future__ import annotations

import math

import torch

from optative.optimizers.losses.divergence import bounded_expm1
from optative.optimizers.losses.labels import Numbers, logistic, right
from optative.optimizers.losses.reduction import per_token
from optative.optimizers.losses.shapes import check_shapes


def simpo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    margin_B: Numbers = 0.0,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734, eq. 6), [B].

    >>> l, tokens = torch.tensor([-2.0]), torch.tensor([4.0])
    >>> simpo(l, 2 * l, tokens, 2 * tokens, beta=2.0, gamma=1.0)
    tensor([1.3133])
    """
    check_shapes("B", chosen_B=chosen_B, rejected_B=rejected_B, margin_B=margin_B, confidence_B=confidence_B)
    difference_B = per_token(chosen_B, chosen_tokens_B) - per_token(rejected_B, rejected_tokens_B)
    return logistic(beta * difference_B - gamma - margin_B, right(confidence_B, label_smoothing))


def alphapo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    margin_B: Numbers = 0.0,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    gamma: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """SimPO with the reward (1 - p^-alpha) / alpha of the geometric mean p of token probabilities, [B].

    Gupta et al. 2025, arXiv:2501.03884. alpha -> 0 is SimPO. Beyond exponents of 30 the reward goes on as its
    tangent (`divergence.bounded_expm1`).

    >>> l, tokens = torch.tensor([-2.0]), torch.tensor([4.0])
    >>> alphapo(l, 2 * l, tokens, 2 * tokens, beta=2.0, gamma=1.0, alpha=0.25)
    tensor([1.3133])
    """
    check_shapes("B", chosen_B=chosen_B, rejected_B=rejected_B, margin_B=margin_B, confidence_B=confidence_B)
    chosen_reward_B = -bounded_expm1(-alpha * per_token(chosen_B, chosen_tokens_B)) / alpha
    rejected_reward_B = -bounded_expm1(-alpha * per_token(rejected_B, rejected_tokens_B)) / alpha
    z_B = beta * (chosen_reward_B - rejected_reward_B) - gamma - margin_B
    return logistic(z_B, right(confidence_B, label_smoothing))


def orpo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The odds ratio term of ORPO, times `beta` (Hong et al. 2024, arXiv:2403.07691, eqs. 4 and 7), [B].

    The odds are those of the geometric mean p of token probabilities, p / (1 - p). TRL's NLL beside it runs over the
    prompt too; the paper's, and `nll_weight`, over the answer only.

    >>> l, tokens = torch.tensor([-2.0]), torch.tensor([4.0])
    >>> orpo(l, 2 * l, tokens, 2 * tokens, beta=1.0)
    tensor([0.6931])
    """
    check_shapes("B", chosen_B=chosen_B, rejected_B=rejected_B, confidence_B=confidence_B)
    chosen_odds_B = log_odds(per_token(chosen_B, chosen_tokens_B))
    rejected_odds_B = log_odds(per_token(rejected_B, rejected_tokens_B))
    return beta * logistic(chosen_odds_B - rejected_odds_B, right(confidence_B, label_smoothing))


def cpo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    margin_B: Numbers = 0.0,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The preference term of contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417, eq. 3), [B].

    >>> cpo(torch.tensor([-1.0]), torch.tensor([-3.0]), beta=1.0)
    tensor([0.1269])
    """
    check_shapes("B", chosen_B=chosen_B, rejected_B=rejected_B, margin_B=margin_B, confidence_B=confidence_B)
    return logistic(beta * (chosen_B - rejected_B) - margin_B, right(confidence_B, label_smoothing))


def log_odds(logp_B: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p < 0, [B], exact at both ends; a log p of 0 counts as the largest number below 0.

    >>> log_odds(torch.tensor([math.log(0.75)]))
    tensor([1.0986])
    """
    below_B = logp_B.clamp(max=-torch.finfo(logp_B.dtype).eps)
    # log(1 - e^l): each form cancels where the other is exact (Maechler 2012, Rmpfr note, eq. 7).
    near_B, far_B = below_B.clamp(min=-math.log(2)), below_B.clamp(max=-math.log(2))
    return below_B - torch.where(
        below_B > -math.log(2), torch.log(-torch.expm1(near_B)), torch.log1p(-torch.exp(far_B))
    )
