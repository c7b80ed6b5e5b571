"""Packs: every group once, never split, within the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optative.core.errors import InputError
from optative.generators.language.packing import Group, plan

sizes = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=4)), max_size=25)


@given(sizes, st.integers(1, 120))
def test_groups_are_kept_whole_and_within_the_budget(shapes, budget):
    groups = [Group((i,) * p, tuple((i,) * c for c in cs)) for i, (p, cs) in enumerate(shapes)]
    packs = plan(groups, budget)
    assert sorted(i for pack in packs for i in pack.group_indices) == list(range(len(groups)))
    for pack in packs:
        assert [groups[i] for i in pack.group_indices] == list(pack.groups)
        assert pack.num_tokens <= budget or len(pack.groups) == 1
        lengths = [g.num_tokens for g in pack.groups]
        assert lengths == sorted(lengths, reverse=True)


@given(sizes, st.integers(1, 120))
def test_no_two_packs_would_fit_into_one(shapes, budget):
    groups = [Group((0,) * p, tuple((0,) * c for c in cs)) for p, cs in shapes]
    small = [p for p in plan(groups, budget) if p.num_tokens * 2 <= budget]
    assert len(small) <= 1


def test_empty_sides_are_refused():
    with pytest.raises(InputError, match="prompt of no tokens"):
        Group((), ((1,),))
    with pytest.raises(InputError, match="completion of no tokens"):
        Group((1,), ((1,), ()))
    with pytest.raises(InputError, match="differ in length"):
        Group((1,), ((1, 2),), ((True,),))
    with pytest.raises(InputError, match="token_budget"):
        plan([], 0)


def test_tokens_that_carry_loss_are_counted() -> None:
    assert Group((1,), ((2, 3), (4,))).counted == [2, 1]
    assert Group((1,), ((2, 3), (4,)), ((True, False), (False,))).counted == [1, 0]
