"""How an arm of system 47 learns its controls: the three tasks, what a control is, and its stages.

Knows: base models, rows under labels, which weights move when. Does not know: arms by name, criteria, what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.packing import Group
    from optative.objectives.control_labels import Pair, Row
    from optative.optimizers.units import Unit

WIDTH, RANK, ALPHA = 10, 8, 16.0  # embeddings of a soft prompt; of a LoRA
STEP, CONTROL_RATE, JOINT_RATE, DPO_RATE = 32, 1e-2, 1e-3, 3e-4  # rows of a step; learning rates
HELD_OUT, LONGEST = 200, 64  # prompts that are measured on, most tokens of an answer
JUDGED = 1000  # texts of each style that the judge alone learns from
NOISE = 0.1  # share of pairs whose labels have changed places


@dataclass(frozen=True)
class Recipe:
    """What an arm's control is and its stages: `controls` alone, `joint` with the model, `pairs` for DPO."""

    control: str = ""  # soft prompt, random soft prompt, special token, lora, text; "": none
    stages: tuple[str, ...] = ("joint",)

    @property
    def has_weights(self) -> bool:
        """Is the control more than words?"""
        return self.control not in ("", "text")


@dataclass(frozen=True)
class Task:
    """`base` gives the base model anew; `verdict(prompt, answer)`: the label that an answer deserves."""

    base: Callable[[], LanguageModel]
    labels: tuple[str, ...]
    rows: Sequence[Row]
    pairs: Sequence[Pair]
    prompts: Sequence[str]
    verdict: Callable[[str, str], str]


def task_of(options: Mapping[str, Any], seed: int, folder: Path) -> Task:
    """`manners`: two labels, from pairs; `lengths`: three of single texts; `styles`: two, which corpus a text is of.

    `folder` keeps the base models.
    """
    from optative.core.ids import content_hash
    from optative.generators.language import tiny
    from optative.generators.language.kept import kept
    from optative.generators.options import Tiny
    from optative.objectives.control_labels import LengthLabels, Row, manners, manners_of

    pairs: list[Pair] = []
    verdict: Callable[[str, str], str] = manners_of
    labels: tuple[str, ...] = ("good", "bad")
    if options["task"] == "manners":
        made = manners(options["pairs"] + HELD_OUT, seed, noise=NOISE)
        pairs, held_out = made[HELD_OUT:], [pair.prompt for pair in made[:HELD_OUT]]
        rows = [row for pair in pairs for row in pair.rows]
    elif options["task"] == "styles":
        rows, held_out, verdict = styles(options["styles"], options["pairs"], seed)
    else:
        texts = shuffled("python-docstrings", 3, seed)
        held_out, texts = [text[0] for text in texts[:HELD_OUT]], texts[HELD_OUT:]
        length = LengthLabels.thirds_of([rest for _, rest, _ in texts])
        rows = [Row(first, rest, length(rest)) for first, rest, _ in texts]
        labels, verdict = ("short", "medium", "long"), lambda _, answer: length(answer)

    def make() -> LanguageModel:
        tokenizer = tiny.train_tokenizer((row.prompt + row.completion for row in rows), Tiny().vocabulary)
        lm = tiny.build(Tiny(), tokenizer, seed)
        documents = [tiny.document(tokenizer, row.completion, row.prompt, most=LONGEST) for row in rows]
        steps = options["pretraining"]
        tiny.pretrain(lm, documents, steps=steps, tokens_per_step=4096, learning_rate=3e-3, seed=seed)
        return lm

    name = content_hash([[(row.prompt, row.completion) for row in rows], options["pretraining"], seed])[:12]
    return Task(lambda: kept(folder / name, make), labels, rows, pairs, held_out, verdict)


def shuffled(name: str, words: int, seed: int) -> list[tuple[str, str, str]]:
    from optative.core.rng import stream
    from optative.data.corpora import corpus
    from optative.data.openings import openings

    found = openings(corpus(name), words=words)
    return [found[i] for i in stream(seed, "texts").permutation(len(found))]


def styles(names: Sequence[str], count: int, seed: int) -> tuple[list[Row], list[str], Callable[[str, str], str]]:
    """Rows, held-out prompts, and a judge of answers that learnt from texts that are in neither."""
    from optative.core.errors import InputError
    from optative.evaluation.text_judges import TextClasses
    from optative.objectives.control_labels import BAD, GOOD, Row

    prompts, taught, judged = list[str](), list[list[Row]](), list[Row]()
    for label, name in zip((GOOD, BAD), names, strict=True):
        own = [Row(first, rest, label) for first, rest, _ in shuffled(name, 5, seed)]
        if len(own) < (needed := HELD_OUT // 2 + JUDGED + count):
            raise InputError("too few texts", field="styles", found=f"{len(own)} in {name}", expected=f"{needed}")
        prompts += [row.prompt for row in own[: HELD_OUT // 2]]
        judged += own[HELD_OUT // 2 : HELD_OUT // 2 + JUDGED]
        taught.append(own[-count:])
    judge = TextClasses([row.completion for row in judged], [row.label for row in judged])
    rows = [row for both in zip(*taught) for row in both]  # any part of them holds as many of each
    return rows, prompts, lambda _, answer: judge([answer])[0]


def learn(lm: LanguageModel, task: Task, recipe: Recipe, steps: int, seed: int, files: Path) -> dict[str, Any]:
    """Put the controls on `lm` and walk the stages; what they took."""
    from optative.generators.language import controls
    from optative.generators.language.trained import prepare_training
    from optative.optimizers.fit import fit
    from optative.optimizers.options import DPO, SFT

    put(lm, recipe, task.labels, seed)
    values: dict[str, Any] = {"gradient steps": 0.0}
    for stage in recipe.stages:
        if recipe.has_weights and stage != "pairs":
            controls.train_only(lm, controls=True, model=stage != "controls")
            before = [w.detach().clone() for own in controls.controls_of(lm).weights.values() for w in own]
        else:
            prepare_training(lm, None, seed, keep_start=stage == "pairs")
        rate = {"controls": CONTROL_RATE, "joint": JOINT_RATE, "pairs": DPO_RATE}[stage]
        kind = DPO if stage == "pairs" else SFT
        settings = kind(learning_rate=rate, units_per_step=STEP, checkpoint_every=steps)
        data = list(islice(cycle(units(lm, task, recipe, stage)), steps // len(recipe.stages) * STEP))
        loss = "dpo" if stage == "pairs" else "sft"
        values["gradient steps"] += len(fit(lm, data, loss=loss, options=settings, seed=seed, folder=files / stage))
        if recipe.has_weights and stage == "joint":
            after = [w.detach() for own in controls.controls_of(lm).weights.values() for w in own]
            moved = sum(float((a - b).square().sum()) for a, b in zip(after, before))
            values["distance of the controls in stage 2"] = moved**0.5
    return values


def put(lm: LanguageModel, recipe: Recipe, labels: Sequence[str], seed: int) -> None:
    """Soft prompts begin as the sentence that says the label behind tokens of the vocabulary, or at random."""
    import torch

    from optative.core.rng import stream
    from optative.generators.language.controls import add_control_loras, add_soft_prompts
    from optative.generators.language.tokens import encode_apart
    from optative.objectives.control_labels import sentence

    if recipe.control == "lora":
        add_control_loras(lm, labels, rank=RANK, alpha=ALPHA, seed=seed)
    elif recipe.has_weights:
        table, starts = lm.model.get_input_embeddings().weight.detach(), dict[str, torch.Tensor]()
        for label in labels:
            rng = stream(seed, "control", label)
            if recipe.control == "soft prompt":
                ids = encode_apart(lm.tokenizer, sentence(label))[:WIDTH]
                filling = rng.integers(0, len(table), WIDTH - len(ids)).tolist()
                starts[label] = table[[*filling, *ids]]
            else:
                size = (1 if recipe.control == "special token" else WIDTH, table.shape[1])
                starts[label] = torch.tensor(rng.normal(0, float(table.std()), size), dtype=torch.float32)
        add_soft_prompts(lm, starts)


def asked(lm: LanguageModel, recipe: Recipe, label: str, prompt: str) -> Group:
    """The prompt under a label; `""`: as it is."""
    from optative.generators.language.controls import controlled
    from optative.generators.language.packing import Group
    from optative.generators.language.tokens import encode_prompt
    from optative.objectives.control_labels import sentence

    words = f"{sentence(label)} {prompt}" if label and recipe.control == "text" else prompt
    group = Group(encode_prompt(lm, words), ())
    return controlled(lm, label, group) if label and recipe.has_weights else group


def units(lm: LanguageModel, task: Task, recipe: Recipe, stage: str) -> list[Unit]:
    """Each row under its own label, or each pair under the good one; without controls the good rows alone, or pairs."""
    from optative.generators.language.tokens import encode_completion
    from optative.objectives.control_labels import GOOD
    from optative.optimizers.units import Unit

    def unit(label: str, prompt: str, *answers: str) -> Unit:
        ids = tuple(encode_completion(lm, prompt, answer)[:LONGEST] for answer in answers)
        group = replace(asked(lm, recipe, label, prompt), completion_ids=ids)
        return Unit(prompt, group, levels=(1.0, 0.0)[: len(ids)])

    if stage == "pairs":
        return [unit(GOOD if recipe.control else "", pair.prompt, pair.chosen, pair.rejected) for pair in task.pairs]
    if not recipe.control:
        return [unit("", row.prompt, row.completion) for row in task.rows if row.label == GOOD]
    return [unit(row.label, row.prompt, row.completion) for row in task.rows]
