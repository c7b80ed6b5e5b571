"""Does a model rank pairs as people did, how well could it at best, and which pairs can its loss not fix?

Knows: summed log-probabilities of chosen and rejected answers, token counts, vote shares. Does not know: models, texts,
intervals (`core.stats`). After Chen et al. 2024 (arXiv:2405.19534, called C below). Everything stays in logarithms:
the probability of an answer underflows, and `(share / (1 - share)) ** (1 / beta)` overflows for a small beta.

Shapes: B pairs, K values of beta, N answers of one prompt. `tokens` are counts; with them a log-probability is divided
by its own count (the length-normalised variants). Values of 0.5 are ties: equal numbers decide nothing, so they count
half; C counts a tie of log-probabilities as right, which differs only where two floats are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optative.core.errors import InputError

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)  # C, section 3.2
EPSILON = 1e-3  # what replaces a vote share of 0 (or the rest of one of 1), C, section 3.2
TIE = 0.01  # C, section 2: two answers judged equal should differ by less than this in probability


def margin(
    chosen_B: Any, rejected_B: Any, chosen_tokens_B: Any | None = None, rejected_tokens_B: Any | None = None
) -> np.ndarray:
    """Log-probability of the chosen minus the rejected answer, [B], in nats; per token where counts are given."""
    chosen, rejected = _columns(chosen_B=chosen_B, rejected_B=rejected_B)
    if (chosen_tokens_B is None) != (rejected_tokens_B is None):
        raise InputError("give the token counts of both answers or of none", field="tokens")
    if chosen_tokens_B is not None:
        _, own, other = _columns(chosen_B=chosen, chosen_tokens_B=chosen_tokens_B, rejected_tokens_B=rejected_tokens_B)
        if min(own.min(), other.min()) < 1:
            raise InputError("an answer of no tokens has no mean", field="tokens", found=0, expected="1 or more")
        chosen, rejected = chosen / own, rejected / other
    return chosen - rejected


def half_ties(differences_B: Any) -> np.ndarray:
    """1 where the first is larger, 0 where it is smaller, 0.5 where both are equal.

    >>> half_ties([2.0, -1.0, 0.0]).tolist()
    [1.0, 0.0, 0.5]
    """
    return (np.sign(np.asarray(differences_B, float)) + 1) / 2


def ranked_right(
    chosen_B: Any, rejected_B: Any, chosen_tokens_B: Any | None = None, rejected_tokens_B: Any | None = None
) -> np.ndarray:
    """Ranking accuracy pair by pair, [B] of 0, 0.5, 1 (C, section 2); with token counts the normalised one.

    No reference takes part: the reward accuracy that trainers log, `log-ratio of chosen > log-ratio of rejected`, is
    another number, and says nothing about which answer the model would rather give.
    """
    return half_ties(margin(chosen_B, rejected_B, chosen_tokens_B, rejected_tokens_B))


def tied_right(first_B: Any, second_B: Any, tolerance: float = TIE) -> np.ndarray:
    """1 where two answers that were judged equal have probabilities closer than `tolerance` (C, section 2), [B].

    For long answers both probabilities are near 0 and every tie counts as right; the number means something for short
    answers only.
    """
    first, second = _columns(first_B=first_B, second_B=second_B)
    gap = np.exp(np.maximum(first, second)) * -np.expm1(-np.abs(first - second))
    return (gap < tolerance).astype(float)


def order_right(logps_N: Any, ranks_N: Any) -> float:
    """1.0 if the answers of one prompt have exactly the judged order (ranks: 0 is best, equal is tied), C, section 2.

    Both orders are compared as maximal ranks: answers of equal value share the largest rank among them.
    """
    logps, ranks = _columns(logps_N=logps_N, ranks_N=ranks_N)
    return float(np.array_equal(_maximal_ranks(-logps), _maximal_ranks(ranks)))


def log_odds(shares_B: Any, epsilon: float = EPSILON) -> np.ndarray:
    """Log-odds of vote shares P(chosen beats rejected), [B]; shares are kept `epsilon` away from 0 and 1."""
    (shares,) = _columns(shares_B=shares_B)
    if shares.min() < 0 or shares.max() > 1:
        wrong = float(shares[(shares < 0) | (shares > 1)][0])
        raise InputError("not a share", field="shares", found=wrong, expected="0 to 1")
    kept = np.clip(shares, epsilon, 1 - epsilon)
    return np.log(kept) - np.log1p(-kept)


def idealised_margin(reference_margin_B: Any, shares_B: Any, betas_K: Sequence[float] = BETAS) -> np.ndarray:
    """Margin of the policy that DPO or RLHF would reach with perfect optimisation, [K, B] (C, theorem 3.1).

    `log pi*(w) - log pi*(l) = log pi_ref(w) - log pi_ref(l) + log-odds(share) / beta`: Bradley-Terry votes and an
    optimum of the objective in the whole space of policies. With a reference margin per token this is the normalised
    variant of C's table 1: the reference's length is normalised, the votes' term is not.
    """
    reference, odds = _columns(reference_margin_B=reference_margin_B, log_odds_B=log_odds(shares_B))
    return reference[None, :] + odds[None, :] / _betas(betas_K)[:, None]


def idealised_right(reference_margin_B: Any, shares_B: Any, betas_K: Sequence[float] = BETAS) -> np.ndarray:
    """Idealised ranking accuracy pair by pair, [K, B] of 0, 0.5, 1 (C, corollary 3.3). Its means are R*(beta)."""
    return half_ties(idealised_margin(reference_margin_B, shares_B, betas_K))


def median_row(right_KB: Any) -> np.ndarray:
    """Pair by pair, the row whose mean is the median over betas, [B]; the mean of the middle two for an even number.

    Its difference to `ranked_right` is the alignment gap `R*(median) - R`, and stays paired.
    """
    right = np.asarray(right_KB, float)
    if right.ndim != 2 or not right.size:
        raise InputError("wrong shape", field="right_KB", found=right.shape, expected="[K, B], not empty")
    order = np.argsort(right.mean(axis=1), kind="stable")
    middle = order[(len(order) - 1) // 2 : len(order) // 2 + 1]
    return right[middle].mean(axis=0)


def difficulty(ref_chosen_B: Any, ref_rejected_B: Any) -> np.ndarray:
    """c = log pi_ref(rejected) - log pi_ref(chosen), [B], in nats: how much the reference prefers the wrong answer."""
    return -margin(ref_chosen_B, ref_rejected_B)


def required_loss(difficulty_B: Any, beta: float) -> np.ndarray:
    """The DPO loss below which a pair is ranked right, [B]: `-log sigmoid(beta * c)` (C, theorem 4.1).

    Necessary and sufficient, so it tells before any training which pairs a usual loss cannot fix. A pair whose
    reference is right (c <= 0) is ranked right by any loss below log 2 = 0.693.
    """
    return np.logaddexp(0.0, -beta * _columns(difficulty_B=difficulty_B)[0])


def auc(scores_B: Any, right_B: Any) -> float:
    """Probability that a pair that is right has a larger score than one that is not; equal scores count half.

    The area under the ROC curve (Mann and Whitney 1947). Raises InputError when all pairs are right, or none.
    """
    scores, right = _columns(scores_B=scores_B, right_B=right_B)
    good, bad = scores[right > 0.5], scores[right <= 0.5]
    if not len(good) or not len(bad):
        raise InputError("nothing to tell apart", field="right", found=f"{len(good)} right, {len(bad)} wrong")
    return float(half_ties(good[:, None] - bad[None, :]).mean())


def ipo_required_loss(difficulty_B: Any, tau: float) -> np.ndarray:
    """The IPO loss `(h - 1 / (2 tau))**2` below which a pair is certain to be ranked right, [B] (C, appendix on IPO).

    h is the difference of log-ratios. -inf where `c > 1 / (2 tau)`: there a loss of 0 means the wrong order, and no
    loss is low enough. Unlike for DPO the bound is sufficient only: the loss rises again beyond its target.
    """
    room = 1 / (2 * tau) - _columns(difficulty_B=difficulty_B)[0]
    return np.where(room >= 0, room**2, -np.inf)


def largest_beta(difficulty_B: Any, shares_B: Any) -> np.ndarray:
    """The beta below which a perfectly optimised policy ranks the pair right, [B].

    `log-odds(share) / c` where the reference is wrong and voters are on the label's side, inf where every beta will
    do, 0 where none does (the reference is wrong and so are the voters). Where the reference is right and the voters
    are not, small betas are the harmful ones, and the number would bound from the other side: it is 0 too.
    """
    hard, odds = _columns(difficulty_B=difficulty_B, log_odds_B=log_odds(shares_B))
    wanted = np.divide(odds, hard, out=np.zeros_like(odds), where=(hard > 0) & (odds > 0))
    return np.where((hard <= 0) & (odds >= 0) & ((hard < 0) | (odds > 0)), np.inf, wanted)


def _columns(**columns: Any) -> tuple[np.ndarray, ...]:
    """Float64 columns of one length without NaN, or an error that names the column."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    size = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.ndim != 1 or not len(array):
            raise InputError("wrong shape", field=name, found=array.shape, expected="one number a pair, at least one")
        if array.shape != size:
            raise InputError("wrong shape", field=name, found=array.shape, expected=str(size))
        if not np.isfinite(array).all():
            at = int(np.argmin(np.isfinite(array)))
            raise InputError("not a finite number", field=f"{name}[{at}]", found=float(array[at]))
    return tuple(arrays.values())


def _betas(betas: Sequence[float]) -> np.ndarray:
    (found,) = _columns(betas=list(betas))
    if found.min() <= 0:
        raise InputError("not a beta", field="beta", found=float(found.min()), expected="a number above 0")
    return found


def _maximal_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value counting from the smallest; equal values share the largest rank among them."""
    return np.searchsorted(np.sort(values), values, side="right")
