"""Composed prompts: splits that share nothing, equal numbers of each kind, no combination that cannot be followed."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from instruction_answers import following
from optative.core.errors import InputError
from optative.objectives.instructions.check import InstructionPrompt, check_answer
from optative.objectives.instructions.compose import (
    EXCLUDED,
    HELD_OUT_HASHES,
    conflict,
    generate,
    prompts_hash,
)
from optative.objectives.instructions.kinds import KINDS, TRAINED_KINDS, UNSEEN_KINDS
from optative.objectives.instructions.tasks import SPLITS, tasks
from optative.objectives.options import VerifiableInstructions


def kinds_of(prompts: list[InstructionPrompt]) -> Counter[str]:
    return Counter(i.kind for p in prompts for i in p.instructions)


def test_base_tasks_are_many_and_in_one_split_each() -> None:
    texts = {split: {task.text for task in tasks(split)} for split in SPLITS}
    assert sum(map(len, texts.values())) > 2500
    for one, other in combinations(SPLITS, 2):
        assert not texts[one] & texts[other]
    for split in SPLITS:
        assert len(tasks(split)) == len(texts[split])
        assert all(len(task.words) == len(set(task.words)) >= 3 for task in tasks(split))


def test_trained_and_unseen_kinds_are_all_kinds_once() -> None:
    assert len(TRAINED_KINDS) == 25
    assert len(UNSEEN_KINDS) >= 8
    assert sorted(TRAINED_KINDS + UNSEEN_KINDS) == sorted(KINDS)
    families = {kind.split(":")[0] for kind in KINDS}
    assert {kind.split(":")[0] for kind in TRAINED_KINDS} == families - {"language"}
    assert len({kind.split(":")[0] for kind in UNSEEN_KINDS}) >= 6


@pytest.mark.parametrize(("split", "n"), [("held_out", 250), ("held_out", 400), ("held_out", 50), ("validation", 100)])
def test_evaluated_sets_have_every_kind_equally_often(split: str, n: int) -> None:
    prompts = generate(split, n)
    counts = kinds_of(prompts)
    assert set(counts) == set(TRAINED_KINDS)
    assert len(set(counts.values())) == 1
    assert len({p.task for p in prompts}) == len({p.id for p in prompts}) == n
    sizes = Counter(len(p.instructions) for p in prompts)
    assert set(sizes) == {1, 2, 3}
    assert 0.45 <= sizes[1] / n <= 0.62
    assert 0.08 <= sizes[3] / n <= 0.12


@pytest.mark.parametrize("n", [64, 24, 100])
def test_unseen_kinds_are_only_those_and_equally_often(n: int) -> None:
    counts = kinds_of(generate("unseen_kinds", n))
    assert set(counts) == set(UNSEEN_KINDS)
    assert len(set(counts.values())) == 1


def test_train_varies_with_the_seed_and_the_fixed_sets_do_not() -> None:
    assert prompts_hash(generate("train", 80, 0)) == prompts_hash(generate("train", 80, 0))
    assert prompts_hash(generate("train", 80, 0)) != prompts_hash(generate("train", 80, 1))
    for split in ("validation", "held_out", "unseen_kinds"):
        assert prompts_hash(generate(split, 60, 0)) == prompts_hash(generate(split, 60, 1))


def test_train_uses_each_trained_kind_nearly_equally() -> None:
    counts = kinds_of(generate("train", 160, 5))
    assert set(counts) == set(TRAINED_KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_fixed_sets_have_the_recorded_hashes() -> None:
    assert {("held_out", 250), ("held_out", 400), ("unseen_kinds", 64), ("validation", 100)} <= set(HELD_OUT_HASHES)
    for (split, n), recorded in HELD_OUT_HASHES.items():
        assert prompts_hash(generate(split, n)) == recorded


def test_a_changed_held_out_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HELD_OUT_HASHES, ("held_out", 250), "0" * 64)
    with pytest.raises(AssertionError, match="held_out with 250 prompts"):
        generate("held_out", 250)


def test_exclusion_is_symmetric_and_no_kind_stands_beside_itself() -> None:
    for a in KINDS:
        assert conflict(a, a)
        for b in EXCLUDED[a]:
            assert a in EXCLUDED[b]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("change_case:english_lowercase", "change_case:capital_word_frequency"),
        ("change_case:english_capital", "change_case:english_lowercase"),
        ("language:response_language", "change_case:english_capital"),
        ("punctuation:no_comma", "detectable_format:json_format"),
        ("detectable_format:json_format", "detectable_format:title"),
        ("startend:end_checker", "startend:question_end"),
        ("combination:repeat_prompt", "startend:start_phrase"),
        ("detectable_format:numbered_list", "punctuation:no_digits"),
    ],
)
def test_known_conflicts(a: str, b: str) -> None:
    assert conflict(a, b)


@pytest.mark.parametrize(
    ("split", "n"), [("train", 1500), ("held_out", 400), ("validation", 100), ("unseen_kinds", 150)]
)
def test_every_composed_prompt_can_be_followed(split: str, n: int) -> None:
    failed = []
    for prompt in generate(split, n):
        answer = following(prompt)
        failed += [(c.kind, c.why, answer) for c in check_answer(prompt, answer) if not c.followed]
        for a, b in combinations(prompt.instructions, 2):
            assert not conflict(a.kind, b.kind)
    assert not failed, failed[:5]


@pytest.mark.parametrize(("a", "b"), [p for p in combinations(KINDS, 2) if not conflict(*p)])
def test_every_allowed_pair_can_be_followed_together(a: str, b: str) -> None:
    """Also the pairs that the fixed sets happen not to hold."""
    from optative.core.rng import stream
    from optative.objectives.instructions.check import make_instruction
    from optative.objectives.instructions.kinds.base import Topic

    topic = Topic("Write a short poem about rivers.", ("water", "fish", "bridge", "sea"))
    for draw in range(6):
        rng = stream(a, b, draw)
        instructions = tuple(make_instruction(kind, KINDS[kind].draw(rng, topic), draw) for kind in (a, b))
        prompt = InstructionPrompt("x", "", topic.task, instructions, "train")
        answer = following(prompt)
        assert [c.why for c in check_answer(prompt, answer) if not c.followed] == [], answer


def test_questions_go_with_the_choice_of_replies() -> None:
    questions = {task.text for task in tasks("held_out") if task.question}
    for prompt in generate("held_out", 250):
        chosen = any(i.kind == "detectable_format:constrained_response" for i in prompt.instructions)
        assert chosen == (prompt.task in questions)


def test_prompts_say_what_is_checked() -> None:
    for prompt in generate("train", 300, 3):
        assert prompt.prompt.startswith(prompt.task)
        for instruction in prompt.instructions:
            assert instruction.wording in prompt.prompt
            assert "{" not in instruction.wording.replace("{" + "}", "")


def test_kinds_can_be_restricted_to_trained_ones() -> None:
    some = ("detectable_format:title", "startend:end_checker", "punctuation:exclamation_marks")
    assert set(kinds_of(generate("held_out", 30, kinds=some))) == set(some)
    with pytest.raises(InputError, match="not a trained kind"):
        generate("train", 10, kinds=("punctuation:no_comma",))


@pytest.mark.parametrize("n", [0, 5, 8])
def test_too_few_prompts_for_equal_numbers_is_an_error(n: int) -> None:
    with pytest.raises(InputError, match="held_out"):
        generate("held_out", n)


def test_more_prompts_than_base_tasks_is_an_error() -> None:
    with pytest.raises(InputError, match="base tasks"):
        generate("unseen_kinds", 5000)


def test_default_sizes_are_those_with_recorded_hashes() -> None:
    options = VerifiableInstructions()
    sizes = {(split, getattr(options, split)) for split in ("held_out", "unseen_kinds")} | {("validation", 100)}
    assert sizes <= set(HELD_OUT_HASHES)
