"""Losses on pairs of completions, with a reference.

Knows: summed log-probabilities of the two completions of a pair. Does not know: models, tokens, padding, trainers.
Shapes: B pairs. Each function returns one loss per pair, [B]; unit: pair.
In all of them: chosen_B, rejected_B [nats, summed over the tokens of the completion], the same under the reference,
chosen_tokens_B and rejected_tokens_B [counts]; `confidence_B` [0 to 1]: probability that the label is right, and
`label_smoothing`: the share flipped after that; `margin_B`: offset that the reward difference has to exceed;
`beta`: scale of the rewards; `divergence`, `divergence_alpha`: see `divergence.scores`.
Errors: `ValueError` for a wrong shape.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from optative.optimizers.losses.divergence import scores
from optative.optimizers.losses.labels import Numbers, logistic, right
from optative.optimizers.losses.reduction import per_token
from optative.optimizers.losses.shapes import check_shapes


def dpo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    margin_B: Numbers = 0.0,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), [B].

    `margin_B`: Amini et al. 2024, arXiv:2402.10571, eq. 5. Confidence or label smoothing below certainty: conservative
    DPO (Mitchell 2023, eq. 3). `divergence`: Wang et al. 2023, arXiv:2309.16240.

    >>> dpo(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([-2.0]), torch.tensor([-2.0]), beta=1.0)
    tensor([0.1269])
    """
    check_shapes("B", margin_B=margin_B, confidence_B=confidence_B, chosen_B=chosen_B)
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    return logistic(beta * (chosen_score_B - rejected_score_B) - margin_B, right(confidence_B, label_smoothing))


def hinge(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    margin_B: Numbers = 0.0,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """Sequence likelihood calibration (Zhao et al. 2023, arXiv:2305.10425) on log-ratios to the reference, [B].

    With the ratios it is the hinge-norm loss of Liu et al. 2023, arXiv:2309.06657. A doubtful label: the expectation
    over whether it is right.

    >>> hinge(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([-2.0]), torch.tensor([-2.0]), beta=0.25)
    tensor([0.5000])
    """
    check_shapes("B", margin_B=margin_B, confidence_B=confidence_B, chosen_B=chosen_B)
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    z_B = beta * (chosen_score_B - rejected_score_B) - margin_B
    right_B = right(confidence_B, label_smoothing)
    return right_B * torch.relu(1 - z_B) + (1 - right_B) * torch.relu(1 + z_B)


def ipo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036, eq. 17; `beta` is its tau), [B].

    Log-ratios are averaged over tokens, as TRL does after asking the authors; the paper does not say so. A doubtful
    label: the expectation of the paper's sampled loss over whether it is right.

    >>> l, tokens = torch.tensor([-2.0]), torch.tensor([4.0])
    >>> ipo(l, l, l, l, tokens, tokens, beta=0.5)
    tensor([1.])
    """
    check_shapes("B", confidence_B=confidence_B, chosen_B=chosen_B)
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    h_B = per_token(chosen_score_B, chosen_tokens_B) - per_token(rejected_score_B, rejected_tokens_B)
    aim, right_B = 1 / (2 * beta), right(confidence_B, label_smoothing)
    return right_B * (h_B - aim) ** 2 + (1 - right_B) * (h_B + aim) ** 2


def exo_pair(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """Efficient exact optimisation on pairs (Ji et al. 2024, arXiv:2402.00856, eq. 16), [B].

    The KL divergence *from* the policy's preference *to* the label's, which gives the chosen answer the probability
    1 - label_smoothing (less with a confidence below 1); that may be neither 0 nor 1.

    >>> l = torch.tensor([-2.0])
    >>> exo_pair(l, l, l, l, beta=0.5, label_smoothing=0.25)
    tensor([0.1438])
    """
    check_shapes("B", confidence_B=confidence_B, chosen_B=chosen_B)
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    z_B = beta * (chosen_score_B - rejected_score_B)
    right_B = torch.as_tensor(right(confidence_B, label_smoothing), dtype=z_B.dtype, device=z_B.device)
    won_B, lost_B = torch.sigmoid(z_B), torch.sigmoid(-z_B)
    return won_B * (logsigmoid(z_B) - right_B.log()) + lost_B * (logsigmoid(-z_B) - torch.log1p(-right_B))


def nca_pair(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Noise contrastive alignment of two answers, the first of which takes all of the reward, [B].

    Chen et al. 2024, arXiv:2402.05369: the NCA loss for K = 2 in the limit of hard labels.

    >>> l = torch.tensor([-2.0])
    >>> nca_pair(l, l, l, l, beta=0.5)
    tensor([1.3863])
    """
    chosen_reward_B, rejected_reward_B = _rewards(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return -logsigmoid(chosen_reward_B) - 0.5 * logsigmoid(-chosen_reward_B) - 0.5 * logsigmoid(-rejected_reward_B)


def robust(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """DPO whose mean under a known share of flipped labels is that of clean ones, [B].

    Chowdhury et al. 2024, arXiv:2403.00409. `label_smoothing`: the share, below 0.5. It can be negative.

    >>> l = torch.tensor([-2.0])
    >>> robust(l, l, l, l, beta=0.5, label_smoothing=0.25)
    tensor([0.6931])
    """
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    z_B, flipped = beta * (chosen_score_B - rejected_score_B), label_smoothing
    return (-(1 - flipped) * logsigmoid(z_B) + flipped * logsigmoid(-z_B)) / (1 - 2 * flipped)


def bco_pair(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Binary classification of each answer of a pair by its implicit reward, [B].

    Jung et al. 2024, arXiv:2404.04656. The paper also subtracts a running mean of rewards (its delta) from both; TRL's
    pair form, and this one, do not, so that a unit's loss depends on that unit alone.

    >>> l = torch.tensor([-2.0])
    >>> bco_pair(l, l, l, l, beta=0.5)
    tensor([1.3863])
    """
    chosen_reward_B, rejected_reward_B = _rewards(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return -logsigmoid(chosen_reward_B) - logsigmoid(-rejected_reward_B)


def sppo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
) -> torch.Tensor:
    """Self-play preference optimisation (Wu et al. 2024, arXiv:2405.00675, eq. 4.7; `beta` is 1 / eta), [B].

    The log-ratio of each answer is drawn to (P(it wins) - 0.5) / beta. The paper averages the probability of winning
    over several samples of the policy; of a pair, each answer's opponent is the other one: `confidence_B` and
    1 - `confidence_B`.

    >>> l = torch.tensor([-2.0])
    >>> sppo(l, l, l, l, torch.tensor([0.75]), beta=0.5)
    tensor([0.5000])
    """
    check_shapes(
        "B",
        chosen_B=chosen_B,
        rejected_B=rejected_B,
        ref_chosen_B=ref_chosen_B,
        ref_rejected_B=ref_rejected_B,
        confidence_B=confidence_B,
    )
    aim_B = (confidence_B - 0.5) / beta
    return (chosen_B - ref_chosen_B - aim_B) ** 2 + (rejected_B - ref_rejected_B + aim_B) ** 2


def sppo_hard(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """`sppo` where the winner wins for sure, [B].

    >>> l = torch.tensor([-2.0])
    >>> sppo_hard(l, l, l, l, beta=0.5)
    tensor([2.])
    """
    return sppo(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=beta)


def apo_zero(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Anchored preference optimisation: chosen up, rejected down (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7).

    >>> l = torch.tensor([-2.0])
    >>> apo_zero(l, l, l, l, beta=0.5)
    tensor([1.])
    """
    chosen_reward_B, rejected_reward_B = _rewards(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return torch.sigmoid(-chosen_reward_B) + torch.sigmoid(rejected_reward_B)


def apo_down(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Anchored preference optimisation: both down, rejected more (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8).

    >>> l = torch.tensor([-2.0])
    >>> apo_down(l, l, l, l, beta=0.5)
    tensor([1.])
    """
    chosen_reward_B, rejected_reward_B = _rewards(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return torch.sigmoid(chosen_reward_B) + torch.sigmoid(rejected_reward_B - chosen_reward_B)


def discopop(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    *,
    beta: float,
    tau: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """The log-ratio modulated loss that DiscoPOP found (Lu et al. 2024, arXiv:2406.08414, eq. 5), [B].

    Not convex, as the paper says: with tau 0.05 its slope at a difference of 0 points to the *rejected* answer, and it
    has a minimum of its own a little below 0. For tau up to 1 the exponential is small where it counts; it is taken
    together with its weight, so that neither overflows alone.

    >>> l = torch.tensor([-2.0])
    >>> discopop(l, l, l, l, beta=0.5, tau=0.05)
    tensor([0.8466])
    """
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    z_B = beta * (chosen_score_B - rejected_score_B)
    return -torch.sigmoid(-z_B / tau) * logsigmoid(z_B) + torch.exp(logsigmoid(z_B / tau) - z_B)


def sigmoid_norm(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> torch.Tensor:
    """Length-normalised DPO: log-ratios per token (Lambert et al. 2024, Tulu 3, arXiv:2411.15124), [B].

    >>> l, tokens = torch.tensor([-2.0]), torch.tensor([4.0])
    >>> sigmoid_norm(l, l, l, l, tokens, tokens, beta=5.0)
    tensor([0.6931])
    """
    check_shapes("B", confidence_B=confidence_B, chosen_B=chosen_B)
    chosen_score_B, rejected_score_B = _scores(
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, divergence, divergence_alpha
    )
    z_B = beta * (per_token(chosen_score_B, chosen_tokens_B) - per_token(rejected_score_B, rejected_tokens_B))
    return logistic(z_B, right(confidence_B, label_smoothing))


def gamma_dpo(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    margin_B: Numbers = 0.0,
    confidence_B: Numbers = 1.0,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """DPO with `gamma` times the reference's own margin: 1 is DPO, 0 has no reference, [B].

    Chen et al. 2024, arXiv:2405.19534, appendix.

    >>> l = torch.tensor([-2.0])
    >>> gamma_dpo(l, l, l, l, beta=0.5, gamma=0.5)
    tensor([0.6931])
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
    z_B = beta * ((chosen_B - rejected_B) - gamma * (ref_chosen_B - ref_rejected_B)) - margin_B
    return logistic(z_B, right(confidence_B, label_smoothing))


def implicit_rewards(logps_B: torch.Tensor, ref_logps_B: torch.Tensor, *, beta: float) -> torch.Tensor:
    """beta * (log pi - log pi_ref), [B]: the reward that a DPO policy stands for (arXiv:2305.18290, section 4)."""
    check_shapes("B", logps_B=logps_B, ref_logps_B=ref_logps_B)
    return beta * (logps_B - ref_logps_B)


def _rewards(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_shapes(
        "B", chosen_B=chosen_B, rejected_B=rejected_B, ref_chosen_B=ref_chosen_B, ref_rejected_B=ref_rejected_B
    )
    return beta * (chosen_B - ref_chosen_B), beta * (rejected_B - ref_rejected_B)


def _scores(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    divergence: str,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen_ratio_B, rejected_ratio_B = _rewards(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, 1.0)
    return scores(chosen_ratio_B, divergence, alpha), scores(rejected_ratio_B, divergence, alpha)
