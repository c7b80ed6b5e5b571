"""A tiny language model that fills slots, aligned by pairs with and without a loss on degrees.

Knows: what the model learns before preferences, what each arm trains, what of it is measured. Does not know: arms,
criteria. All arms of a seed start from the same model, take the same pairs in the same steps, and answer the same
held-out prompts greedily; the judge counts true facts and has no part in any loss but through the pairs' labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optative.systems.preference_degree import world
from optative.systems.preference_degree.measures import DEGREE, SPEARMAN, rewards_and_facts, told_apart

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.optimizers.degree import Degree, Graded
    from optative.optimizers.units import Unit
    from optative.runs.study import Measured

COVERAGE, WORDS, PLUGGED = "share of the facts, greedy answers", "words an answer", "losses that work with degrees"
RANKING, PERPLEXITY = "ranking accuracy", "perplexity of chosen answers, over the start's"
PLUGS = ("dpo", "ipo", "kto", "simpo")
STEP, NEW_TOKENS, TOKENS = 32, 72, 1024  # pairs of a step; of an answer; of a step of pretraining
RATE = 3e-3  # of pretraining


@dataclass(frozen=True)
class World:
    """A model and its pairs, as texts and as units. The labels of the held-out ones are right."""

    lm: LanguageModel
    pairs: Sequence[world.Judged]
    held_pairs: Sequence[world.Judged]
    train: Sequence[Unit]
    held_out: Sequence[Unit]


def made(options: Mapping[str, Any], seed: int, folder: Path) -> World:
    """The model, pretrained once for all cells of a seed, and pairs on prompts that it did not see."""
    from optative.core.ids import content_hash
    from optative.core.rng import stream
    from optative.generators.language import tiny
    from optative.generators.language.kept import kept
    from optative.generators.options import Tiny

    rng = stream(seed, "documents")
    cases = [world.case(rng) for _ in range(options["documents"])]
    texts = [(one.prompt, world.document(one, i, rng)) for i, one in enumerate(cases)]

    def make() -> LanguageModel:
        size = Tiny.model_validate(options["model"])
        tokenizer = tiny.train_tokenizer([before + text for before, text in texts[:4000]], size.vocabulary)
        lm = tiny.build(size, tokenizer, seed)
        documents = [tiny.document(tokenizer, text, before) for before, text in texts]
        tiny.pretrain(lm, documents, steps=options["steps"], tokens_per_step=TOKENS, learning_rate=RATE, seed=seed)
        return lm

    lm = kept(folder / content_hash([options["model"], texts, options["steps"], seed])[:12], make)
    rng = stream(seed, "pairs")
    pairs = world.judged([world.case(rng) for _ in range(options["pairs"])], options["flips"], rng)
    held = world.judged([world.case(rng) for _ in range(options["held_out"])], 0.0, rng)
    return World(lm, pairs, held, [unit(lm, one) for one in pairs], [unit(lm, one) for one in held])


def unit(lm: LanguageModel, pair: world.Judged) -> Unit:
    """Two answers, the preferred one first."""
    from optative.generators.language.tokens import encode_group
    from optative.optimizers.units import Unit

    return Unit(pair.case.prompt, encode_group(lm, pair.case.prompt, pair.answers))


def versions(lm: LanguageModel, pairs: Sequence[world.Judged], degree: Degree, way: Any, seed: int) -> list[Any]:
    """Of each pair its answers' versions (`Graded`), of the roles that are asked for, or None where it has none."""
    from optative.core.rng import stream
    from optative.feedback.grades import graded
    from optative.generators.language.tokens import encode_apart, encode_group
    from optative.optimizers.degree import ROLES, Graded

    def tokens(text: str) -> int:
        return len(encode_apart(lm.tokenizer, text))

    found: list[Graded | None] = []
    for i, pair in enumerate(pairs):
        texts, roles, grades = list[str](), list[int](), list[int]()
        for role, text in enumerate(pair.answers):
            rng = stream(seed, "versions", i, role)
            own = graded(text, degree.grades, rng, way=way, length=tokens)
            if own and degree.roles in ("both", ROLES[role]):
                texts += own
                roles += [role] * len(own)
                grades += range(len(own))
        group = encode_group(lm, pair.case.prompt, texts) if texts else None
        found.append(Graded(group, tuple(roles), tuple(grades)) if group else None)
    return found


def cell(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """One arm: train, answer, measure. `loss` None: nothing is trained; `degree` None: preferences alone."""
    from optative.generators.language.trained import prepare_training
    from optative.optimizers.degree import Degree, fit_with_degree, perplexity_of_chosen
    from optative.optimizers.fit import fit
    from optative.optimizers.preference import sums_of
    from optative.runs.study import Measured

    if "plug" in options:
        return plugged(options, seed, folder)
    made_ = made(options["world"], seed, folder)
    lm, every = made_.lm, range(len(made_.held_out))
    prepare_training(lm, None, seed, keep_start=True)
    degree = None if options["degree"] is None else Degree.model_validate(options["degree"])
    settings = asked(options, options["loss"] or "dpo", options["numbers"])
    start = sums_of(lm, made_.held_out, every, settings)
    values: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    with TemporaryDirectory() as files:
        given: dict[str, Any] = {"loss": options["loss"], "options": settings, "seed": seed, "folder": Path(files)}
        if degree:
            trained, held = (versions(lm, own, degree, options["way"], seed) for own in (made_.pairs, made_.held_pairs))
            heads, lines = fit_with_degree(lm, made_.train, trained, degree=degree, **given)
            values, curves = told_apart(lm, heads, degree, trained, held)
        elif options["loss"]:
            lines = fit(lm, strengths(made_, options["told"]), **given)
    now = sums_of(lm, made_.held_out, every, settings)
    if options["loss"]:
        curves["loss of each step"] = (list(range(1, len(lines) + 1)), [line["loss"] for line in lines])
        values[SPEARMAN] = rewards_and_facts(made_.held_pairs, start, now)
    values |= {
        RANKING: [float(own[0] > own[1]) for own in now],
        PERPLEXITY: perplexity_of_chosen(made_.held_out, now) / perplexity_of_chosen(made_.held_out, start),
    }
    answers = greedy(lm, made_)
    facts = [world.stated(text, pair.case) / len(world.SLOTS) for text, pair in zip(answers, made_.held_pairs)]
    return Measured(values | {COVERAGE: facts, WORDS: [len(text.split()) for text in answers]}, curves=curves)


def asked(options: Mapping[str, Any], loss: str, numbers: Mapping[str, Any]) -> Any:
    """The options of a loss by its name; only its own numbers differ between losses."""
    from optative.optimizers.options import LOSSES

    config: Any = LOSSES[loss].config
    return config(
        **numbers,
        learning_rate=options["rate"],
        schedule="linear",
        units_per_step=STEP,
        epochs=options["epochs"],
        token_budget=2048,
        checkpoint_every=10_000,
    )


def greedy(lm: LanguageModel, made: World) -> list[str]:
    from optative.generators.language.sample import SamplingSettings, sample

    settings = SamplingSettings(temperature=0, max_new_tokens=NEW_TOKENS)
    found = sample(lm, [pair.case.prompt for pair in made.held_pairs], 1, settings, seed=0)
    return [own[0].text for own in found]


def plugged(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """The same call with each of several losses; an item is one loss.

    It works when held-out chosen answers gained on rejected ones and the held-out versions are told apart better than
    by chance, both after a short training in which all numbers are finite.
    """
    import numpy as np

    from optative.generators.language.trained import prepare_training
    from optative.optimizers.degree import Degree, fit_with_degree
    from optative.optimizers.preference import sums_of
    from optative.runs.study import Measured

    works = []
    degree = Degree()
    for loss in options["plug"]:
        own = made(options["world"], seed, folder)
        lm, every = own.lm, range(len(own.held_out))
        prepare_training(lm, None, seed, keep_start=True)
        settings = asked(options, loss, {})
        trained, held = (versions(lm, some, degree, "rake", seed) for some in (own.pairs, own.held_pairs))
        before = np.array(sums_of(lm, own.held_out, every, settings))
        with TemporaryDirectory() as files:
            heads, lines = fit_with_degree(
                lm,
                own.train,
                trained,
                loss=loss,
                options=settings,
                degree=degree,
                seed=seed,
                folder=Path(files),
            )
        gained = np.array(sums_of(lm, own.held_out, every, settings)) - before
        accuracy = told_apart(lm, heads, degree, trained, held)[0][DEGREE].mean()
        finite = all(np.isfinite(line["loss"]) for line in lines)
        works.append(finite and (gained[:, 0] - gained[:, 1]).mean() > 0 and accuracy > 1 / degree.grades)
    return Measured({PLUGGED: works})


def strengths(made: World, told: str) -> Sequence[Unit]:
    """The pairs, with what losses on the strength axis are told of them: the true gap, or how sure it makes one."""
    import math
    from dataclasses import replace

    gaps = [abs(first - second) for first, second in (pair.counts for pair in made.pairs)]
    if told == "strength":
        return [replace(unit, strength=float(gap)) for unit, gap in zip(made.train, gaps)]
    if told == "confidence":
        return [replace(unit, confidence=1 / (1 + math.exp(-gap))) for unit, gap in zip(made.train, gaps)]
    return made.train
