"""Selecting pairs from scores, and judging answers by rules."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optative.data.records import Judgement, Ratings
from optative.feedback.on_policy import judge
from optative.feedback.select import SELECTORS, above_below, all_pairs, below_all, best_worst, without_unfinished
from optative.objectives.repetition import LOOPS, repetition

rated = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
samples = st.lists(st.tuples(rated, st.integers(1, 128)), max_size=10)


@pytest.mark.parametrize("name", sorted(SELECTORS))
@given(own=samples, limit=st.integers(1, 30), seed=st.integers(0, 5))
def test_every_pair_is_strict_limited_and_has_its_gap(name, own, limit, seed):
    scores, lengths = [s for s, _ in own], [n for _, n in own]
    pairs = SELECTORS[name](scores, lengths, limit, [seed])
    assert len(pairs) <= limit
    assert len({(c, r) for c, r, _ in pairs}) == len(pairs)
    for chosen, rejected, gap in pairs:
        assert scores[chosen] - scores[rejected] == gap > 0
    if name != "all":
        used = [i for c, r, _ in pairs for i in (c, r)]
        assert len(used) == len(set(used))
    assert pairs == SELECTORS[name](scores, lengths, limit, [seed])


def test_best_worst_takes_the_extremes():
    assert best_worst([0.5, 0.0, 1.0], [9, 9, 9], 3, ["x"]) == [(2, 1, 1.0)]
    assert best_worst([1.0, 1.0, 1.0], [9, 9, 9], 3, ["x"]) == []


def test_ties_go_to_the_closest_length_and_then_to_the_key_alone():
    assert best_worst([1.0, 1.0, 1.0, 0.0], [5, 50, 70, 52], 1, ["x"]) == [(1, 3, 1.0)]
    picks = {best_worst([1.0, 1.0, 1.0, 0.0], [9, 9, 9, 9], 1, [seed])[0][0] for seed in range(40)}
    assert picks == {0, 1, 2}


def test_pairs_of_closest_length_do_not_teach_length():
    """Right answers are shorter here; the chosen ones must not be so by as much."""
    rng = np.random.default_rng(0)
    gaps = []
    for key in range(200):
        scores = rng.integers(0, 2, 8).astype(float).tolist()
        lengths = [int(rng.integers(10, 60) if s else rng.integers(30, 128)) for s in scores]
        gaps += [lengths[c] - lengths[r] for c, r, _ in best_worst(scores, lengths, 1, [key])]
    assert abs(np.mean(gaps)) < 10  # at random it would be 44


def test_above_below_needs_both_sides():
    assert above_below([0.5, 0.0], [9, 9], 4, ["x"]) == []
    assert {c for c, _, _ in above_below([1.0, 0.5, 1.0, 0.0], [9] * 4, 4, ["x"])} == {0, 2}


def test_all_pairs_counts_each_strict_pair_once():
    assert len(all_pairs([1.0, 0.5, 0.5, 0.0], [9] * 4, 99, ["x"])) == 5


def test_a_judgement_keeps_every_verdict():
    def check(text):
        return [
            SimpleNamespace(kind="a", followed="a" in text, why="w"),
            SimpleNamespace(kind="b", followed="b" in text, why="w"),
        ]

    record = judge("prompt", ["a", "ab", ""], check, annotator="rules/strict", meta={"round": 1})
    assert record.relation == Ratings((0.5, 1.0, 0.0))
    assert record.source == "rule"
    assert [[v["followed"] for v in own] for own in record.aspects["checks"]] == [
        [True, False],
        [True, True],
        [False, False],
    ]
    assert Judgement.from_json(record.to_json()) == record


@given(own=samples, flags=st.lists(st.booleans(), min_size=10, max_size=10))
def test_an_unfinished_answer_is_never_chosen(own, flags):
    scores = [s for s, _ in own]
    cut = flags[: len(scores)]
    for rule in ("leave_out", "reject"):
        found = without_unfinished(scores, cut, rule)
        assert [s for s, c in zip(found, cut) if not c] == [s for s, c in zip(scores, cut) if not c]
        kept = [s for s, c in zip(found, cut) if c and s is not None]
        assert not any(kept)
        assert rule != "leave_out" or not kept
    assert without_unfinished(scores, cut, "keep") == scores


@given(own=samples, flags=st.lists(st.booleans(), min_size=10, max_size=10))
def test_what_is_below_all_is_never_chosen_and_loses_to_equals(own, flags):
    scores, lengths = [s for s, _ in own], [n for _, n in own]
    worst = flags[: len(scores)]
    for name, select in SELECTORS.items():
        pairs = select(below_all(scores, worst), lengths, 100, [0])
        assert not any(worst[chosen] for chosen, _, _ in pairs), name
        assert all(gap > 0 for _, _, gap in pairs)
        if any(worst) and any(s is not None and not w for s, w in zip(scores, worst)) and name == "best_worst":
            assert any(worst[rejected] for _, rejected, _ in pairs)


def test_a_text_that_turns_in_a_circle_is_told_from_a_list():
    for text, low, high in (
        ("*This*\n" * 30, LOOPS, 1.0),
        ("- one red apple\n- one green pear\n- two ripe plums\n- three hard nuts", 0.0, 0.0),
        ("too short", 0.0, 0.0),
    ):
        assert low <= repetition(text.split()) <= high
