"""Statistics of paired comparisons: means, differences, win rates, and how sure one can be of them.

Knows: lists of numbers and what they are clustered by. Does not know: models, files, what was measured.

Every result is a small frozen dataclass without NaN: a number that does not exist (the standard error of one item) is
None. Intervals of means and differences are bootstrap intervals over items, or over clusters that share a source.
They are *expanded percentile* intervals (Hesterberg 2015, arXiv:1411.5279): percentiles whose levels are
moved outwards by `sqrt(k / (k - 1))` and Student's t, because plain percentiles are too narrow for small k. For large k
both agree.

A bootstrap cannot imagine what the data do not show: 40 equal pairs resample to a difference of exactly 0. Where at
least half of the items share one value, fewer than ten depart from it and the scale has known ends, one imaginary item
is added at each end of the scale and the normal interval of that sample is taken. For paired yes/no data this is the
adjusted interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37(4)). `Interval.method` says which was used.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from optative.core.errors import InputError
from optative.core.rng import stream

LEVEL = 0.95
RESAMPLES = 10_000
FEW = 10  # fewer departures than this from the commonest value: too little for a bootstrap
_CHUNK = 1 << 20  # numbers drawn at once, to bound the memory
_MOST = 1 << 28  # numbers drawn in all: from 26 844 clusters on there are fewer resamples, down to 1000


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are None where the data say nothing about the spread (one unbounded item)."""

    low: float | None
    high: float | None
    level: float
    method: Literal["bootstrap", "adjusted", "wilson", "jackknife", "undefined"]

    def to_list(self) -> list[float | None]:
        return [self.low, self.high]


@dataclass(frozen=True)
class Estimate:
    """A mean. `n` items in `clusters` clusters; `standard_error` is None for a single cluster."""

    value: float
    n: int
    clusters: int
    standard_error: float | None
    interval: Interval


@dataclass(frozen=True)
class Difference:
    """`other - base` over the same items."""

    base: float
    other: float
    difference: float
    n: int
    clusters: int
    standard_error: float | None
    interval: Interval


@dataclass(frozen=True)
class McNemar:
    """Paired yes/no outcomes: `gained` wrong then right, `lost` right then wrong. `p`: exact, two-sided."""

    gained: int
    lost: int
    both: int
    neither: int
    p: float

    @property
    def n(self) -> int:
        return self.gained + self.lost + self.both + self.neither


@dataclass(frozen=True)
class WinRate:
    """Ties count half; verdicts that are missing are counted in `missing` and enter nothing else (`n` is without them).

    `decisive_rate` leaves the ties out (wins of wins + losses); None when all are ties. `p`: sign test without ties.
    """

    rate: float | None
    wins: int
    losses: int
    ties: int
    n: int
    missing: int
    standard_error: float | None
    interval: Interval
    decisive_rate: float | None
    p: float


@dataclass(frozen=True)
class Orders:
    """Judgements in both orders, one result an item (see `collapse_orders`)."""

    scores: dict[str, float]
    win_rate: WinRate
    consistent: int
    first_shown_wins: int
    verdicts: int
    incomplete: tuple[str, ...]
    warnings: tuple[str, ...]


def z_value(level: float = LEVEL) -> float:
    """The two-sided normal quantile: 1.95996 for 0.95."""
    if not 0 < level < 1:
        raise InputError("not a confidence level", field="level", found=level, expected="a number between 0 and 1")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(successes: float, n: int, level: float = LEVEL) -> Interval:
    """Interval of a proportion (Wilson 1927); never a point, also for 0 of n.

    >>> round(wilson(0, 30).high, 4), round(wilson(1, 1).low, 4)
    (0.1135, 0.2065)
    """
    if n == 0:
        return Interval(None, None, level, "undefined")
    z2 = z_value(level) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The ends are exactly 0 and 1 for none and all; rounding must not put the share outside of its own interval.
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == n else min(1.0, centre + half),
        level,
        "wilson",
    )


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p of `wins` against `losses` at one half; 1 when there are none.

    >>> sign_test(6, 1), sign_test(3, 0), sign_test(0, 0)
    (0.125, 0.25, 1.0)
    """
    n, few = wins + losses, min(wins, losses)
    if n <= 1000:
        return min(1.0, sum(math.comb(n, i) for i in range(few + 1)) / 2 ** (n - 1))
    i = np.arange(1, few + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log(n - i + 1.0) - np.log(i))]) - (n - 1) * math.log(2)
    return min(1.0, float(np.exp(log_terms).sum()))


def mcnemar(base: Sequence[Any], other: Sequence[Any]) -> McNemar:
    """Exact McNemar test on paired yes/no outcomes (item i of `base` and of `other` is the same item)."""
    a, b = _binary(base, "base"), _binary(other, "other")
    _same_length(a, b)
    gained, lost = int((~a & b).sum()), int((a & ~b).sum())
    return McNemar(gained, lost, int((a & b).sum()), int((~a & ~b).sum()), sign_test(gained, lost))


def mean(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean with its interval. Values that are all 0 or 1, without clusters, get Wilson's; others the bootstrap.

    `clusters`: what item i belongs to; `bounds`: the ends of the scale, where it has some.
    """
    v = _numbers(values, "values")
    sums, sizes = _by_cluster(v, clusters)
    error = _standard_error(sums, sizes)
    if bounds == (0, 1) and len(sizes) == len(v) and np.isin(v, (0.0, 1.0)).all():
        interval = wilson(int(v.sum()), len(v), level)
    else:
        interval = _interval(sums, sizes, bounds, level, seed, resamples)
    return Estimate(float(v.mean()), len(v), len(sizes), error, interval)


def paired_difference(
    base: Sequence[float] | np.ndarray,
    other: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Mean of `other - base`, item by item, with its interval.

    `bounds` are the ends of the scale of the scores (0 and 1 for right and wrong). Without them, equal differences
    everywhere are judged on the observed range of the scores; if that is empty too, the interval is undefined.
    """
    a, b = _numbers(base, "base"), _numbers(other, "other")
    _same_length(a, b)
    sums, sizes = _by_cluster(b - a, clusters)
    low, high = bounds if bounds is not None else (min(a.min(), b.min()), max(a.max(), b.max()))
    width = float(high - low)
    constant = np.ptp(sums / sizes) < 1e-12
    scale = (-width, width) if width > 0 and (bounds is not None or constant) else None
    interval = _interval(sums, sizes, scale, level, seed, resamples)
    means = float(a.mean()), float(b.mean())
    return Difference(*means, float((b - a).mean()), len(a), len(sizes), _standard_error(sums, sizes), interval)


def paired_ratio(
    base: Sequence[float] | np.ndarray,
    other: Sequence[float] | np.ndarray,
    *,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float | None, Interval]:
    """Ratio of the means `other / base` over the same items, with its interval; None when the base is all 0."""
    a, b = _numbers(base, "base"), _numbers(other, "other")
    _same_length(a, b)
    if a.sum() <= 0:
        return None, Interval(None, None, level, "undefined")
    ratio = float(b.sum() / a.sum())
    if len(a) == 1 or np.allclose(b, ratio * a):
        return ratio, Interval(None, None, level, "undefined")
    return ratio, _bootstrap(b, a, level, seed, resamples)


def jackknife(without_each: Sequence[float] | np.ndarray, value: float, level: float = LEVEL) -> Interval:
    """Interval of any statistic from its values with item i left out (Tukey's jackknife, Student's t).

    For statistics that count distinct things: an item drawn twice brings nothing new, so a bootstrap of them is biased.
    """
    v = _numbers(without_each, "without_each")
    if len(v) < 2:
        return Interval(None, None, level, "undefined")
    error = math.sqrt((len(v) - 1) / len(v) * float(((v - v.mean()) ** 2).sum()))
    if error == 0:
        return Interval(None, None, level, "undefined")
    half = _t_value(level, len(v) - 1) * error
    return Interval(value - half, value + half, level, "jackknife")


def win_rate(scores: Iterable[float | None], *, level: float = LEVEL, seed: int = 0) -> WinRate:
    """Win rate from scores of 1 (win), 0 (loss), 0.5 (tie) or None / NaN (no verdict).

    >>> rate = win_rate([1] * 3 + [0] + [0.5] * 46)
    >>> rate.rate, rate.wins, rate.losses, rate.ties, round(rate.standard_error, 4)
    (0.52, 3, 1, 46, 0.02)
    """
    given = [None if s is None or s != s else float(s) for s in scores]
    v = [s for s in given if s is not None]
    if any(not 0 <= s <= 1 for s in v):
        raise InputError("not a score", field="scores", found=next(s for s in v if not 0 <= s <= 1), expected="0 to 1")
    wins, losses = sum(s > 0.5 for s in v), sum(s < 0.5 for s in v)
    decisive = wins / (wins + losses) if wins + losses else None
    counts = {
        "wins": wins,
        "losses": losses,
        "ties": len(v) - wins - losses,
        "n": len(v),
        "missing": len(given) - len(v),
    }
    if not v:
        nothing = Interval(None, None, level, "undefined")
        return WinRate(None, **counts, standard_error=None, interval=nothing, decisive_rate=None, p=1.0)
    found = mean(v, bounds=(0, 1), level=level, seed=seed)
    p = sign_test(wins, losses)
    return WinRate(
        found.value, **counts, standard_error=found.standard_error, interval=found.interval, decisive_rate=decisive, p=p
    )


def preference_score(preference: float | None) -> float | None:
    """Score of a preference coded 1 (baseline better) to 2 (ours better), 0 or 1.5 a tie, NaN or None no verdict."""
    if preference is None or preference != preference:
        return None
    if preference == 0:
        return 0.5
    if not 1 <= preference <= 2:
        raise InputError("not a preference", field="preference", found=preference, expected="0, 1 to 2, or none")
    return float(preference) - 1.0


def collapse_orders(verdicts: Iterable[tuple[Hashable, str, str | None]], *, level: float = LEVEL) -> Orders:
    """One result an item from a judge that saw each pair in both orders.

    `verdicts`: (item, which was shown first: "a" or "b", who won: "a", "b", "tie" or None). An item is a win of `a` or
    of `b` if both orders say so, else a tie. Items without a verdict in each order are listed in `incomplete` and left
    out of all counts, never mixed with the doubled ones.
    """
    seen: dict[str, dict[str, str | None]] = {}
    for item, first, winner in verdicts:
        if first not in ("a", "b") or winner not in ("a", "b", "tie", None):
            raise InputError(
                "not a verdict", field=str(item), found=(first, winner), expected="a or b first; a, b, tie or none won"
            )
        orders = seen.setdefault(str(item), {})
        if first in orders:
            raise InputError(f"item {item} was judged twice with {first} first; keep one verdict an order")
        orders[first] = winner
    complete = {item: o for item, o in seen.items() if o.get("a") is not None and o.get("b") is not None}
    scores = {
        i: 1.0 if o["a"] == o["b"] == "a" else 0.0 if o["a"] == o["b"] == "b" else 0.5 for i, o in complete.items()
    }
    consistent = sum(o["a"] == o["b"] for o in complete.values())
    first_wins = sum((o["a"] == "a") + (o["b"] == "b") for o in complete.values())
    always_first = sum(o["a"] == "a" and o["b"] == "b" for o in complete.values())
    always_second = sum(o["a"] == "b" and o["b"] == "a" for o in complete.values())
    incomplete = tuple(i for i in seen if i not in complete)
    warnings = []
    if complete and (consistent < len(complete) / 2 or sign_test(always_first, always_second) < 0.05):
        warnings.append(
            f"the judge depends on the order: it agrees with itself on {consistent} of {len(complete)} items, and the "
            f"answer shown first wins {first_wins} of {2 * len(complete)} verdicts"
        )
    if incomplete:
        warnings.append(
            f"{len(incomplete)} items lack a verdict in one order and are left out: {', '.join(incomplete[:10])}"
        )
    rate = win_rate(scores.values(), level=level)
    return Orders(scores, rate, consistent, first_wins, 2 * len(complete), incomplete, tuple(warnings))


def _interval(
    sums: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float] | None, level: float, seed: int, resamples: int
) -> Interval:
    """Of the mean `sums.sum() / sizes.sum()` over clusters: bootstrap, or adjusted where the data are too sparse."""
    k = len(sizes)
    commonest = int(np.unique(np.round(sums / sizes, 12), return_counts=True)[1].max())
    if bounds is not None and (commonest == k or (2 * commonest >= k and k - commonest < FEW)):
        values = np.append(_linearised(sums, sizes), bounds)
        half = z_value(level) * float(values.std()) / math.sqrt(len(values))
        centre, value = float(values.mean()), float(sums.sum() / sizes.sum())
        low, high = max(bounds[0], centre - half), min(bounds[1], centre + half)
        return Interval(min(low, value), max(high, value), level, "adjusted")
    if commonest == k:
        return Interval(None, None, level, "undefined")
    return _bootstrap(sums, sizes, level, seed, resamples)


def _bootstrap(numerator: np.ndarray, denominator: np.ndarray, level: float, seed: int, resamples: int) -> Interval:
    """Expanded percentile interval of `numerator.sum() / denominator.sum()` over resampled units.

    Units are sorted first, so that the interval does not depend on the order of the items.
    """
    units, counts = np.unique(np.stack([numerator, denominator], axis=1), axis=0, return_counts=True)
    k, rng = int(counts.sum()), stream(seed, "bootstrap")
    if len(units) <= 32:  # few different units (right and wrong): draw how often each occurs
        drawn = rng.multinomial(k, counts / k, size=resamples) @ units
    else:
        rows, resamples = np.repeat(units, counts, axis=0), min(resamples, max(1000, _MOST // k))
        step, drawn = max(1, _CHUNK // k), np.empty((resamples, 2))
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            picked = rng.integers(0, k, size=(size, k), dtype=np.int32)
            for column in (0, 1):
                same = np.ptp(rows[:, column]) == 0  # items without clusters all count 1
                total = rows[0, column] * k if same else rows[:, column].take(picked).sum(axis=1)
                drawn[start : start + size, column] = total
    drawn = drawn[drawn[:, 1] > 0]
    tail = NormalDist().cdf(-math.sqrt(k / (k - 1)) * _t_value(level, k - 1))
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return Interval(float(low), float(high), level, "bootstrap")


def _linearised(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """One value a cluster whose mean is the ratio and whose spread is that of the ratio (its linearisation)."""
    value = sums.sum() / sizes.sum()
    return value + (sums - value * sizes) / sizes.mean()


def _standard_error(sums: np.ndarray, sizes: np.ndarray) -> float | None:
    k = len(sizes)
    return None if k < 2 else float(_linearised(sums, sizes).std(ddof=1) / math.sqrt(k))


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each cluster; each item is its own without `clusters`."""
    if clusters is None:
        return values, np.ones(len(values))
    if len(clusters) != len(values):
        raise InputError(f"{len(clusters)} cluster names for {len(values)} items")
    index: dict[Hashable, int] = {}
    which = np.array([index.setdefault(c, len(index)) for c in clusters])
    return np.bincount(which, weights=values), np.bincount(which).astype(float)


def _t_value(level: float, degrees: int) -> float:
    from scipy.special import stdtrit

    z_value(level)  # refuses a level that is none
    return float(stdtrit(degrees, 0.5 + level / 2))


def _numbers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise InputError(
            "no items to average", field=name, found=f"shape {array.shape}", expected="at least one number"
        )
    if not np.isfinite(array).all():
        at = int(np.argmin(np.isfinite(array)))
        raise InputError("not a finite number", field=f"{name}[{at}]", found=float(array[at]))
    return array


def _binary(values: Any, name: str) -> np.ndarray:
    array = _numbers(values, name)
    if not np.isin(array, (0.0, 1.0)).all():
        raise InputError(
            "not yes or no", field=name, found=float(array[~np.isin(array, (0.0, 1.0))][0]), expected="0 or 1"
        )
    return array.astype(bool)


def _same_length(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise InputError(f"not paired: {len(a)} and {len(b)} items")
