"""Win rates, raw and with length controlled: an independent fit, simulated judges, the cases on ties and orders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from optative.core import stats
from optative.core.errors import InputError
from optative.core.rng import stream
from optative.evaluation import win_rate
from optative.evaluation.win_rate import length_controlled, length_term


def judged(n: int, quality: float, length_effect: float, longer: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Verdicts of a judge with known tastes, and lengths: `longer` characters more than the baseline on average."""
    rng = stream("judge", seed, n)
    baseline = rng.integers(200, 1200, n).astype(float)
    own = baseline + longer + rng.normal(0, 200, n)
    p = 1 / (1 + np.exp(-(quality + length_effect * length_term(own, baseline))))
    return (rng.random(n) < p).astype(float), own, baseline


@pytest.mark.parametrize("strength", [0.01, 0.3, 50.0])
def test_the_fit_is_the_minimum_that_an_independent_optimiser_finds(strength: float) -> None:
    rng = stream("fit")
    x = np.stack([np.ones(120), np.tanh(rng.normal(0, 1, 120)), rng.normal(0, 1, 120)], axis=1)
    p = rng.choice([0.0, 0.3, 0.5, 1.0], 120)

    def value(split: np.ndarray) -> float:
        """|w| as the sum of two parts that are not negative, so that the problem is smooth; the constant is free."""
        z = x @ (split[:3] - split[3:])
        return float(
            strength * (p * np.log1p(np.exp(-z)) + (1 - p) * np.log1p(np.exp(z))).sum()
            + split[1:3].sum()
            + split[4:].sum()
        )

    found = minimize(value, np.full(6, 0.1), bounds=[(0, None)] * 6, method="L-BFGS-B", options={"ftol": 1e-15})
    own = win_rate._fit(x, p, strength)
    assert own == pytest.approx(found.x[:3] - found.x[3:], abs=2e-4)
    assert value(np.concatenate([np.maximum(own, 0), np.maximum(-own, 0)])) <= found.fun + 1e-9


def test_when_only_length_counts_the_controlled_rate_is_a_half() -> None:
    scores, own, baseline = judged(800, quality=0.0, length_effect=2.0, longer=250.0)
    found = length_controlled(scores.tolist(), own.tolist(), baseline.tolist())
    assert found.raw.rate is not None
    assert found.raw.rate > 0.65
    assert found.rate == pytest.approx(0.5, abs=0.06)
    assert found.interval.low is not None
    assert found.interval.high is not None
    assert found.interval.low < 0.5 < found.interval.high
    assert found.length_effect > 1
    assert "length decides" in found.warnings[0]


def test_without_an_effect_of_length_nothing_changes() -> None:
    scores, own, baseline = judged(800, quality=0.8, length_effect=0.0, longer=250.0)
    found = length_controlled(scores.tolist(), own.tolist(), baseline.tolist())
    assert found.raw.rate is not None
    assert found.rate == pytest.approx(found.raw.rate, abs=0.04)
    assert not found.warnings
    assert found.strata == pytest.approx(found.raw.rate, abs=0.06)


def test_a_better_but_shorter_model_is_lifted() -> None:
    scores, own, baseline = judged(1500, quality=1.0, length_effect=2.0, longer=-150.0)
    found = length_controlled(scores.tolist(), own.tolist(), baseline.tolist())
    assert found.raw.rate is not None
    assert found.rate == pytest.approx(1 / (1 + np.exp(-1)), abs=0.05)
    assert found.rate > found.raw.rate + 0.05


def test_intervals_cover_the_truth() -> None:
    hits = 0
    for seed in range(20):
        scores, own, baseline = judged(200, quality=0.5, length_effect=1.0, longer=100.0, seed=seed)
        found = length_controlled(scores.tolist(), own.tolist(), baseline.tolist())
        assert found.interval.low is not None
        assert found.interval.high is not None
        hits += found.interval.low <= 1 / (1 + np.exp(-0.5)) <= found.interval.high
    assert hits >= 17


def test_swapping_the_sides_mirrors() -> None:
    scores, own, baseline = judged(150, quality=0.4, length_effect=1.0, longer=100.0)
    there = length_controlled(scores.tolist(), own.tolist(), baseline.tolist())
    back = length_controlled((1 - scores).tolist(), baseline.tolist(), own.tolist())
    assert there.rate + back.rate == pytest.approx(1, abs=1e-6)
    assert there.length_effect == pytest.approx(back.length_effect, abs=1e-4)


def test_ties_and_missing_verdicts() -> None:
    scores = [1.0] * 3 + [0.0] + [0.5] * 46 + [None]
    lengths = stream("lengths").integers(10, 100, (2, 51)).astype(float).tolist()
    found = length_controlled(scores, *lengths)
    assert (found.raw.rate, found.raw.ties, found.raw.missing) == (0.52, 46, 1)
    assert found.rate == pytest.approx(0.52, abs=0.02)


def test_separable_verdicts_stay_finite_and_equal_lengths_control_nothing() -> None:
    found = length_controlled([1.0] * 20, [50.0] * 20, [50.0] * 20)
    assert found.length_effect == 0
    assert found.strata is None
    assert 0.9 < found.rate <= 1


def test_difficulty_is_used_and_samples_of_a_prompt_stay_together() -> None:
    rng = stream("difficulty")
    hard = rng.normal(0, 2, 300)
    scores = (rng.random(300) < 1 / (1 + np.exp(-hard))).astype(float).tolist()
    lengths = rng.integers(10, 100, (2, 300)).astype(float).tolist()
    with_it = length_controlled(scores, *lengths, difficulty=hard.tolist())
    assert with_it.rate == pytest.approx(np.mean(scores), abs=0.03)
    prompts = [i // 3 for i in range(300)]
    repeated = [scores[i // 3] for i in range(300)]
    spread = [length_controlled(repeated, *lengths, prompts=p).interval for p in (None, prompts)]
    widths = [i.high - i.low for i in spread if i.high is not None and i.low is not None]
    assert widths[1] > 1.3 * widths[0]


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="2 prompts"):
        length_controlled([1.0, None], [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(InputError, match="2 scores and 1 lengths"):
        length_controlled([1.0, 0.0], [1.0], [1.0, 1.0])
    with pytest.raises(InputError, match="not a score"):
        length_controlled([1.0, 2.0], [1.0, 1.0], [1.0, 1.0])


def test_case_21_ties() -> None:
    found = stats.win_rate([1] * 3 + [0] + [0.5] * 46)
    assert (found.rate, found.wins, found.losses, found.ties, found.n) == (0.52, 3, 1, 46, 50)
    coded = stats.win_rate([stats.preference_score(p) for p in (1, 2, 0, 1.5, float("nan"))])
    assert (coded.rate, coded.n, coded.missing) == (0.5, 4, 1)
