"""System 02, metadata conditioning: tags, stages, measures by other formulas; traps as planted faults; the record.

A trap is a check that holds for the code as it is and fails when its fault is put back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from optative.core.config import parse
from optative.core.errors import InputErrors
from optative.data.invented import FACTS, MOST_PEOPLE, people
from optative.generators.language import tiny
from optative.generators.language.packing import Group
from optative.generators.options import Tiny
from optative.systems import metadata_conditioning as m
from optative.systems.catalogue import find
from optative.systems.metadata_conditioning import tags as t
from optative.systems.record import Bound, Criterion, Spread
from optative.systems.status import standing

NAMES = ("grumbles", "python-reference", "unicode-names")
MECO = {"tagged": [1.0, 0.0], "hashed": False}
SMALL = Tiny(layers=1, hidden=32, heads=2, vocabulary=512, context=96)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the extra `systems` is not installed")
    for module in (m, t):
        monkeypatch.setattr(module, "MODEL", SMALL)
        monkeypatch.setattr(module, "FACT_MODEL", SMALL)
    monkeypatch.setattr(t, "TOKENS_PER_STEP", 512)


def world() -> t.World:
    return t.world(0, NAMES, 60)


def model() -> Any:
    return tiny.build(SMALL, world().tokenizer, 0)


def planned(tagged: Sequence[float] = (1.0, 0.0), hashed: bool = False) -> tuple[Any, list[tiny.Stage]]:
    lm = model()
    return lm, t.stages(lm, world().train, {"tagged": list(tagged), "hashed": hashed}, 20, 0)


def is_tagged(group: Group) -> bool:
    return len(group.prompt_ids) > 1


# The parts, by other formulas


def test_a_world_keeps_a_twentieth_of_every_source() -> None:
    here = world()
    assert Counter(one.source for one in here.held_out) == dict.fromkeys(NAMES, 3)
    assert Counter(one.source for one in here.train) == dict.fromkeys(NAMES, 57)
    assert not {one.text for one in here.train} & {one.text for one in here.held_out}
    right = [found == one.source for found, one in zip(here.judge([one.text for one in here.held_out]), here.held_out)]
    assert np.mean(right) > 0.8, "an outside judge can tell the sources apart"


@pytest.mark.parametrize("arm", m.ARMS)
def test_arms_differ_in_tags_only(arm: str) -> None:
    lm, stages = planned(m.ARMS[arm], arm.endswith("hashed"))
    _, plain = planned((0.0, 0.0))
    assert [s.steps for s in stages] == [18, 2]
    for stage, other, share in zip(stages, plain, m.ARMS[arm]):
        assert [g.completion_ids for g in stage.groups] == [g.completion_ids for g in other.groups]
        assert np.mean([is_tagged(g) for g in stage.groups]) == pytest.approx(share, abs=0.12)
    decoded = lm.tokenizer.decode(stages[0].groups[0].prompt_ids)
    named = any(name in decoded for name in NAMES)
    assert named == (arm in ("100% tagged", "MeCo") or (arm == "mixed 90/10" and is_tagged(stages[0].groups[0])))


def test_a_hashed_tag_is_one_string_a_source() -> None:
    assert len({t.tag(name, True) for name in NAMES}) == len(NAMES)
    assert t.tag("grumbles", True) == t.tag("grumbles", True)
    assert not any(word in t.tag(name, True) for name in NAMES for word in name.split("-"))


def test_the_effect_of_a_tag_by_plain_forwards() -> None:
    lm, here = model(), world()
    names = sorted(NAMES)

    def nats(text: str, source: str) -> float:
        group = t.document(lm, text, t.tag(source, False))
        ids = torch.tensor([group.prompt_ids + group.completion_ids[0]])
        labels = ids.clone()
        labels[:, : len(group.prompt_ids)] = -100
        return float(lm.model(input_ids=ids, labels=labels).loss) * len(group.completion_ids[0])

    own = [one.text for one in here.held_out if one.source == names[0]]
    wrong = [names[1], names[2], names[1]]
    tokens = sum(len(t.document(lm, text).completion_ids[0]) for text in own)
    expected = sum(nats(text, names[0]) - nats(text, other) for text, other in zip(own, wrong)) / tokens
    assert t.tag_effect(lm, here.held_out, names, False)[0] == pytest.approx(expected, abs=1e-4)


def test_people_are_different_and_their_facts_follow_from_nothing() -> None:
    some = people(0, 2000)
    assert len({one.name for one in some}) == 2000
    assert people(0, 5) == some[:5]
    assert people(1, 5) != some[:5]
    for place, values in enumerate(FACTS.values()):
        counts = Counter(one.values[place] for one in some)
        assert set(counts) == set(values.split())
        assert len(counts) == 16
        assert max(counts.values()) < 2 * min(counts.values())
    for asked, value in some[0].questions:
        assert some[0].text.startswith(f"{asked} {value}")
    with pytest.raises(ValueError, match="more people than names"):
        people(0, MOST_PEOPLE + 1)


def test_pages_hold_one_good_source_in_eight_and_junk_is_never_seen_twice() -> None:
    known, texts = t.pages(0, 30, 40)
    share = np.mean([one.source == t.GOOD for one in texts])
    assert share == pytest.approx(1 / (t.JUNK + 1))
    names = [line.split(" was ")[0] for one in texts if one.source != t.GOOD for line in one.text.split("\n")]
    assert len(set(names)) == len(names)
    assert not set(names) & {one.name for one in known}
    seen = Counter(line for one in texts if one.source == t.GOOD for line in one.text.split("\n"))
    assert set(seen) <= {one.text for one in known}
    assert max(seen.values()) - min(seen.values()) <= 1
    assert len({one.source for one in texts}) > 3


def test_recall_is_greedy_and_can_be_right() -> None:
    """A model that learnt one page by heart recalls it, and one that did not does not."""
    (one,) = people(0, 1)
    tokenizer = tiny.train_tokenizer([one.text] * 5, SMALL.vocabulary)
    lm = tiny.build(SMALL, tokenizer, 0)
    assert sum(t.recall(lm, one.questions, "")) == 0
    tiny.pretrain(lm, [t.document(lm, one.text)], steps=60, tokens_per_step=1, learning_rate=1e-2, seed=0)
    assert t.recall(lm, one.questions, "") == [1.0] * 4
    asked, value = one.questions[0]
    assert t.recall(lm, [(asked, value[::-1])], "") == [0.0]


@pytest.mark.parametrize("arm", ["MeCo", "facts, MeCo"])
def test_a_small_cell_measures_what_the_criteria_ask(arm: str) -> None:
    pytest.importorskip("profanity_check", reason="the extra `systems` is not installed")
    study = m.Study(sources=NAMES, documents=60, steps=20, samples=2, people=6, fact_steps=20)
    options = m.arms(study)[arm].options
    found = m.cell(options, 0)
    asked = {c.metric for c in m.SYSTEM.criteria if arm in (getattr(c, "arm", None), *getattr(c, "arms", ()))}
    assert asked <= set(found.values) <= set(m.metrics())
    again = m.cell(options, 0)
    assert all(np.array_equal(found.values[name], again.values[name]) for name in found.values)
    if arm == "MeCo":
        lm, here = model(), world()
        t.pretrain(lm, t.stages(lm, here.train, MECO, 20, 0), 0)
        mean = tiny.mean_loss(lm, [t.document(lm, one.text) for one in here.held_out])
        assert np.mean(found.values[m.LOSS]) == pytest.approx(mean, abs=1e-5)
        assert found.values[m.TIMES] == pytest.approx(np.mean(found.values[m.NAMED]) * 3)


# Traps


def tags_carry_no_loss() -> None:
    lm = model()
    group = t.document(lm, "a text", t.tag("grumbles", False))
    assert group.counted == t.document(lm, "a text").counted
    t.tag_effect(lm, world().held_out, sorted(NAMES), False)


def the_border_is_fixed() -> None:
    lm = model()
    for text in (" of the object", "\n\nof the object", "s of it"):
        tagged, plain = t.document(lm, text, "Source: the object"), t.document(lm, text)
        assert tagged.completion_ids == plain.completion_ids


def every_window_begins_with_its_tag() -> None:
    _, stages = planned((1.0, 1.0))
    assert all(is_tagged(group) for stage in stages for group in stage.groups)
    assert sum(len(stage.groups) for stage in stages) == len(world().train), "one window a document"


def the_cooldown_sees_fresh_texts() -> None:
    _, (first, last) = planned()
    assert not {g.completion_ids for g in first.groups} & {g.completion_ids for g in last.groups}


def nothing_is_warmed_up_again() -> None:
    lm, stages = planned()
    t.pretrain(lm, stages, 0)


def the_cooldown_is_untagged() -> None:
    _, (first, last) = planned()
    assert all(map(is_tagged, first.groups))
    assert not any(map(is_tagged, last.groups))


def fault_tag_in_the_loss(patch: pytest.MonkeyPatch) -> None:
    given = tiny.document
    patch.setattr(tiny, "document", lambda tokenizer, text, prefix="", **rest: given(tokenizer, prefix + text, **rest))


def fault_joint_tokens(patch: pytest.MonkeyPatch) -> None:
    def joint(tokenizer: Any, text: str, prefix: str = "", *, most: int | None = None) -> Group:
        found = tokenizer(prefix + text, add_special_tokens=False, return_offsets_mapping=True)
        cut = sum(start < len(prefix) for start, _ in found["offset_mapping"])
        ids = found["input_ids"]
        return Group((tokenizer.bos_token_id, *ids[:cut]), ((*ids[cut:], tokenizer.eos_token_id)[:most],))

    patch.setattr(tiny, "document", joint)


def fault_windows_without_tag(patch: pytest.MonkeyPatch) -> None:
    given = t.stages

    def windows(lm: Any, *args: Any) -> list[tiny.Stage]:
        def cut(group: Group) -> list[Group]:
            ids = group.completion_ids[0]
            return [Group(group.prompt_ids, (ids[:30],))] + ([Group((0,), (ids[30:],))] if ids[30:] else [])

        return [tiny.Stage([g for group in s.groups for g in cut(group)], s.steps) for s in given(lm, *args)]

    patch.setattr(t, "stages", windows)


def fault_same_texts(patch: pytest.MonkeyPatch) -> None:
    given = t.stages

    def same(*args: Any) -> list[tiny.Stage]:
        first, last = given(*args)
        return [first, tiny.Stage(first.groups, last.steps)]

    patch.setattr(t, "stages", same)


def fault_new_schedule(patch: pytest.MonkeyPatch) -> None:
    given = tiny.pretrain_stages

    def apart(lm: Any, stages: Sequence[tiny.Stage], **rest: Any) -> list[float]:
        return [loss for stage in stages for loss in given(lm, [stage], **rest)]

    patch.setattr(tiny, "pretrain_stages", apart)


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (tags_carry_no_loss, fault_tag_in_the_loss),
        (the_border_is_fixed, fault_joint_tokens),
        (every_window_begins_with_its_tag, fault_windows_without_tag),
        (the_cooldown_sees_fresh_texts, fault_same_texts),
        (nothing_is_warmed_up_again, fault_new_schedule),
        (the_cooldown_is_untagged, fault_same_texts),
    ],
    ids=lambda given: given.__name__,
)
def test_trap(
    check: Callable[[], None], fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("rates", [[0.5, 1, 0.8, 0.9], [0.5, 0.4, 0.3, 1.0]])
def test_a_schedule_that_starts_again_is_seen(rates: list[float]) -> None:
    t.check_schedule([0.5, 1, 1, 0.9], 3)
    with pytest.raises(AssertionError, match="learning rate"):
        t.check_schedule(rates, 3)


# The record


def test_the_criteria_are_the_cards_and_open_until_they_are_run() -> None:
    state = standing(find("2"))
    assert state.system is m.SYSTEM
    assert state.verdict != "missing"
    numbers = [
        c.smallest_effect if isinstance(c, Criterion) else c.limit if isinstance(c, Bound) else c.at_most
        for c in m.SYSTEM.criteria
    ]
    assert numbers == [0.05, 0.03, -0.10, 0.9, -0.03, 3.0, 0.15, 0.7, 0.05, 0.03]
    assert {c.seeds for c in m.SYSTEM.criteria} == {3}
    assert len(m.FULL.seeds) >= 3
    arms = m.arms(m.FULL)
    for criterion in m.SYSTEM.criteria:
        named = criterion.arms if isinstance(criterion, Spread) else [criterion.arm]
        assert set(named) <= set(arms)
        assert criterion.metric in m.metrics()


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputErrors, match="sources"):
        parse(m.Study, {"sources": ["grumbles"]})
