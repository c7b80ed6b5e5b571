"""Negative flips and what they are made of: hand-made tables, identities, planted faults."""

from __future__ import annotations

import numpy as np
import pytest

from optative.core.errors import InputError
from optative.core.rng import stream
from optative.evaluation.flips import anatomy, change_of_negative_flips, generation_flips

OLD_ANSWERS = list("aaabbccdda")
NEW_ANSWERS = list("aabbcbcdab")
GOLD = list("aaaaaacccc")
OLD = [int(o == g) for o, g in zip(OLD_ANSWERS, GOLD)]  # 1 1 1 0 0 0 1 0 0 0
NEW = [int(n == g) for n, g in zip(NEW_ANSWERS, GOLD)]  # 1 1 0 0 0 0 1 0 0 0
SAME = [o == n for o, n in zip(OLD_ANSWERS, NEW_ANSWERS)]


def test_a_table_by_hand() -> None:
    found = anatomy(OLD, NEW, same=SAME)
    quadrants = ["both_right", "positive_flip", "negative_flip", "both_wrong_same", "both_wrong_different"]
    assert [found[name] for name in quadrants] == [3, 0, 1, 2, 4]
    assert sum(found[name] for name in quadrants) == found["n"] == 10
    assert found["both_wrong"] == 6
    assert (found["nfr"]["value"], found["pfr"]["value"], found["nfr_mc"]["value"]) == (0.1, 0.0, 0.5)
    assert found["backward_trust"]["value"] == 0.75
    assert found["backward_trust"]["n"] == 4
    assert (found["accuracy_old"], found["accuracy_new"]) == (0.4, 0.3)


def test_identities_on_random_tables() -> None:
    rng = stream("flips")
    for n in (1, 7, 100):
        old, new = rng.integers(0, 2, n), rng.integers(0, 2, n)
        same = ((old == new) & (rng.random(n) < 0.5)).tolist()
        found = anatomy(old.tolist(), new.tolist(), same=same, clusters=[i // 2 for i in range(n)])
        assert found["accuracy_new"] - found["accuracy_old"] == pytest.approx(
            found["pfr"]["value"] - found["nfr"]["value"]
        )
        assert found["nfr_mc"]["value"] >= found["nfr"]["value"]
        wrong = found["both_wrong_same"] + found["both_wrong_different"]
        assert found["both_right"] + found["positive_flip"] + found["negative_flip"] + wrong == n
        # Planted fault: counting a changed wrong answer by position in the table of outcomes alone misses it.
        assert found["nfr_mc"]["value"] * n == found["negative_flip"] + found["both_wrong_different"]
        low, high = found["nfr"]["interval"]
        assert low <= found["nfr"]["value"] <= high
        if not old.any():
            assert found["backward_trust"] is None


def test_a_model_against_itself_has_no_flips() -> None:
    found = anatomy(OLD, OLD, same=[True] * 10)
    assert found["nfr"]["value"] == found["pfr"]["value"] == found["nfr_mc"]["value"] == 0
    assert found["backward_trust"]["value"] == 1
    assert found["nfr"]["interval"][1] > 0  # ten items cannot prove that there are none


def test_without_answers_the_wrong_ones_are_not_divided() -> None:
    found = anatomy(OLD, NEW)
    assert found["nfr_mc"] is None
    assert "both_wrong_same" not in found


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="item 2: the same answer is right once and wrong once"):
        anatomy(OLD, NEW, same=[True] * 10)
    with pytest.raises(InputError, match="not yes or no"):
        anatomy([0.5], [1])
    with pytest.raises(InputError, match="not paired"):
        anatomy(OLD, NEW, same=[True])


def test_generation_by_hand_and_the_dead_zone() -> None:
    old, new = [0.5, 0.5, 0.5, 0.5, 0.8], [0.7, 0.4, 0.5, 0.51, 0.2]
    found = generation_flips(old, new)
    assert (found["pfr"]["value"], found["nfr"]["value"], found["unchanged"]) == (0.4, 0.4, 0.2)
    assert found["mean_gain"] == pytest.approx((0.2 + 0.01) / 2)
    assert found["mean_regression"] == pytest.approx((0.1 + 0.6) / 2)
    n = found["n"]
    total = n * (found["pfr"]["value"] * found["mean_gain"] - found["nfr"]["value"] * found["mean_regression"])
    assert total / n == pytest.approx(found["mean_new"] - found["mean_old"])
    wide = generation_flips(old, new, dead_zone=0.05)
    assert (wide["pfr"]["value"], wide["nfr"]["value"], wide["unchanged"]) == (0.2, 0.4, 0.4)
    assert generation_flips(old, old)["mean_gain"] is None
    with pytest.raises(InputError, match="dead_zone"):
        generation_flips(old, new, dead_zone=-1)


def test_two_samples_of_one_model_flip_without_a_dead_zone() -> None:
    rng = stream("noise")
    truth = rng.random(500)
    old, new = (truth + rng.normal(0, 0.01, 500) for _ in range(2))
    assert generation_flips(old.tolist(), new.tolist())["nfr"]["value"] == pytest.approx(0.5, abs=0.06)
    assert generation_flips(old.tolist(), new.tolist(), dead_zone=0.05)["nfr"]["value"] < 0.01


def test_fewer_negative_flips_are_found_with_an_interval() -> None:
    rng = stream("candidate")
    old = rng.random(800) < 0.7
    new = np.where(rng.random(800) < 0.2, ~old, old)
    candidate = np.where(rng.random(800) < 0.1, ~old, old)
    found = change_of_negative_flips(*(v.astype(int).tolist() for v in (old, new, candidate)))
    assert found["nfr_new"] == (old & ~new).mean()
    assert found["difference"] == pytest.approx((old & ~candidate).mean() - (old & ~new).mean())
    assert found["interval"][1] < 0
    assert found["relative"] == pytest.approx(found["difference"] / found["nfr_new"])
    assert found["p"] < 0.001
    with pytest.raises(InputError, match="not yes or no"):
        change_of_negative_flips([1, 0], [1, 0], [1, 2])
    assert change_of_negative_flips([0, 0], [1, 1], [1, 0])["relative"] is None
