"""How far sampling is from the policy, and how a policy's mass moves: on-policy-ness and mode seeking.

Knows: log-probabilities, rewards. Does not know: models, losses, trainers. After Tajwar et al. 2024 (arXiv:2404.14367,
called T below): whether fresh samples and negative gradients pay depends on where the reward peaks under the reference.

Two kinds of policy. A categorical one over K answers is given as log-probabilities [K] (or [S, K] over steps), and its
measures are exact; -inf is a probability of 0. A language model is known by N samples and their log-probabilities,
and its measures are means with intervals; samples of one prompt are one cluster. Nats everywhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.core.stats import Estimate


@dataclass(frozen=True)
class SampledKL:
    """KL(sampler || policy) from samples of the sampler. Both have the same mean; k3 is never negative and varies less.

    `effective_share`: (sum w)^2 / (N sum w^2) with importance weights w = policy / sampler: 1 when on-policy, near 0
    when a few samples would carry an off-policy estimate.
    """

    k1: Estimate
    k3: Estimate
    effective_share: float


def sampled_kl(
    sampler_N: Any,
    policy_N: Any,
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> SampledKL:
    """How off-policy the samples are: k1 = -log r, k3 = (r - 1) - log r, r = policy / sampler (Schulman 2020).

    sampler_N: log-probabilities that the samples were drawn with; policy_N: those of the policy that trains on them;
    of whole answers or of single tokens. Both are 0 in the first step of an on-policy method: a difference there means
    that sampling used another temperature, truncation of the distribution, dtype or template than training.
    """
    sampler, policy = _finite(sampler_N, "sampler"), _finite(policy_N, "policy")
    if sampler.shape != policy.shape:
        raise InputError(f"not paired: {len(sampler)} and {len(policy)} samples")
    log_ratio = policy - sampler
    weights = np.exp(log_ratio - log_ratio.max())
    return SampledKL(
        stats.mean(-log_ratio, clusters=clusters, level=level, seed=seed),
        stats.mean(np.expm1(log_ratio) - log_ratio, clusters=clusters, level=level, seed=seed),
        float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())),
    )


def sampled_entropy(
    logps_N: Any, *, clusters: Sequence[Hashable] | None = None, level: float = stats.LEVEL, seed: int = 0
) -> Estimate:
    """Entropy of a policy from log-probabilities of its own samples: the mean of -log p."""
    return stats.mean(-_finite(logps_N, "logps"), clusters=clusters, level=level, seed=seed)


def entropy(logps_K: Any) -> float:
    """Exact entropy of a categorical policy."""
    p = np.exp(_policy(logps_K, "logps"))
    return float(-_xlogy(p, np.asarray(logps_K, float)).sum())


def kl(logps_K: Any, other_K: Any) -> float:
    """Exact KL(first || second); inf where the second has no mass on what the first may give.

    `kl(target, policy)` is the forward (mode-covering) divergence that supervised losses lower, `kl(policy, target)`
    the reverse (mode-seeking) one of on-policy and contrastive losses (T, section 6).
    """
    first, second = _policy(logps_K, "first"), _policy(other_K, "second")
    if first.shape != second.shape:
        raise InputError("wrong shape", field="second", found=second.shape, expected=str(first.shape))
    possible = np.isfinite(first)
    return float((np.exp(first[possible]) * (first[possible] - second[possible])).sum())


def tail_index(
    rewards: Any,
    logps_K: Any | None = None,
    *,
    top: float = 0.1,
    clusters: Sequence[Hashable] | None = None,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> Estimate:
    """Mass of the reference in the region of the best rewards; small means that fresh samples will be needed (T).

    The region is every answer with a reward of at least `max - top * (max - min)`. With `logps_K` the mass is that of
    a categorical reference, exact and without an interval; without, `rewards` are those of samples of the reference
    and the mass is their share (then the largest reward is the largest *seen*, so that the share is an upper bound).
    Rewards that are all equal have no peak: InputError.
    """
    values = _finite(rewards, "rewards")
    if not 0 <= top <= 1:
        raise InputError("not a share of the range", field="top", found=top, expected="0 to 1")
    if np.ptp(values) == 0:
        raise InputError("all rewards are equal, so that there is no best region", field="rewards", found=values[0])
    inside = values >= values.max() - top * np.ptp(values)
    if logps_K is None:
        return stats.mean(inside.astype(float), clusters=clusters, bounds=(0, 1), level=level, seed=seed)
    logps = _policy(logps_K, "logps")
    if logps.shape != values.shape:
        raise InputError("wrong shape", field="logps", found=logps.shape, expected=str(values.shape))
    mass = float(np.exp(logps)[inside].sum())
    return Estimate(mass, len(values), len(values), None, stats.Interval(mass, mass, level, "undefined"))


def mass_moved(logps_SK: Any) -> np.ndarray:
    """Mass that each step relocates: the total variation distance between neighbouring policies, [S - 1]."""
    p = np.exp(_policies(logps_SK))
    return 0.5 * np.abs(np.diff(p, axis=0)).sum(axis=1)


def share_arrived(logps_SK: Any, target_K: Any) -> np.ndarray:
    """Share of the way to the target, [S]: 1 - TV(policy, target) / TV(first policy, target); 0 at the first step."""
    p, q = np.exp(_policies(logps_SK)), np.exp(_policy(target_K, "target"))
    distance = 0.5 * np.abs(p - q).sum(axis=1)
    if distance[0] == 0:
        raise InputError("the first policy is the target already", field="target")
    return 1 - distance / distance[0]


def steps_to(share_S: Any, share: float = 0.5) -> int | None:
    """The first step at which a share of the way (`share_arrived`) is reached; None if never."""
    reached = np.flatnonzero(np.asarray(share_S, float) >= share)
    return int(reached[0]) if len(reached) else None


def flow(logits_K: Any, target_K: Any, *, direction: str, rate: float, steps: int) -> np.ndarray:
    """Log-probabilities [steps + 1, K] of a softmax policy that follows the gradient of a KL to the target (T, sec. 6).

    `forward`: `d logit = q - p`, what maximum likelihood on samples of the target does; `reverse`:
    `d logit = -p * (log(p / q) - KL(p || q))`, what on-policy and contrastive losses do. Explicit steps of size `rate`.
    """
    if direction not in ("forward", "reverse"):
        raise InputError("no such flow", field="direction", found=direction, expected="forward or reverse")
    logits, log_q = np.array(logits_K, float), _policy(target_K, "target")
    path = [_log_softmax(logits)]
    for _ in range(steps):
        log_p = path[-1]
        p = np.exp(log_p)
        if direction == "forward":
            logits = logits + rate * (np.exp(log_q) - p)
        else:
            gap = log_p - log_q
            logits = logits - rate * p * (gap - (p * gap).sum())
        path.append(_log_softmax(logits))
    return np.stack(path)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _xlogy(p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """p * log q with 0 where p is 0."""
    return np.multiply(p, log_q, out=np.zeros_like(p), where=p > 0)


def _finite(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InputError("wrong values", field=name, found=array.shape, expected="finite numbers [N], at least one")
    return array


def _policy(logps_K: Any, name: str) -> np.ndarray:
    return _policies(np.asarray(logps_K, float)[None], name)[0]


def _policies(logps_SK: Any, name: str = "logps") -> np.ndarray:
    array = np.asarray(logps_SK, float)
    if array.ndim != 2 or not array.size or np.isnan(array).any():
        raise InputError("wrong shape", field=name, found=array.shape, expected="log-probabilities of K answers")
    total = np.exp(array).sum(axis=-1)
    if not np.allclose(total, 1, atol=1e-6):
        wrong = float(total[int(np.argmax(np.abs(total - 1)))])
        raise InputError("probabilities do not sum to 1", field=name, found=wrong, expected="log-probabilities")
    return array
