"""Records: their JSON, their fingerprints, the pairs and ties inside them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from data_makers import assistant, user
from hypothesis import given
from hypothesis import strategies as st

from optative.core.errors import InputError
from optative.core.ids import content_hash
from optative.data.records import BothBad, Incomparable, Judgement, Labels, Order, Ratings, fingerprint, pairs, ties
from optative.data.seen import Seen

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["\u2028", "'", '"', "🏔‍", "\r\n", "\x85"])
numbers = st.floats(-1e6, 1e6)
json_values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | numbers | texts,  # null is no value: readers drop such keys
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def judgements(draw: Any, *, conversation: bool | None = None, pair: bool = False) -> Judgement:
    """Judgements as readers give them: no empty answers, and messages wherever the prompt is messages."""
    as_messages = draw(st.booleans()) if conversation is None else conversation
    visible = texts.filter(lambda t: t.strip().strip("\u200b\u200c\u200d\u2060\ufeff").strip() != "")
    k = 2 if pair else draw(st.integers(1, 4))
    answers = draw(st.lists(visible, min_size=k, max_size=k, unique=True))
    prompt = draw(visible)
    relations: Any = st.just(Order(((0,), (1,)))) if pair else relation_of(k)
    return Judgement(
        id=draw(visible),
        prompt=[{"role": "system", "content": "s"}, user(prompt)] if as_messages else prompt,
        completions=tuple([assistant(a)] if as_messages else a for a in answers),
        relation=draw(relations),
        strength=draw(st.none() | st.floats(0, 100)),
        confidence=draw(st.none() | st.floats(0, 1)),
        aspects=draw(st.none() | st.dictionaries(texts, json_values, min_size=1, max_size=2)),
        rationale=draw(st.none() | texts.filter(bool)),
        annotator=draw(st.none() | texts.filter(bool)),
        source=draw(st.none() | st.sampled_from(["human", "judge", "rule"])),
        shown_first=draw(st.none() | st.integers(0, k - 1)),
        seconds=draw(st.none() | st.floats(0, 1e4)),
        meta=draw(st.dictionaries(texts, json_values, max_size=2)),
    )


def relation_of(k: int) -> Any:
    def order(permutation: list[int], cuts: list[bool]) -> Order:
        groups: list[list[int]] = []
        for index, cut in zip(permutation, cuts):
            if cut or not groups:
                groups.append([])
            groups[-1].append(index)
        return Order(tuple(map(tuple, groups)))

    flags = st.lists(st.booleans(), min_size=k, max_size=k)
    orders = st.builds(order, st.permutations(range(k)), flags)
    rated = st.builds(Ratings, st.lists(st.none() | numbers, min_size=k, max_size=k).map(tuple))
    return orders | rated | st.builds(Labels, flags.map(tuple)) | st.sampled_from([BothBad(), Incomparable()])


@given(judgements())
def test_json_round_trip(judgement: Judgement) -> None:
    assert Judgement.from_json(json.loads(json.dumps(judgement.to_json()))) == judgement


@given(judgements())
def test_the_fingerprint_is_of_the_content(judgement: Judgement) -> None:
    content = {k: v for k, v in judgement.to_json().items() if k not in ("id", "meta") and v is not None}
    assert judgement.fingerprint == content_hash(content)
    assert replace(judgement, id="other", meta={"x": 1}).fingerprint == judgement.fingerprint
    assert replace(judgement, rationale="something else entirely").fingerprint != judgement.fingerprint
    swapped = replace(judgement, completions=judgement.completions[::-1])
    assert (swapped.fingerprint == judgement.fingerprint) == (len(judgement.completions) == 1)


def test_the_fingerprint_of_a_set_knows_ids_and_order() -> None:
    a, b = (Judgement(i, "p", (i, "x"), Order(((0,), (1,)))) for i in "ab")
    assert fingerprint([a, b]) != fingerprint([b, a])
    assert fingerprint([a, b]) != fingerprint([a, replace(b, id="c")])
    assert fingerprint([a, b]) == fingerprint([replace(a), replace(b, meta={"y": 2})])


@given(judgements())
def test_pairs_and_ties_are_all_there_is(judgement: Judgement) -> None:
    strict = pairs(judgement)
    for pair in strict:
        assert pair.chosen in judgement.completions
        assert pair.chosen != pair.rejected
    match judgement.relation:
        case Ratings(values):
            rated = [v for v in values if v is not None]
            assert len(strict) + ties(judgement) == len(list(combinations(rated, 2)))
            by_text = dict(zip(map(repr, judgement.completions), values))
            for pair in strict:
                gap = by_text[repr(pair.chosen)] - by_text[repr(pair.rejected)]  # type: ignore[operator]
                assert gap > 0
                assert pair.strength == (gap if judgement.strength is None else judgement.strength)
        case Order(groups):
            k = len(judgement.completions)
            assert ties(judgement) == sum(len(g) * (len(g) - 1) // 2 for g in groups)
            assert len(strict) + ties(judgement) == k * (k - 1) // 2
        case Labels(values):
            assert (len(strict), ties(judgement)) == (values.count(True) * values.count(False), 0)
        case _:
            assert (strict, ties(judgement)) == ([], 0)


@given(judgements(pair=True))
def test_swapping_the_order_swaps_the_pair(judgement: Judgement) -> None:
    (pair,) = pairs(judgement, line=7)
    (mirrored,) = pairs(replace(judgement, relation=Order(((1,), (0,)))), line=7)
    assert (pair.chosen, pair.rejected) == (mirrored.rejected, mirrored.chosen)
    assert (pair.id, pair.source_line, pair.confidence) == (judgement.id, 7, judgement.confidence)


def test_unranked_completions_are_in_no_pair() -> None:
    judgement = Judgement("i", "p", ("a", "b", "c"), Order(((2,), (0,))))
    assert [(p.chosen, p.rejected) for p in pairs(judgement)] == [("c", "a")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"relation": None}, "relation: missing"),
        ({"completions": "ab"}, "completions: wrong type"),
        ({"completions": [1, 2]}, r"completions\[0\]: wrong type"),
        ({"relation": {"order": [[0], [2]]}}, "relation.order: not an order"),
        ({"relation": {"order": [[], [0]]}}, "relation.order: an empty group"),
        ({"relation": {"labels": [1, 0]}}, "relation.labels: wrong type"),
        ({"relation": {"ratings": [True, 0]}}, r"relation.ratings\[0\]: wrong type"),
        ({"relation": {"order": [[0]], "labels": [True]}}, "relation: not a relation"),
        ({"confidence": 2}, "confidence: out of range"),
        ({"strength": "3"}, "strength: wrong type"),
        ({"shown_first": 2}, "shown_first: no such completion"),
        ({"id": 1.5}, "id: wrong type"),
        ({"meta": [1]}, "meta: wrong type"),
    ],
)
def test_faulty_records(change: dict[str, Any], expected: str) -> None:
    record = Judgement("i", "p", ("a", "b"), Order(((0,), (1,)))).to_json()
    with pytest.raises(InputError, match=expected):
        Judgement.from_json(record | change)


@given(st.lists(st.integers(0, 300), max_size=200))
def test_seen_is_a_dictionary_of_first_lines(numbers: list[int]) -> None:
    import hashlib

    seen, first = Seen(), {}
    for line, number in enumerate(numbers, 1):
        digest = hashlib.sha256(bytes([number % 256, number // 256])).digest()
        assert seen.add(digest, line) == first.get(number)
        first.setdefault(number, line)


def test_seen_grows() -> None:
    seen = Seen()
    digests = [i.to_bytes(8, "little") * 2 for i in range(10_000)]  # neighbours share their slots, the worst case
    assert all(seen.add(digest, line) is None for line, digest in enumerate(digests, 1))
    assert [seen.add(digest, 99) for digest in digests] == list(range(1, 10_001))
