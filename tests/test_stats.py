"""Statistics against scipy, against sums by hand, and by simulation; cases 21, 22 and 28."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from optative.core import stats
from optative.core.errors import InputError


def as_json(result: object) -> str:
    return json.dumps(dataclasses.asdict(result), allow_nan=False)  # type: ignore[call-overload]


# Case 21: ties and missing verdicts in a win rate.


def test_ties_count_half_and_spread_comes_from_the_scores() -> None:
    ours = stats.win_rate([1] * 3 + [0] + [0.5] * 46)
    assert (ours.rate, ours.wins, ours.losses, ours.ties, ours.n, ours.missing) == (0.52, 3, 1, 46, 50, 0)
    assert ours.standard_error == pytest.approx(0.0200, abs=5e-5)
    assert ours.standard_error * math.sqrt(50) == pytest.approx(0.1414, abs=5e-5)
    assert ours.decisive_rate == 0.75
    assert ours.interval.low < 0.5 < 0.52 < ours.interval.high
    assert ours.interval.high - ours.interval.low < 0.1  # sqrt(p (1 - p) / n) would give 0.28
    theirs = stats.win_rate([0] * 3 + [1] + [0.5] * 46)
    assert theirs.rate + ours.rate == 1
    assert theirs.interval.low == pytest.approx(1 - ours.interval.high)


def test_preferences_with_two_codes_of_a_tie_and_a_missing_verdict() -> None:
    scores = [stats.preference_score(p) for p in (1, 2, 0, 1.5, math.nan)]
    assert scores == [0, 1, 0.5, 0.5, None]
    ours = stats.win_rate(scores)
    assert (ours.rate, ours.n, ours.missing) == (0.5, 4, 1)
    assert stats.win_rate([None if s is None else 1 - s for s in scores]).rate == 0.5
    with pytest.raises(InputError, match="preference"):
        stats.preference_score(-1)


def test_win_rate_without_any_verdict_has_no_rate() -> None:
    nothing = stats.win_rate([None, math.nan])
    assert (nothing.rate, nothing.n, nothing.missing, nothing.standard_error, nothing.p) == (None, 0, 2, None, 1.0)
    assert "NaN" not in as_json(nothing)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=1, max_size=60))
def test_win_rates_of_both_sides_sum_to_one(scores: list[float | None]) -> None:
    ours, theirs = stats.win_rate(scores), stats.win_rate([None if s is None else 1 - s for s in scores])
    assert (ours.wins, ours.losses, ours.ties) == (theirs.losses, theirs.wins, theirs.ties)
    if ours.rate is not None:
        assert ours.rate + theirs.rate == pytest.approx(1)
        assert ours.interval.low <= ours.rate <= ours.interval.high
        assert ours.interval.low < ours.interval.high


# Case 22: plus or minus nothing.


def test_all_zero_is_not_certain_and_depends_on_n() -> None:
    few, many = stats.mean([0] * 30, bounds=(0, 1)), stats.mean([0] * 3000, bounds=(0, 1))
    assert few.value == many.value == 0
    assert (few.interval.low, many.interval.low) == (0, 0)
    assert few.interval.high == pytest.approx(0.1135, abs=5e-5)
    assert many.interval.high == pytest.approx(0.00128, abs=5e-6)


def test_one_item_has_no_standard_error() -> None:
    one = stats.mean([1], bounds=(0, 1))
    assert (one.value, one.n, one.standard_error) == (1.0, 1, None)
    assert one.interval.low == pytest.approx(0.2065, abs=5e-5)
    assert one.interval.high == 1
    unbounded = stats.mean([17.0])
    assert (unbounded.standard_error, unbounded.interval.to_list()) == (None, [None, None])
    assert "NaN" not in as_json(one) + as_json(unbounded)


@pytest.mark.parametrize("scores", [[0] * 40, [1] * 40, [0, 1] * 20])
def test_equal_scores_differ_by_zero_without_certainty(scores: list[int]) -> None:
    found = stats.paired_difference(scores, scores, bounds=(0, 1))
    assert found.difference == 0
    assert found.interval.low == pytest.approx(-found.interval.high)
    assert 0.02 < found.interval.high < 0.1
    assert stats.mcnemar(scores, scores).p == 1
    assert "NaN" not in as_json(found)


def test_equal_lengths_are_judged_on_their_range() -> None:
    lengths = list(range(10, 50))
    found = stats.paired_difference(lengths, lengths)
    assert found.interval.low < 0 < found.interval.high
    assert stats.paired_difference([7, 7], [7, 7]).interval.to_list() == [None, None]
    ratio, interval = stats.paired_ratio(lengths, lengths)
    assert (ratio, interval.to_list()) == (1.0, [None, None])
    assert stats.paired_ratio([0, 0], [1, 2])[0] is None


def test_all_gained_is_not_certain() -> None:
    found = stats.paired_difference([0] * 30, [1] * 30, bounds=(0, 1))
    assert found.difference == 1
    assert 0.7 < found.interval.low < 0.95
    assert found.interval.high == 1


# Case 28: both orders of a judge are one item.


def both(item: int, winner_a_first: str | None, winner_b_first: str | None) -> list[tuple[int, str, str | None]]:
    return [(item, "a", winner_a_first), (item, "b", winner_b_first)]


def test_both_orders_are_one_item() -> None:
    verdicts = [v for i in range(6) for v in both(i, "a", "a")] + both(6, "b", "b")
    verdicts += [v for i in (7, 8, 9) for v in both(i, "a", "b")]
    found = stats.collapse_orders(verdicts)
    rate = found.win_rate
    assert (rate.n, rate.wins, rate.losses, rate.ties, rate.rate, rate.p) == (10, 6, 1, 3, 0.75, 0.125)
    assert (found.consistent, found.first_shown_wins, found.verdicts) == (7, 13, 20)
    assert found.warnings == ()
    assert stats.sign_test(15, 5) == pytest.approx(0.0414, abs=5e-5)  # what counting verdicts would give


@pytest.mark.parametrize("n", [2, 10])
def test_judge_that_always_picks_the_first(n: int) -> None:
    found = stats.collapse_orders(v for i in range(n) for v in both(i, "a", "b"))
    assert (found.win_rate.rate, found.consistent, found.first_shown_wins) == (0.5, 0, 2 * n)
    assert len(found.warnings) == 1


def test_missing_order_is_listed_and_not_mixed() -> None:
    verdicts = [*both(1, "a", "a"), (2, "a", "a"), *both(3, "b", None), *both("x", "tie", "tie")]
    found = stats.collapse_orders(verdicts)
    assert found.incomplete == ("2", "3")
    assert found.scores == {"1": 1.0, "x": 0.5}
    assert (found.win_rate.n, found.verdicts, found.consistent) == (2, 4, 2)
    assert "2, 3" in found.warnings[0]


def test_one_order_twice_or_an_unknown_word_is_refused() -> None:
    with pytest.raises(InputError, match="judged twice"):
        stats.collapse_orders([(1, "a", "a"), (1, "a", "b")])
    with pytest.raises(InputError, match="verdict"):
        stats.collapse_orders([(1, "a", "A")])


# Tests and intervals against scipy and sums by hand.


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1500), st.integers(0, 1500))
def test_sign_test_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    n = wins + losses
    tail = Fraction(sum(math.comb(n, i) for i in range(min(wins, losses) + 1)), 2**n)
    assert stats.sign_test(wins, losses) == pytest.approx(float(min(1, 2 * tail)), rel=1e-9, abs=1e-300)
    if 0 < n <= 1000:  # scipy gives 0 where 0.5**n underflows, whatever the tail is
        assert stats.sign_test(wins, losses) == pytest.approx(reference.binomtest(wins, n).pvalue, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_scipys(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    expected = reference.binomtest(successes, n).proportion_ci(level, method="wilson")
    found = stats.wilson(successes, n, level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.low <= successes / n <= found.high


def test_mcnemar_counts_and_p() -> None:
    base = [1] * 5 + [0] * 6 + [1] * 2 + [0] * 4
    other = [1] * 5 + [0] * 6 + [0] * 2 + [1] * 4
    found = stats.mcnemar(base, other)
    assert (found.gained, found.lost, found.both, found.neither, found.n) == (4, 2, 5, 6, 17)
    assert found.p == pytest.approx(2 * (1 + 6 + 15) / 64)
    with pytest.raises(InputError, match="not paired"):
        stats.mcnemar([1], [1, 0])
    with pytest.raises(InputError, match="yes or no"):
        stats.mcnemar([1, 0.5], [1, 0])


def test_adjusted_interval_is_that_of_bonett_and_price() -> None:
    base, other = [0] * 3 + [1] + [1] * 26 + [0] * 10, [1] * 3 + [0] + [1] * 26 + [0] * 10
    found = stats.paired_difference(base, other, bounds=(0, 1)).interval
    p12, p21 = 4 / 42, 2 / 42
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 42)
    assert found.method == "adjusted"
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-6)


def test_bootstrap_is_scipys_percentile_interval_for_many_items() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.normal(size=800), rng.normal(0.3, 1.4, size=800)
    found = stats.paired_difference(base, other).interval
    expected = reference.bootstrap((other - base,), np.mean, n_resamples=5000, method="percentile", rng=rng)
    assert found.method == "bootstrap"
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)


def test_few_items_get_the_width_of_students_t() -> None:
    values = np.random.default_rng(1).normal(size=12)
    found = stats.mean(values)
    expected = reference.t.interval(0.95, 11, loc=values.mean(), scale=found.standard_error)
    plain = reference.norm.interval(0.95, loc=values.mean(), scale=values.std() / math.sqrt(12))
    assert found.interval.high - found.interval.low == pytest.approx(expected[1] - expected[0], rel=0.07)
    assert found.interval.high - found.interval.low > 1.1 * (plain[1] - plain[0])


def test_interval_depends_on_the_seed_but_not_on_the_order_of_items() -> None:
    rng = np.random.default_rng(2)
    base, other = rng.normal(size=60), rng.normal(size=60)
    order = rng.permutation(60)
    first = stats.paired_difference(base, other, seed=3)
    shuffled = stats.paired_difference(base[order], other[order], seed=3)
    assert shuffled.interval == first.interval
    assert stats.paired_difference(base, other, seed=4).interval != first.interval
    swapped = stats.paired_difference(other, base, seed=3)
    assert swapped.difference == pytest.approx(-first.difference)


def test_copies_of_an_item_in_one_cluster_add_no_certainty() -> None:
    rng = np.random.default_rng(3)
    base, other = rng.integers(0, 2, 80).astype(float), rng.integers(0, 2, 80).astype(float)
    once = stats.paired_difference(base, other, bounds=(0, 1))
    copies = stats.paired_difference(
        np.repeat(base, 5), np.repeat(other, 5), clusters=np.repeat(np.arange(80), 5).tolist(), bounds=(0, 1)
    )
    naive = stats.paired_difference(np.repeat(base, 5), np.repeat(other, 5), bounds=(0, 1))
    assert copies.difference == pytest.approx(once.difference)
    assert (copies.n, copies.clusters) == (400, 80)
    assert copies.interval.to_list() == pytest.approx(once.interval.to_list())
    assert copies.standard_error == pytest.approx(once.standard_error)
    assert naive.interval.high - naive.interval.low < 0.6 * (copies.interval.high - copies.interval.low)


def test_ratio_of_means() -> None:
    rng = np.random.default_rng(4)
    base = rng.gamma(4, 20, size=300)
    ratio, interval = stats.paired_ratio(base, 1.5 * base + rng.normal(0, 5, size=300))
    assert ratio == pytest.approx(1.5, abs=0.02)
    assert interval.low < ratio < interval.high
    assert interval.high - interval.low < 0.05


def test_jackknife_of_the_mean_is_students_interval() -> None:
    v = np.random.default_rng(5).normal(size=25)
    found = stats.jackknife([(v.sum() - x) / 24 for x in v], v.mean())
    expected = reference.t.interval(0.95, 24, loc=v.mean(), scale=v.std(ddof=1) / 5)
    assert (found.low, found.high) == pytest.approx(expected)
    assert stats.jackknife([1.0], 1.0).to_list() == [None, None]


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0.02, 0.02, 40), (0.1, 0.02, 30), (0.25, 0.1, 60), (0.3, 0.1, 250), (0.0, 0.0, 40)]
)
def test_coverage_of_paired_intervals(gained: float, lost: float, n: int) -> None:
    """The 95 % interval holds the true difference in about 95 % of 400 simulations (standard error 1.1 points)."""
    rng = np.random.default_rng(n)
    held = 0
    for trial in range(400):
        d = rng.choice([1.0, -1.0, 0.0], size=n, p=[gained, lost, 1 - gained - lost])
        found = stats.paired_difference(
            (d < 0).astype(float), (d > 0).astype(float), bounds=(0, 1), seed=trial, resamples=1000
        )
        held += found.interval.low <= gained - lost <= found.interval.high
    assert held >= 0.915 * 400


def test_coverage_with_few_skewed_items() -> None:
    rng, held = np.random.default_rng(8), 0
    for trial in range(400):
        found = stats.mean(rng.gamma(2, 1, size=12), seed=trial, resamples=1000)
        held += found.interval.low <= 2 <= found.interval.high
    assert 0.89 * 400 <= held < 400


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_interval_of_bounded_scores_is_never_a_point_and_holds_the_estimate(rows: list[tuple[bool, bool, int]]) -> None:
    base, other, clusters = zip(*rows)
    for groups in (None, clusters):
        found = stats.paired_difference(base, other, clusters=groups, bounds=(0, 1), resamples=200)
        assert -1 <= found.interval.low <= found.difference + 1e-9
        assert found.difference - 1e-9 <= found.interval.high <= 1
        assert found.interval.low < found.interval.high
        as_json(found)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "no items"), ([1.0, math.nan], r"values\[1\]"), ([math.inf], "finite"), ([[1.0]], "shape")],
)
def test_values_that_have_no_mean(values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stats.mean(values)


def test_level_out_of_range() -> None:
    with pytest.raises(InputError, match="level"):
        stats.wilson(1, 2, 95)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(stats).attempted > 0
    assert doctest.testmod(stats).failed == 0
