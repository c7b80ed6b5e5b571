"""Win rates that length cannot buy.

Knows: judged comparisons with lengths. Does not know: judges, texts. `core.stats.win_rate` counts wins and ties; here
the part that a judge gives to the longer answer is estimated and taken out.

The length-controlled win rate follows Dubois et al. 2024 (arXiv:2404.04475, eq. 1 to 3): a logistic model without an
intercept of its own predicts each verdict from a constant, the difference of lengths and, where known, how difficult
the instruction is; the win rate is then predicted as if no lengths differed. Two departures from the published
program. It also penalises the constant, which pulls two models of nearly equal merit to a win rate of exactly one half;
here only length and difficulty are penalised, so that the rate is the raw one where length does not matter. And its two
"gamed" copies of the baseline are left out: they need answers that a comparison of two results does not have.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.core.rng import stream
from optative.core.stats import Interval, WinRate

FOLDS = 5
STRENGTHS = tuple(10.0 ** (-4 + 8 * i / 9) for i in range(10))  # inverse penalties that cross-validation chooses from
BLOCKS = 100  # of the jackknife: refits are bounded
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class LengthControlled:
    """`raw`: wins, ties and losses as they are. `rate`: the effect of length taken out, with its jackknife interval.

    `length_effect`: coefficient of `tanh(length difference / its standard deviation)`, above 0 when the judge prefers
    longer answers. `strength`: the inverse penalty that cross-validation chose. `strata`: mean of the win rates where
    the answer was longer and where it was not, a check that needs no model; None when one of the two is empty.
    """

    raw: WinRate
    rate: float
    interval: Interval
    length_effect: float
    strength: float
    strata: float | None
    warnings: tuple[str, ...]


def length_controlled(
    scores: Sequence[float | None],
    lengths: Sequence[float],
    baseline_lengths: Sequence[float],
    *,
    difficulty: Sequence[float] | None = None,
    prompts: Sequence[Hashable] | None = None,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> LengthControlled:
    """Length-controlled win rate of an answer over a baseline's.

    scores: 1 the answer wins, 0 the baseline, 0.5 a tie, or a probability between; None: no verdict, left out of all.
    lengths: in one unit (the published program counts characters). difficulty: one number an instruction, the same for
    all models; absent by default, because two models alone cannot tell it. prompts: what a comparison belongs to, so
    that folds and the jackknife keep samples of one prompt together.
    Raises InputError when fewer than two prompts have a verdict.
    """
    raw = stats.win_rate(scores, level=level, seed=seed)
    kept = np.array([s is not None and s == s for s in scores], dtype=bool)
    p = np.array([s for s, keep in zip(scores, kept) if keep], dtype=float)
    own, other = (np.asarray(v, float)[kept] for v in _same(scores, lengths, baseline_lengths))
    groups = np.array([_index(prompts, len(kept))[i] for i in np.flatnonzero(kept)], dtype=int)
    names = np.unique(groups)
    if len(names) < 2:
        raise InputError("too few verdicts for a length-controlled win rate", found=len(names), expected="2 prompts")
    term = length_term(own, other)
    features = [np.ones(len(p)), term]
    if difficulty is not None:
        features.append(np.asarray(_same(scores, difficulty)[0], float)[kept])
    x = np.stack(features, axis=1)
    strength = _chosen_strength(x, p, groups, names, seed)
    weights = _fit(x, p, strength)
    rate = _without_length(x, weights)
    blocks = np.array_split(stream(seed, "blocks").permutation(names), min(BLOCKS, len(names)))
    left_out = []
    for block in blocks:
        rest = ~np.isin(groups, block)
        left_out.append(_without_length(x[rest], _fit(x[rest], p[rest], strength, start=weights)))
    found = stats.jackknife(left_out, rate, level)
    if found.low is not None and found.high is not None:
        found = Interval(max(0.0, found.low), min(1.0, found.high), level, found.method)
    return LengthControlled(
        raw, rate, found, float(weights[1]), strength, stratified(p, own, other), _warnings(raw, rate)
    )


def length_term(lengths: Any, baseline_lengths: Any) -> np.ndarray:
    """`tanh((length - baseline length) / standard deviation of the differences)`, [B]; zeros where they never vary."""
    difference = np.asarray(lengths, float) - np.asarray(baseline_lengths, float)
    spread = difference.std()
    return np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))


def stratified(scores: Any, lengths: Any, baseline_lengths: Any) -> float | None:
    """Mean of the win rates where the answer is longer than the baseline's and where it is not; None without both."""
    p, longer = np.asarray(scores, float), np.asarray(lengths, float) > np.asarray(baseline_lengths, float)
    if longer.all() or not longer.any():
        return None
    return float((p[longer].mean() + p[~longer].mean()) / 2)


def _warnings(raw: WinRate, rate: float) -> tuple[str, ...]:
    assert raw.rate is not None
    if abs(rate - raw.rate) <= max(0.1, 0.25 * raw.rate):
        return ()
    return (f"the win rate is {raw.rate:.1%}, and {rate:.1%} when length is controlled: length decides a large part",)


def _without_length(x: np.ndarray, weights: np.ndarray) -> float:
    counterfactual = x.copy()
    counterfactual[:, 1] = 0.0
    return float(_sigmoid(counterfactual @ weights).mean())


def _fit(x: np.ndarray, p: np.ndarray, strength: float, start: np.ndarray | None = None) -> np.ndarray:
    """Minimum of `strength * sum(cross-entropy) + sum |w|`: Newton steps, each solved by coordinate descent.

    The first coefficient, the constant's, bears no penalty. Soft targets are what weighting a 1 by p and a 0 by 1 - p
    is.
    """
    w = np.zeros(x.shape[1]) if start is None else start.copy()

    def value(w: np.ndarray) -> float:
        z = x @ w
        return strength * float((np.logaddexp(0.0, z) - p * z).sum()) + float(np.abs(w[1:]).sum())

    now = value(w)
    for _ in range(200):
        q = _sigmoid(x @ w)
        gradient = strength * x.T @ (q - p)
        hessian = strength * (x * (q * (1 - q))[:, None]).T @ x + 1e-12 * np.eye(len(w))
        step = _lasso(hessian, gradient, w) - w
        size, better = 1.0, value(w + step)
        while better > now and size > 1e-8:
            size /= 2
            better = value(w + size * step)
        if better >= now:
            return w
        w, gained, now = w + size * step, now - better, better
        if gained < _TOLERANCE * max(1.0, abs(now)):
            return w
    return w


def _lasso(hessian: np.ndarray, gradient: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Minimum over v of `g (v - w) + (v - w) H (v - w) / 2 + sum |v|`, the first coefficient free."""
    v = w.copy()
    for _ in range(1000):
        before = v.copy()
        for j in range(len(v)):
            slope = gradient[j] + hessian[j] @ (v - w) - hessian[j, j] * v[j]
            v[j] = -np.sign(slope) * max(abs(slope) - (j > 0), 0.0) / hessian[j, j]
        if np.abs(v - before).max() < 1e-12:
            break
    return v


def _chosen_strength(x: np.ndarray, p: np.ndarray, groups: np.ndarray, names: np.ndarray, seed: int) -> float:
    """The inverse penalty of the lowest held-out cross-entropy, folds by prompt; the smallest of equal ones."""
    folds = np.array_split(stream(seed, "folds").permutation(names), min(FOLDS, len(names)))
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for fold in folds:
            held_out = np.isin(groups, fold)
            z = x[held_out] @ _fit(x[~held_out], p[~held_out], strength)
            total += float((np.logaddexp(0.0, z) - p[held_out] * z).sum())
        losses.append(total)
    return STRENGTHS[int(np.argmin(losses))]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -z))


def _same(scores: Sequence[Any], *columns: Sequence[float]) -> tuple[Sequence[float], ...]:
    for column in columns:
        if len(column) != len(scores):
            raise InputError(f"not paired: {len(scores)} scores and {len(column)} lengths")
        if not np.isfinite(np.asarray(column, float)).all():
            raise InputError("not a finite number", field="lengths")
    return columns


def _index(prompts: Sequence[Hashable] | None, size: int) -> list[int]:
    if prompts is None:
        return list(range(size))
    if len(prompts) != size:
        raise InputError(f"not paired: {size} scores and {len(prompts)} prompts")
    places: dict[Hashable, int] = {}
    return [places.setdefault(p, len(places)) for p in prompts]
