"""Updates of language models: parts A (multiple choice) and B (dates and numbers in one form) of system 53.

Knows: the two bases of one tokenizer, the tasks, the task adapters. Does not know: arms, criteria. `M_v1` and `M_v2`
are LoRA adapters on the old and the new base, trained on the same examples; an arm goes on from `M_v2` with as many
steps again. Bases are pretrained on texts that hold none of the task's; each on its own half of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optative.systems.compatible_updates import CHOICES, METHODS, NEW, OLD, compared, compared_texts

if TYPE_CHECKING:
    from optative.data.choices import Choice
    from optative.data.corpora import Document
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.packing import Group
    from optative.runs.study import Measured

FIRST, WORDS, OPTIONS = 5, 6, 4  # words of a question, words of an option, options
SIZES: tuple[dict[str, int], ...] = ({}, {"hidden": 224})  # of the old base, 2.2M weights, and of the new one, 2.9M
TOKENS, RATE, READING_RATE = 4096, 3e-3, 1e-4  # of a step of pretraining; the last of a real model
LONGEST = 16  # tokens of an answer


@dataclass(frozen=True)
class Task:
    """What the adapters learn from, what they are measured on, and what the bases may read."""

    train: Sequence[Any]
    test: Sequence[Any]
    halves: tuple[Sequence[Document], Sequence[Document]]


def cell(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """One arm. `folder` keeps the bases and the adapters M_v1 and M_v2 for the other cells of the seed."""
    part, method = options["part"], options["method"]
    work = task(part, seed, tuple(options["corpora"]), options["train"], options["test"])
    old, new = (adapted(work, options, seed, version, folder) for version in (0, 1))
    before, now = answers(old, work, part), answers(new, work, part)
    if method in (OLD, NEW):
        own, after = {OLD: (old, before), NEW: (new, now)}[method]
    else:
        train_on(new, old, work, options, seed)
        own, after = new, answers(new, work, part)
    again = answers(own, work, part, batch=300)
    if part == CHOICES:
        truth, sources = [item.answer for item in work.test], [item.source for item in work.test]
        return compared(before, now, after, again, truth, sources)
    return compared_texts(before, now, after, again, options["dead_zone"])


@lru_cache(maxsize=2)
def task(part: str, seed: int, corpora: tuple[str, ...], train: int, test: int) -> Task:
    """Items for both parts and the texts for the bases, which are the same in both."""
    from optative.core.errors import InputError
    from optative.core.rng import stream
    from optative.data.choices import continuations
    from optative.data.openings import openings
    from optative.data.reformatting import reformatting

    documents = texts_of(corpora)
    found = openings(documents, words=FIRST, least=FIRST + WORDS, most=400, characters=60)
    if len(found) < train + test:
        raise InputError("too few texts for the task", field="corpora", found=len(found), expected=f"{train + test}")
    chosen = [found[i] for i in stream(seed, "task").permutation(len(found))[: train + test]]
    asked = {first for first, _, _ in chosen}
    free = [d for d in documents if " ".join(d.text.split("\n\n")[0].split()[:FIRST]) not in asked]
    order = stream(seed, "halves").permutation(len(free))
    old, new = ([free[i] for i in own] for own in (order[: len(free) // 2], order[len(free) // 2 :]))
    items: list[Any] = (
        continuations(chosen, options=OPTIONS, words=WORDS, key=seed)
        if part == CHOICES
        else reformatting(train + test, key=seed)
    )
    return Task(items[:train], items[train:], (old, new))


@lru_cache(maxsize=1)
def texts_of(corpora: tuple[str, ...]) -> list[Document]:
    from optative.data.corpora import corpus

    return [document for name in corpora for document in corpus(name)]


def base(work: Task, options: Mapping[str, Any], seed: int, version: int, folder: Path) -> LanguageModel:
    """A base: a tiny model on its half of the texts; or the user's model before and after reading some of them."""
    from optative.core.ids import content_hash
    from optative.generators.language import tiny
    from optative.generators.language.kept import kept
    from optative.generators.language.load import load_language_model
    from optative.generators.options import Tiny

    steps, model = options["pretraining"][version], options["model"]
    texts = [document.text for document in work.halves[version]]

    def make() -> LanguageModel:
        if model is None:
            tokenizer = tiny.train_tokenizer((d.text for half in work.halves for d in half), Tiny().vocabulary)
            lm = tiny.build(Tiny(**SIZES[version]), tokenizer, seed + version)
        else:
            lm = load_language_model(model, dtype="float32", device="cpu")
        documents = [tiny.document(lm.tokenizer, text, most=Tiny().context - 1) for text in texts]
        rate = RATE if model is None else READING_RATE
        tiny.pretrain(lm, documents, steps=steps, tokens_per_step=TOKENS, learning_rate=rate, seed=seed)
        return lm

    if model is not None and version == 0:
        return load_language_model(model, dtype="float32", device="cpu")
    return kept(folder / f"base-{version}-{content_hash([texts, steps, model, seed])[:12]}", make)


def adapted(work: Task, options: Mapping[str, Any], seed: int, version: int, folder: Path) -> LanguageModel:
    """A base with its task adapter."""
    from optative.core.ids import content_hash
    from optative.generators.language.trained import load_trained, prepare_training, save_trained
    from optative.generators.options import LoraOptions
    from optative.optimizers.fit import fit
    from optative.optimizers.units import Unit

    lm = base(work, options, seed, version, folder)
    prepare_training(lm, LoraOptions(rank=16), seed)
    about = {name: value for name, value in options.items() if name not in ("method", "dead_zone")}
    file = folder / f"adapter-{version}-{content_hash([about, lm.fingerprint, seed])[:12]}.safetensors"
    if not file.exists():
        with TemporaryDirectory() as place:
            units = [Unit("", group, levels=(1.0,)) for group in learnt(lm, work.train)]
            fit(lm, units, loss="sft", options=steps_of(options), seed=seed, folder=Path(place))
        save_trained(lm, file)
    load_trained(lm, file)
    return lm


def train_on(new: LanguageModel, old: LanguageModel, work: Task, options: Mapping[str, Any], seed: int) -> None:
    """Train the adapter of `new` further, by a method; as many steps as it had."""
    from optative.optimizers.distillation import distil, teacher
    from optative.optimizers.fit import fit
    from optative.optimizers.units import Unit

    method, settings, groups = METHODS[options["method"]], steps_of(options), learnt(new, work.train)
    with TemporaryDirectory() as place:
        if method.align is None:
            units = [Unit("", group, levels=(1.0,)) for group in groups]
            fit(new, units, loss="sft", options=settings, seed=seed + 1, folder=Path(place))
            return
        teachers = [teacher(lm, groups, token_budget=settings.scoring_budget) for lm in (old, new)]
        align, weight = method.align, method.nll_weight
        distil(
            new, groups, *teachers, align=align, nll_weight=weight, options=settings, seed=seed + 1, folder=Path(place)
        )


def steps_of(options: Mapping[str, Any]) -> Any:
    from optative.optimizers.options import SFT

    return SFT(learning_rate=options["learning_rate"], epochs=options["epochs"], units_per_step=16)


def learnt(lm: LanguageModel, items: Sequence[Any]) -> list[Group]:
    """The right answers, behind their questions."""
    from optative.generators.language.packing import Group
    from optative.generators.language.tokens import encode_apart, start_ids

    def ids(text: str) -> tuple[int, ...]:
        return encode_apart(lm.tokenizer, text)

    found = []
    for item in items:
        if isinstance(item, tuple):
            prompt, answer = question(item[0]), (*ids(f" {item[1]}"), lm.eos_ids[0])
        else:
            prompt, answer = item.prompt, ids(item.options[item.answer])
        found.append(Group((*start_ids(lm), *ids(prompt)), (answer,)))
    return found


def question(written: str) -> str:
    return f"{written} ="


def answers(lm: LanguageModel, work: Task, part: str, *, batch: int = 96) -> Any:
    """What a model takes, [N], or how near its greedy answers are to what was asked for; `batch` moves no answer."""
    import numpy as np

    from optative.evaluation.choices import take
    from optative.evaluation.overlap import character_f
    from optative.generators.language.adapters import merged
    from optative.generators.language.sample import SamplingSettings, sample
    from optative.generators.language.score import summed

    if part == CHOICES:
        return take(summed(lm, [asked(lm, item) for item in work.test], token_budget=10 * batch))
    greedy = SamplingSettings(max_new_tokens=LONGEST, temperature=0)
    with merged(lm):
        written = sample(lm, [question(item[0]) for item in work.test], 1, greedy, seed=0, max_rows=batch)
    return np.array([character_f(own[0].text, item[1]) for own, item in zip(written, work.test)])


def asked(lm: LanguageModel, item: Choice) -> Group:
    """A question with all its options."""
    from optative.generators.language.packing import Group
    from optative.generators.language.tokens import encode_apart, start_ids

    prompt = (*start_ids(lm), *encode_apart(lm.tokenizer, item.prompt))
    return Group(prompt, tuple(encode_apart(lm.tokenizer, option) for option in item.options))
