"""Where the pairs of a tiny language model come from, and what that model learns before it sees them.

Knows: two sources. The user's own file: the model learns its chosen answers, behind their prompts. Or the docstrings of
Python's library: the model learns half of them, and continues openings of the others twice; an exact judge of texts
(`objectives.word_runs`) orders the two. Does not know: what is trained on pairs, what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.errors import InputError
from optative.generators.options import Tiny

if TYPE_CHECKING:
    from optative.data.records import Pair
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.packing import Group
    from optative.generators.language.sample import Completion
    from optative.optimizers.units import Unit

PROMPT, ANSWER = 96, 64  # most tokens; a prompt is cut on the left
CORPUS, OPENING, WRITTEN = "python-docstrings", 8, 24  # words of a prompt, which opens a paragraph; tokens of an answer
MANY = 256  # prompts that are answered together
FOR_FILE, FOR_TEXTS = Tiny(layers=5, vocabulary=4096), Tiny()  # 3 and 2 million parameters
TOKENS_PER_STEP, RATE, PASSES = 4096, 1e-3, 3  # of what is learnt before preferences; passes over chosen answers


@dataclass(frozen=True)
class World:
    """The model that pairs are for, and pairs that it is trained on and not. `prompts`: to be answered and judged."""

    lm: LanguageModel
    train: Sequence[Unit]
    held_out: Sequence[Unit]
    prompts: Sequence[str] = ()
    known: frozenset[str] = frozenset()


def answered_pairs(file: Path) -> list[Pair]:
    """Strict pairs whose two answers are one turn each; where conversations part earlier, prompts are not the same."""
    from optative.data.readers import read
    from optative.data.records import pairs

    found = [pair for judgement in read(file, on_bad_record="skip") for pair in pairs(judgement)]
    return [p for p in found if all(isinstance(answer, str) or len(answer) == 1 for answer in (p.chosen, p.rejected))]


def from_file(options: Mapping[str, Any], seed: int, file: Path) -> World:
    """A model trained on the chosen answers of the pairs that it will be trained on; prompts are on one side only."""
    from optative.core.ids import content_hash
    from optative.core.rng import stream
    from optative.generators.language import tiny
    from optative.generators.language.packing import Group
    from optative.generators.language.tokens import encode_group, shorten
    from optative.optimizers.units import Unit

    pairs = list({content_hash(pair.prompt): pair for pair in answered_pairs(file)}.values())
    wanted = options["train_pairs"] + options["held_out"]
    if len(pairs) < wanted:
        message = "holds too few pairs with prompts of their own and answers of one turn"
        raise InputError(message, file=file, found=len(pairs), expected=f"{wanted} or more")
    order = stream(seed, "pairs").permutation(len(pairs))
    chosen = [pairs[i] for i in order[:wanted]]
    texts = [
        _text(part) for pair in chosen[: options["train_pairs"]] for part in (pair.prompt, pair.chosen, pair.rejected)
    ]
    tokenizer = tiny.train_tokenizer(texts, FOR_FILE.vocabulary)
    lm = tiny.build(FOR_FILE, tokenizer, seed)
    units = [
        Unit(str(i), shorten(lm, encode_group(lm, pair.prompt, (pair.chosen, pair.rejected)), PROMPT, ANSWER))
        for i, pair in enumerate(chosen)
    ]
    train, held_out = units[: options["train_pairs"]], units[options["train_pairs"] :]
    answers = [Group(unit.group.prompt_ids, unit.group.completion_ids[:1]) for unit in train]
    learn(lm, answers, -(-PASSES * sum(group.num_tokens for group in answers) // TOKENS_PER_STEP), seed)
    return World(lm, train, held_out)


def from_texts(options: Mapping[str, Any], seed: int) -> World:
    """A model of docstrings; its own continuations of others, two to a prompt, the longer run of words chosen."""
    from itertools import islice

    from optative.core.rng import stream
    from optative.data.corpora import corpus
    from optative.generators.language import tiny
    from optative.generators.language.packing import Group
    from optative.generators.language.tokens import encode_prompt
    from optative.objectives.word_runs import run_of_words, vocabulary
    from optative.optimizers.units import Unit

    wanted = options["train_pairs"] + options["held_out"]
    texts = [document.text for document in islice(corpus(CORPUS), options["documents"])]
    texts = [texts[i] for i in stream(seed, "documents").permutation(len(texts))]
    own, others = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    parts = [part.split() for text in others for part in text.split("\n\n")]
    openings = dict.fromkeys(" ".join(words[:OPENING]) for words in parts if len(words) > OPENING)
    prompts = list(openings)
    tokenizer = tiny.train_tokenizer(own, FOR_TEXTS.vocabulary)
    lm = tiny.build(FOR_TEXTS, tokenizer, seed)
    learn(lm, [tiny.document(tokenizer, text, most=lm.context_length - 1) for text in own], options["steps"], seed)
    known = vocabulary(own)
    units: list[Unit] = []
    for some in (prompts[at : at + MANY] for at in range(0, len(prompts), MANY)):
        if len(units) >= wanted:
            break
        for prompt, answers in zip(some, write(lm, some, 2, seed), strict=True):
            heights = [run_of_words(answer.text, known) for answer in answers]
            if heights[0] != heights[1]:
                better, worse = answers if heights[0] > heights[1] else answers[::-1]
                units.append(Unit(prompt, Group(encode_prompt(lm, prompt), (better.ids, worse.ids))))
    if len(units) < wanted:
        message = "too few documents: pairs whose answers the judge tells apart are missing"
        raise InputError(message, field="documents", found=len(units), expected=f"{wanted} pairs")
    held_out = units[options["train_pairs"] : wanted]
    return World(lm, units[: options["train_pairs"]], held_out, [unit.id for unit in held_out], known)


def learn(lm: LanguageModel, groups: Sequence[Group], steps: int, seed: int) -> None:
    from optative.generators.language.tiny import pretrain

    pretrain(lm, groups, steps=steps, tokens_per_step=TOKENS_PER_STEP, learning_rate=RATE, seed=seed)


def write(lm: LanguageModel, prompts: Sequence[str], n: int, seed: int) -> list[list[Completion]]:
    from optative.generators.language.sample import SamplingSettings, sample

    return sample(lm, prompts, n, SamplingSettings(max_new_tokens=WRITTEN), seed=seed)


def _text(part: Any) -> str:
    return part if isinstance(part, str) else "\n\n".join(str(turn.get("content") or "") for turn in part)
