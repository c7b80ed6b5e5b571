"""Ranking, idealised ranking, difficulty, learning curves, modes: by hand, by independent formulas, by optimisation."""

from __future__ import annotations

import doctest
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from optative.core.errors import InputError
from optative.core.rng import stream
from optative.data.pair_steps import PairSteps, read_pair_steps, write_pair_steps
from optative.evaluation import modes, pairs
from optative.evaluation.pair_curves import CLASSES, describe_curves, flips_by_difficulty, pair_curves

# Ranking.


def test_ranking_by_hand_raw_and_per_token() -> None:
    chosen, rejected = [-10.0, -3.0, -4.0], [-8.0, -5.0, -4.0]
    assert pairs.ranked_right(chosen, rejected).tolist() == [0, 1, 0.5]
    assert pairs.ranked_right(chosen, rejected, [10, 1, 4], [4, 5, 4]).tolist() == [1, 0, 0.5]
    assert pairs.difficulty(chosen, rejected).tolist() == [2, -2, 0]


def test_probabilities_underflow_but_logarithms_do_not() -> None:
    chosen, rejected = [-1500.0, -1501.0], [-1501.0, -1500.0]
    assert np.exp(chosen).tolist() == [0, 0]  # what a comparison of probabilities would see: two ties
    assert pairs.ranked_right(chosen, rejected).tolist() == [1, 0]


def test_a_tie_is_right_when_the_probabilities_are_close() -> None:
    p = np.array([0.30, 0.30, 0.005, 0.5])
    q = np.array([0.3099, 0.3101, 0.0001, 0.5])
    assert pairs.tied_right(np.log(p), np.log(q)).tolist() == [1, 0, 1, 1]
    assert pairs.tied_right([-900.0], [-2000.0]).tolist() == [1]


@pytest.mark.parametrize(
    ("logps", "ranks", "right"),
    [
        ([-1.0, -2.0, -3.0], [0, 1, 2], 1.0),
        ([-1.0, -3.0, -2.0], [0, 1, 2], 0.0),
        ([-1.0, -3.0, -3.0], [0, 1, 1], 1.0),
        ([-1.0, -2.0, -3.0], [0, 1, 1], 0.0),
        ([-1.0, -1.0, -3.0], [0, 0, 1], 1.0),
    ],
)
def test_a_list_is_right_when_its_whole_order_is(logps: list[float], ranks: list[int], right: float) -> None:
    assert pairs.order_right(logps, ranks) == right


# Theorem 4.1: ranked right if and only if the loss is at most the required one.


def test_required_loss_agrees_with_the_ranking_on_random_pairs() -> None:
    rng = stream("theorem")
    c, log_ratio = rng.normal(0, 30, 10_000), rng.normal(0, 30, 10_000)  # log-ratio: (lw - ll) - (rw - rl)
    for beta in (0.01, 0.1, 1.0, 10.0):
        loss = np.logaddexp(0, -beta * log_ratio)
        by_loss = loss <= pairs.required_loss(c, beta)
        by_rank = log_ratio - c > 0  # lw - ll
        # Losses below 1e-300 or so are equal to zero on both sides; there the loss says nothing any more.
        told = np.maximum(loss, pairs.required_loss(c, beta)) > 1e-300
        assert told.mean() > 0.9
        assert (by_loss == by_rank)[told].all()
    assert (pairs.required_loss([0.0, -5.0], 0.5) >= math.log(2)).all()
    assert pairs.required_loss([0.0], 0.1)[0] == pytest.approx(0.693147, abs=1e-6)


def test_ipo_bound_is_sufficient_and_a_zero_loss_can_be_wrong() -> None:
    rng, tau = stream("ipo"), 0.05
    c, h = rng.normal(0, 15, 10_000), rng.normal(0, 15, 10_000)
    loss = (h - 1 / (2 * tau)) ** 2
    sure = loss < pairs.ipo_required_loss(c, tau)
    assert sure.sum() > 100
    assert (h - c > 0)[sure].all()
    assert pairs.ipo_required_loss([11.0], tau)[0] == -math.inf  # at zero loss h = 10 < c
    assert pairs.ipo_required_loss([10.0, 4.0], tau).tolist() == [0, 36]


# Corollary 3.3: the idealised policy.


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("reference", "share"), [(0.2, 0.75), (0.7, 0.6), (0.9, 0.3), (0.999, 0.55)])
def test_idealised_margin_is_that_of_an_optimised_policy(beta: float, reference: float, share: float) -> None:
    """DPO's expected loss over votes on two answers, minimised over the policy's logit."""
    ref = math.log(reference / (1 - reference))

    def loss(z: Any) -> float:
        u = beta * (z[0] - ref)
        return share * math.log1p(math.exp(-u)) + (1 - share) * math.log1p(math.exp(u))

    found = minimize(loss, [ref], method="BFGS", options={"gtol": 1e-12}).x[0]
    ideal = pairs.idealised_margin([ref], [share], [beta])[0, 0]
    assert abs(found - ideal) < 1e-3
    # RLHF's objective, E[r] - KL / beta-scaled, with the Bradley-Terry reward: the same policy.
    reward = math.log(share / (1 - share))
    p = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
    value = p * reward - beta * (p * np.log(p / reference) + (1 - p) * np.log((1 - p) / (1 - reference)))
    best = p[np.argmax(value)]
    if 1e-4 < best < 1 - 1e-4:
        assert math.log(best / (1 - best)) == pytest.approx(ideal, abs=1e-2)


def test_small_betas_do_not_overflow_and_full_shares_are_pulled_in() -> None:
    margins = pairs.idealised_margin([-2000.0, 0.0], [1.0, 0.0], [1e-5])
    assert np.isfinite(margins).all()
    assert margins[0].tolist() == pytest.approx([-2000 + math.log(999) / 1e-5, -math.log(999) / 1e-5])
    with np.errstate(over="ignore"):
        assert np.isinf((np.float64(0.999) / 0.001) ** (1 / 1e-5))  # the published form


def test_dividing_log_probabilities_is_another_number() -> None:
    """The published raw ratio divides the logarithms. On these pairs it would call a wrong reference right."""
    chosen, rejected, share = np.array([-120.0, -80.0]), np.array([-100.0, -90.0]), 0.75
    fault = chosen / rejected * (share / (1 - share)) ** (1 / 10.0) > 1
    assert fault.tolist() == [True, False]
    assert pairs.idealised_right(chosen - rejected, [share] * 2, [10.0])[0].tolist() == [0, 1]


def test_largest_beta_is_where_the_idealised_policy_turns() -> None:
    rng = stream("beta")
    c, share = rng.normal(0, 20, 500), rng.uniform(0.5, 1.0, 500)
    limit = pairs.largest_beta(c, share)
    for beta in (0.01, 0.05, 0.3, 2.0):
        right = pairs.idealised_right(-c, share, [beta])[0] == 1
        assert (right == (beta < limit)).all()
    assert pairs.largest_beta([3.0, -3.0, 0.0, 3.0], [0.4, 0.4, 0.5, 0.5]).tolist() == [0, 0, 0, 0]


def test_the_median_row_is_the_median_of_the_means_and_stays_paired() -> None:
    right = np.array([[0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 0, 0.5]])
    assert pairs.median_row(right).tolist() == [1, 1, 0, 0.5]
    assert pairs.median_row(right[:2]).mean() == np.median(right[:2].mean(axis=1))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pairs.ranked_right([1.0], [1.0, 2.0]), r"rejected_B: wrong shape; found \(2,\), expected \(1,\)"),
        (lambda: pairs.ranked_right([], []), "at least one"),
        (lambda: pairs.ranked_right([1.0], [math.nan]), r"rejected_B\[0\]: not a finite number"),
        (lambda: pairs.ranked_right([1.0], [1.0], [3]), "both answers or of none"),
        (lambda: pairs.ranked_right([1.0], [1.0], [0], [1]), "no tokens"),
        (lambda: pairs.log_odds([1.2]), "not a share; found 1.2"),
        (lambda: pairs.idealised_right([1.0], [0.7], [0.0]), "not a beta"),
        (lambda: pairs.median_row([]), "wrong shape"),
    ],
)
def test_wrong_columns_are_refused(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_doctests() -> None:
    found = doctest.testmod(pairs)
    assert found.attempted > 0
    assert found.failed == 0


def test_reward_accuracy_is_not_ranking_accuracy() -> None:
    """The planted fault: the number that trainers log. Every margin grew, and every pair is still wrong."""
    ref, now = np.array([-9.0, -8.0]), np.array([-6.0, -5.0])  # chosen minus rejected
    assert pairs.half_ties(now - ref).tolist() == [1, 1]
    assert pairs.ranked_right(now, [0.0, 0.0]).tolist() == [0, 0]


# Learning curves.


def steps(seed: int = 0, size: int = 60, num: int = 5, noise: float = 0.1) -> PairSteps:
    rng = stream("curves", seed)
    ref = rng.normal(-60, 8, (2, size))
    pull = np.arange(num)[:, None] * rng.uniform(0, 2, size)
    return PairSteps(
        np.arange(num) * 10,
        tuple(f"p{i}" for i in range(size)),
        ref[0] + pull,
        ref[1] - pull + rng.normal(0, noise, (num, size)),
        *ref,
        rng.integers(5, 50, size),
        rng.integers(5, 50, size),
        beta=0.1,
    )


def test_curves_by_hand() -> None:
    found = PairSteps(
        np.array([0, 10]),
        ("x", "y"),
        np.array([[-10.0, -6.0], [-9.0, -6.0]]),
        np.array([[-12.0, -5.0], [-14.0, -8.0]]),
        np.array([-10.0, -6.0]),
        np.array([-12.0, -5.0]),
        np.array([3, 3]),
        np.array([3, 3]),
        beta=0.5,
    )
    curves = pair_curves(found)
    assert {n: curves.share_S[n].tolist() for n in CLASSES} == {
        "right_right": [0.5, 0.5],
        "wrong_right": [0, 0.5],
        "right_wrong": [0, 0],
        "wrong_wrong": [0.5, 0],
    }
    assert curves.margin_S["wrong_right"][1] == 0.5 * ((-6 + 8) - (-6 + 5))
    assert curves.loss_S["right_right"][1] == pytest.approx(math.log1p(math.exp(-0.5 * 3)))
    assert np.isnan(curves.loss_S["right_wrong"]).all()
    assert curves.flip_rate_S.tolist() == [0, 1]
    assert curves.reward_S.tolist() == [0.5, 1]
    assert (curves.lowest_step, curves.mean_loss_S[0]) == (10, pytest.approx(math.log(2)))


def test_curves_agree_with_a_slow_count() -> None:
    found = steps(noise=8.0)  # the first step is not the reference any more
    curves = pair_curves(found)
    for s in range(len(found.steps_S)):
        counts = dict.fromkeys(CLASSES, 0)
        losses: dict[str, list[float]] = {name: [] for name in CLASSES}
        for b in range(len(found.ids)):
            before = "right" if found.ref_chosen_B[b] > found.ref_rejected_B[b] else "wrong"
            now = "right" if found.chosen_SB[s, b] > found.rejected_SB[s, b] else "wrong"
            z = found.chosen_SB[s, b] - found.ref_chosen_B[b] - (found.rejected_SB[s, b] - found.ref_rejected_B[b])
            counts[f"{before}_{now}"] += 1
            losses[f"{before}_{now}"].append(math.log1p(math.exp(-0.1 * z)))
        assert sum(curves.share_S[n][s] for n in CLASSES) == pytest.approx(1)
        for name in CLASSES:
            assert curves.share_S[name][s] == counts[name] / 60
            if losses[name]:
                assert curves.loss_S[name][s] == pytest.approx(np.mean(losses[name]))
        wrong = counts["wrong_right"] + counts["wrong_wrong"]
        assert curves.flip_rate_S[s] == pytest.approx(counts["wrong_right"] / wrong)


def test_easy_pairs_flip_first() -> None:
    found = steps(size=400)
    now = found.chosen_SB[2] > found.rejected_SB[2]
    rows = flips_by_difficulty(found.ref_chosen_B, found.ref_rejected_B, now)
    assert sum(row["n"] for row in rows) == describe_curves(found)["initially_wrong"]
    assert [row["difficulty"] for row in rows] == sorted(row["difficulty"] for row in rows)
    assert rows[0]["flipped"] > rows[-1]["flipped"] + 0.3


def test_the_file_of_curves_is_read_back_in_any_order_and_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    found = steps()
    write_pair_steps(tmp_path / "a.parquet", found)
    write_pair_steps(tmp_path / "b.parquet", found)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pq.read_table(tmp_path / "a.parquet")
    shuffled = table.take(stream("rows").permutation(len(table)))
    pq.write_table(shuffled, tmp_path / "c.parquet")
    read = read_pair_steps(tmp_path / "c.parquet")
    order = [read.ids.index(name) for name in found.ids]
    assert np.array_equal(read.chosen_SB[:, order], found.chosen_SB)
    assert np.array_equal(read.ref_rejected_B[order], found.ref_rejected_B)
    assert (read.beta, read.part) == (0.1, "held_out")
    assert pair_curves(read).flip_rate_S.tolist() == pair_curves(found).flip_rate_S.tolist()


def test_a_damaged_file_of_curves_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_pair_steps(tmp_path / "a.parquet", steps())
    table = pq.read_table(tmp_path / "a.parquet")
    moved = table.column("ref_chosen").to_pylist()
    moved[-1] += 1
    broken = {
        "holds the pair p59 0 times": table.slice(0, len(table) - 1),
        "rejected: is absent": table.drop_columns(["rejected"]),
        "does not say the beta": table.replace_schema_metadata({}),
        "changes between steps for the pair p59": table.set_column(4, "ref_chosen", pa.array(moved)),
    }
    for says, wrong in broken.items():
        pq.write_table(wrong, tmp_path / "wrong.parquet")
        with pytest.raises(InputError, match=says):
            read_pair_steps(tmp_path / "wrong.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_pair_steps(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="no such file"):
        read_pair_steps(tmp_path / "none.parquet")


# On-policy-ness and modes.


def test_sampled_kl_is_zero_on_policy_and_the_exact_kl_off_policy() -> None:
    rng = stream("kl")
    q = np.array([0.5, 0.3, 0.15, 0.05])
    p = np.array([0.4, 0.3, 0.2, 0.1])
    drawn = rng.choice(4, 200_000, p=q)
    same = modes.sampled_kl(np.log(q)[drawn[:50]], np.log(q)[drawn[:50]])
    assert (same.k1.value, same.k3.value, same.effective_share) == (0, 0, pytest.approx(1))
    found = modes.sampled_kl(np.log(q)[drawn], np.log(p)[drawn])
    exact = float((q * np.log(q / p)).sum())
    assert modes.kl(np.log(q), np.log(p)) == pytest.approx(exact)
    assert found.k3.value == pytest.approx(exact, rel=0.02)
    assert found.k1.value == pytest.approx(exact, rel=0.1)
    assert found.k3.standard_error is not None
    assert found.k1.standard_error is not None
    assert found.k3.standard_error < found.k1.standard_error
    assert found.effective_share == pytest.approx(1 / float((p**2 / q).sum()), rel=0.01)
    assert modes.sampled_entropy(np.log(q)[drawn]).value == pytest.approx(modes.entropy(np.log(q)), rel=0.01)


def test_a_sampling_temperature_shows_as_off_policy() -> None:
    """The trap: sampling at temperature 0.7, training on untempered log-probabilities."""
    rng, logits = stream("temperature"), stream("logits").normal(0, 1, 30)
    log_p = logits - np.logaddexp.reduce(logits)
    sharp = log_p / 0.7 - np.logaddexp.reduce(log_p / 0.7)
    drawn = rng.choice(30, 5000, p=np.exp(sharp))
    found = modes.sampled_kl(sharp[drawn], log_p[drawn])
    assert found.k3.interval.low is not None
    assert found.k3.interval.low > 0.02


def test_exact_measures_with_empty_answers() -> None:
    with np.errstate(divide="ignore"):
        p, q = np.log([0.5, 0.5, 0.0]), np.log([0.25, 0.25, 0.5])
    assert modes.entropy(p) == pytest.approx(math.log(2))
    assert modes.kl(p, q) == pytest.approx(math.log(2))
    assert modes.kl(q, p) == math.inf
    with pytest.raises(InputError, match="do not sum to 1"):
        modes.entropy(np.log([0.5, 0.4]))


def test_tail_index_of_a_peak_in_the_tail_and_of_an_aligned_one() -> None:
    bins = np.arange(100)
    reference = np.exp(-((bins - 20) ** 2) / 50.0)
    log_ref = np.log(reference / reference.sum())
    tail = modes.tail_index(np.exp(-(((bins - 70) / 10) ** 2)), log_ref)
    aligned = modes.tail_index(np.exp(-(((bins - 20) / 10) ** 2)), log_ref)
    assert tail.value < 1e-6 < 0.4 < aligned.value
    sampled = modes.tail_index(
        np.exp(-(((stream("tail").choice(100, 4000, p=np.exp(log_ref)) - 20) / 10) ** 2)), top=0.1
    )
    assert sampled.value == pytest.approx(aligned.value, abs=0.03)
    with pytest.raises(InputError, match="no best region"):
        modes.tail_index([1.0, 1.0])


def test_flows_follow_their_gradients_and_the_moved_mass_is_counted() -> None:
    target = np.full(20, 1e-9)
    target[7] = 1 - target.sum() + 1e-9
    target /= target.sum()
    start = np.zeros(20)
    start[7] = -4.5  # the target's bin starts below 1e-3
    log_q = np.log(target)
    assert np.exp(start[7]) / np.exp(start).sum() < 1e-3
    eps = 1e-6
    for direction in ("forward", "reverse"):
        path = modes.flow(start, log_q, direction=direction, rate=1e-3, steps=1)

        def divergence(logits: np.ndarray, direction: str = direction) -> float:
            log_p = logits - np.logaddexp.reduce(logits)
            return modes.kl(log_q, log_p) if direction == "forward" else modes.kl(log_p, log_q)

        slopes = [(divergence(start + eps * e) - divergence(start - eps * e)) / (2 * eps) for e in np.eye(20)]
        wanted = start - 1e-3 * np.array(slopes)
        assert path[1] == pytest.approx(wanted - np.logaddexp.reduce(wanted), abs=1e-7)
    for direction, divergence_of in (
        ("forward", lambda p: modes.kl(log_q, p)),
        ("reverse", lambda p: modes.kl(p, log_q)),
    ):
        path = modes.flow(start, log_q, direction=direction, rate=0.1, steps=300)
        falling = [divergence_of(p) for p in path]
        assert all(after < before for before, after in pairwise(falling))
        moved = modes.mass_moved(path)
        assert moved[0] == pytest.approx(0.5 * np.abs(np.exp(path[1]) - np.exp(path[0])).sum())
        arrived = modes.share_arrived(path, log_q)
        assert arrived[0] == 0
        half = modes.steps_to(arrived)
        if direction == "forward":
            assert half is not None
            assert arrived[half - 1] < 0.5 <= arrived[half]
            assert moved.sum() >= 0.9 > np.exp(path[half][7]) > 0.45
    assert modes.steps_to([0.1, 0.2]) is None
