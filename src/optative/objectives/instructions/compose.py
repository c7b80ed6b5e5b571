"""Prompts with instructions: a base task and one to three instructions that one answer can follow together.

Knows: tasks, kinds, which kinds exclude each other. Does not know: models, checkers.
`train` varies with the seed. The other splits are fixed sets: they come from a seed of their own, and their hashes are
below, so that no change of a word moves them unseen. In the evaluated splits every kind occurs equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optative.core.errors import InputError
from optative.core.ids import content_hash
from optative.core.rng import stream
from optative.objectives.instructions.check import Instruction, InstructionPrompt, make_instruction
from optative.objectives.instructions.kinds import KINDS, TRAINED_KINDS, UNSEEN_KINDS
from optative.objectives.instructions.kinds.base import Topic, between, shuffled
from optative.objectives.instructions.tasks import SPLITS, Split, Task, tasks

__all__ = ["EXCLUDED", "HELD_OUT_HASHES", "conflict", "generate", "prompts_hash"]

_FIXED_SEED = "optative instructions 1"
_SHARE_OF_THREE, _INSTRUCTIONS_PER_PROMPT = 0.10, 1.55  # about 55 % one instruction, 35 % two, 10 % three

# Kinds that leave no room for others, except those named with them.
_ALONE: dict[str, tuple[str, ...]] = {
    "detectable_format:constrained_response": (),
    "detectable_format:json_format": ("keywords:existence", "keywords:forbidden_words", "keywords:letter_frequency"),
}

# One tuple a group: of its kinds at most one is in a prompt.
_AT_MOST_ONE: tuple[tuple[str, ...], ...] = (
    # how the answer is divided
    (
        "length_constraints:number_paragraphs",
        "length_constraints:nth_paragraph_first_word",
        "length_constraints:number_lines",
        "detectable_format:number_bullet_lists",
        "detectable_format:numbered_list",
        "detectable_format:multiple_sections",
        "detectable_content:label_lines",
        "combination:two_responses",
    ),
    # how much there is of it
    (
        "length_constraints:number_words",
        "length_constraints:number_sentences",
        "length_constraints:number_lines",
        "length_constraints:number_paragraphs",
        "length_constraints:nth_paragraph_first_word",
        "combination:two_responses",
        "combination:repeat_prompt",
        "detectable_content:postscript",
    ),
    # what its first words are
    (
        "startend:start_phrase",
        "combination:repeat_prompt",
        "detectable_format:capital_heading",
        "length_constraints:nth_paragraph_first_word",
        "startend:quotation",
    ),
    # what its last words are
    ("startend:end_checker", "startend:question_end", "detectable_content:postscript", "startend:quotation"),
    # which letters it has
    (
        "change_case:english_capital",
        "change_case:english_lowercase",
        "change_case:capital_word_frequency",
        "detectable_format:capital_heading",
        "combination:repeat_prompt",
        "startend:start_phrase",
        "language:response_language",
    ),
)

# Pairs that do not go together for a reason of their own.
_PAIRS: tuple[tuple[str, str], ...] = (
    ("change_case:english_capital", "startend:end_checker"),  # the phrase has small letters
    ("change_case:english_lowercase", "startend:end_checker"),  # and a capital
    ("change_case:english_capital", "detectable_format:multiple_sections"),  # so has `Section`
    ("change_case:english_lowercase", "detectable_format:multiple_sections"),
    ("change_case:english_lowercase", "detectable_content:label_lines"),
    ("change_case:english_lowercase", "detectable_content:postscript"),
    ("keywords:existence", "keywords:frequency"),
    ("keywords:existence", "keywords:forbidden_words"),
    ("keywords:frequency", "keywords:forbidden_words"),
    ("keywords:letter_frequency", "keywords:existence"),  # a rare letter may be in the keyword
    ("keywords:letter_frequency", "keywords:frequency"),
    ("keywords:letter_frequency", "combination:repeat_prompt"),
    ("keywords:letter_frequency", "startend:start_phrase"),
    ("keywords:letter_frequency", "startend:end_checker"),
    ("keywords:letter_frequency", "length_constraints:number_words"),
    ("keywords:letter_frequency", "length_constraints:nth_paragraph_first_word"),
    ("language:response_language", "keywords:forbidden_words"),  # it would have nothing to forbid
    ("language:response_language", "keywords:existence"),  # the words are English
    ("language:response_language", "keywords:frequency"),
    ("language:response_language", "startend:end_checker"),  # so is the phrase
    ("language:response_language", "length_constraints:number_words"),  # a few words do not tell the language
    ("language:response_language", "detectable_content:label_lines"),
    ("language:response_language", "detectable_content:postscript"),
    ("keywords:forbidden_words", "combination:repeat_prompt"),  # the request holds the words
    ("length_constraints:number_lines", "detectable_format:capital_heading"),
    ("length_constraints:number_lines", "detectable_format:title"),
    ("length_constraints:number_sentences", "detectable_format:capital_heading"),
    ("length_constraints:number_sentences", "detectable_format:multiple_sections"),
    ("length_constraints:number_sentences", "detectable_format:number_bullet_lists"),
    ("length_constraints:number_sentences", "detectable_format:numbered_list"),
    ("length_constraints:number_words", "detectable_format:multiple_sections"),
    ("length_constraints:number_words", "detectable_format:number_bullet_lists"),
    ("length_constraints:number_words", "detectable_format:numbered_list"),
    ("startend:quotation", "detectable_format:title"),
    ("startend:quotation", "combination:two_responses"),
    ("startend:end_checker", "combination:two_responses"),
    ("startend:start_phrase", "combination:two_responses"),
    ("combination:repeat_prompt", "detectable_format:title"),
    ("combination:repeat_prompt", "startend:quotation"),
    ("punctuation:no_digits", "detectable_format:numbered_list"),
    ("punctuation:no_digits", "detectable_format:multiple_sections"),
    ("punctuation:no_digits", "combination:repeat_prompt"),
    ("punctuation:no_comma", "combination:repeat_prompt"),
    ("length_constraints:sentence_length", "combination:repeat_prompt"),
)


def _excluded() -> dict[str, frozenset[str]]:
    pairs = {frozenset(pair) for pair in _PAIRS}
    pairs |= {frozenset((a, b)) for group in _AT_MOST_ONE for a in group for b in group}
    pairs |= {frozenset((a, b)) for a, beside in _ALONE.items() for b in KINDS if b not in beside}
    pairs |= {frozenset((a,)) for a in KINDS}
    return {kind: frozenset(b for pair in pairs if kind in pair for b in (pair - {kind} or pair)) for kind in KINDS}


EXCLUDED: dict[str, frozenset[str]] = _excluded()
"""For each kind those that may not stand beside it; itself is always among them. Symmetric."""

HELD_OUT_HASHES: dict[tuple[str, int], str] = {
    ("held_out", 250): "559ea33dd69e73857bf7078746087d9be3dfac3ef89ce4a23afd84e6895ddf5c",
    ("held_out", 400): "8fff735246d2e2dda8b73ff668dd26bfe3558cc8c239460a299dc23d8b6d572d",
    ("held_out", 50): "5b62e88f5f7b5f009089c13ab3ce6e0a72591f11c2cb7ae24a6ad4babbdeed78",
    ("unseen_kinds", 64): "bb4bf94e10d74379c577a7bc98d207e6e5e960b5fa6fb61ecd143e002ecf3d7e",
    ("unseen_kinds", 24): "743e7d00f81730d1c411d26aa1397be131ab472e8c12c7688282772268b48eff",
    ("validation", 100): "d513d9543d6868594ff4b4582d2e7531dfbdcd5971f81ff0fdcba14eb500ceb6",
    ("validation", 30): "50712e4076ba41d11af4e0b1fc87cf5494e3164f4aa089fe20bcbd50c948b000",
}
"""SHA-256 of the fixed sets, by split and number of prompts."""


def conflict(a: str, b: str) -> bool:
    """True if no prompt may hold both kinds."""
    return b in EXCLUDED[a]


def generate(split: Split, n: int, seed: int = 0, kinds: tuple[str, ...] | None = None) -> list[InstructionPrompt]:
    """`n` prompts of a split. Only `train` depends on the seed.

    `kinds`: a subset of `TRAINED_KINDS`; `unseen_kinds` always has all of `UNSEEN_KINDS`.
    Each kind occurs equally often; in `train` the numbers may differ by one.
    Raises InputError if `n` is too small for that, or too large for a set that must not use a base task twice.
    """
    if split not in SPLITS:
        raise InputError("unknown split", found=split, expected=", ".join(SPLITS))
    used = UNSEEN_KINDS if split == "unseen_kinds" else tuple(kinds or TRAINED_KINDS)
    wrong = sorted(set(used) - set(UNSEEN_KINDS if split == "unseen_kinds" else TRAINED_KINDS))
    if wrong:
        raise InputError("not a trained kind", field="kinds", found=wrong[0], expected=", ".join(TRAINED_KINDS))
    key = (seed, "train", n, list(used)) if split == "train" else (_FIXED_SEED, split, n, list(used))
    sizes, counts = _plan(split, n, shuffled(stream(*key, "kinds"), used) if split == "train" else used)
    for attempt in range(20):
        rng = stream(*key, attempt)
        groups = _deal(rng, sizes, counts)
        if groups is not None:
            prompts = _write(rng, split, groups)
            _verify(split, n, kinds, prompts)
            return prompts
    raise InputError("too few combinations of these kinds", field="kinds", found=list(used), expected="more kinds")


def prompts_hash(prompts: list[InstructionPrompt]) -> str:
    """SHA-256 of everything that a set of prompts says and asks."""
    return content_hash(
        [[p.id, p.prompt, p.task, [[i.kind, i.params, i.wording] for i in p.instructions]] for p in prompts]
    )


def _plan(split: Split, n: int, used: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """How many instructions each prompt has, and how often each kind occurs (in `train` the first may once more)."""
    threes = round(_SHARE_OF_THREE * n)
    total = round(_INSTRUCTIONS_PER_PROMPT * n)
    if split == "train":
        each, rest = divmod(total, len(used))
        counts = {kind: each + (i < rest) for i, kind in enumerate(used)}
    else:
        each = max(1, round(total / len(used)))
        counts = dict.fromkeys(used, each)
    total = sum(counts.values())
    twos = total - n - 2 * threes
    while twos < 0 and threes:
        threes -= 1
        twos += 2
    if n < 1 or twos < 0 or n - twos - threes < 0:
        raise InputError(
            f"cannot give each of {len(used)} kinds the same number of places",
            field=split,
            found=n,
            expected=f"a larger number of prompts, for example {2 * len(used)}",
        )
    return [3] * threes + [2] * twos + [1] * (n - twos - threes), counts


def _deal(rng: np.random.Generator, sizes: list[int], counts: dict[str, int]) -> list[list[str]] | None:
    """Deal the kinds to prompts so that none conflict; None if it got stuck.

    The large prompts come first, while there is a choice; a kind that excludes all others waits for a single place.
    """
    left = dict(counts)
    alone = {kind for kind in counts if all(conflict(kind, other) for other in counts)}
    groups: list[list[str]] = []
    for size in sizes:
        for _ in range(100):
            group: list[str] = []
            while len(group) < size:
                fits = [k for k in left if left[k] > 0 and not any(conflict(k, other) for other in group)]
                free = [k for k in fits if size == 1 or k not in alone]
                if not free:
                    break
                weights = np.array([float(left[k]) for k in free])
                group.append(free[int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))])
            if len(group) == size:
                break
        else:
            return None
        for kind in group:
            left[kind] -= 1
        groups.append(group)
    return shuffled(rng, groups)


def _write(rng: np.random.Generator, split: Split, groups: list[list[str]]) -> list[InstructionPrompt]:
    everything = tasks(split)
    if split != "train" and len(groups) > len(everything):
        raise InputError(
            "more prompts than base tasks", field=split, found=len(groups), expected=f"at most {len(everything)}"
        )
    order: dict[bool, list[Task]] = {
        question: shuffled(rng, [task for task in everything if task.question is question])
        for question in (True, False)
    }
    at = {True: 0, False: 0}
    prompts = []
    for number, group in enumerate(groups):
        question = group == ["detectable_format:constrained_response"]
        choices = order[question]
        if at[question] >= len(choices) and split != "train":
            raise InputError("more prompts than base tasks", field=split, found=len(groups))
        task = choices[at[question] % len(choices)]
        at[question] += 1
        instructions = tuple(_instruction(rng, kind, task) for kind in group)
        parts = [task.text, *(i.wording for i in instructions)]
        on_lines = rng.random() < 0.3 or any("\n" in part for part in parts)
        text = ("\n" if on_lines else " ").join(parts)
        prompts.append(InstructionPrompt(f"{split}-{number:04d}", text, task.text, instructions, split))
    return prompts


def _instruction(rng: np.random.Generator, kind: str, task: Task) -> Instruction:
    params: dict[str, Any] = KINDS[kind].draw(rng, Topic(task.text, task.words))
    return make_instruction(kind, params, between(rng, 0, len(KINDS[kind].wordings) - 1))


def _verify(split: Split, n: int, kinds: tuple[str, ...] | None, prompts: list[InstructionPrompt]) -> None:
    expected = HELD_OUT_HASHES.get((split, n)) if kinds is None else None
    assert expected in (None, prompts_hash(prompts)), f"{split} with {n} prompts is not the set whose hash is recorded"
