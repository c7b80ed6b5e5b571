"""Rewards on the length of a tiny language model's answers, after Tajwar et al. 2024 (arXiv:2404.14367, section 5).

Knows: the two rewards, what each algorithm learns from labelled answers, whom answers are drawn from. Does not know:
arms, criteria. The loop, samples, selection, losses and trainer are the shared ones.

`minimal length` pays for every token that is not written, so that its peak lies in the tail of the supervised model;
`modal length` pays for being near that model's mean length, where its mass is. Labels are the true reward, in tokens
with the end token, and so is what is measured. Offline and on-policy arms draw equally many answers to the same prompts
at the same moments and take equally many steps; the reference of a loss is the supervised model throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.packing import Group
    from optative.generators.language.sample import Completion
    from optative.optimizers.units import Unit
    from optative.runs.study import Measured

SHARE = "tiny LM, share of the range from SFT to the minimum"
REWARDS = ("minimal length", "modal length")
LOSSES: dict[str, tuple[str, dict[str, float]]] = {
    "BoN": ("sft", {}),  # the best of all answers to a prompt
    "Pref-FT": ("sft", {}),  # the better one of each two
    "DPO": ("dpo", {"beta": 0.1}),
    "IPO": ("ipo", {"beta": 0.5}),  # aims at 1 nat a token
}
ANSWERS, STEP = 4, 16  # answers to each prompt; units of a gradient step
STEPS, RATE = 4, 1e-4  # gradient steps of a round; of AdamW: 1e-3 wrote empty answers after 16 steps (seed 100)
GAP = 1.0  # pairs whose rewards differ by GAP tokens or less are not learnt from
LONGEST = 64  # most tokens of an answer
LOOK = 4  # rounds between two points of the curve
WORDS = 3  # of a text that are its prompt
SPENT = ("reward queries", "gradient steps", "units", "largest k1 at the first step")
MOVED = ("mean length", "tail index", "kl to reference", "log-ratio of the best", "log-ratio of the worst")
TOLERANCE = 1e-3  # nats an answer: the same log-probabilities computed in two ways differ by rounding


@dataclass(frozen=True)
class World:
    """A supervised model, prompts to practise on and prompts to measure on."""

    lm: LanguageModel
    prompts: Sequence[str]
    held_out: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """A prompt with its answers, and what each of them is worth, in tokens."""

    group: Group
    rewards: Sequence[float]


def cell(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """Both rewards, each from the same supervised model, which `folder` keeps for the other cells of the seed."""
    from optative.runs.study import Measured

    values: dict[str, Any] = {}
    curves = {}
    for reward in REWARDS:
        with TemporaryDirectory() as files:
            found, curve = train(options, reward, seed, world(options, seed, folder), Path(files))
        values |= {f"{name}, {reward}": value for name, value in found.items()}
        curves[f"cost in tokens, {reward}"] = curve
    return Measured(values, curves=curves)


def world(options: Mapping[str, Any], seed: int, folder: Path) -> World:
    """A model that goes on from the first words of a paragraph; prompts that it was not trained on are held out."""
    from optative.core.ids import content_hash
    from optative.core.rng import stream
    from optative.generators.language import tiny
    from optative.generators.language.kept import kept
    from optative.generators.options import Tiny

    texts = texts_of(tuple(options["corpora"]))
    texts = [texts[i] for i in stream(seed, "texts").permutation(len(texts))]
    held_out, practice = texts[: options["prompts"]], texts[options["prompts"] :]

    def make() -> LanguageModel:
        size = Tiny()
        tokenizer = tiny.train_tokenizer((prompt + rest for prompt, rest, _ in practice), size.vocabulary)
        lm = tiny.build(size, tokenizer, seed)
        documents = [tiny.document(tokenizer, rest, prompt, most=LONGEST) for prompt, rest, _ in practice]
        steps = options["pretraining"]
        tiny.pretrain(lm, documents, steps=steps, tokens_per_step=4096, learning_rate=3e-3, seed=seed)
        return lm

    name = content_hash([practice, options["pretraining"], seed])[:12]
    return World(kept(folder / name, make), [text[0] for text in practice], [text[0] for text in held_out])


@cache
def texts_of(corpora: tuple[str, ...]) -> list[tuple[str, str, str]]:
    from optative.data.corpora import corpus
    from optative.data.openings import openings

    return openings((document for name in corpora for document in corpus(name)), words=WORDS)


def train(options: Mapping[str, Any], reward: str, seed: int, world: World, folder: Path) -> tuple[dict[str, Any], Any]:
    """Practise for some rounds and measure on the held-out prompts, which are the items; and a curve."""
    import numpy as np

    from optative.evaluation.modes import tail_index
    from optative.generators.language.sample import sampled_groups
    from optative.generators.language.trained import prepare_training, starting_point
    from optative.optimizers.fit import fit
    from optative.optimizers.loop import on_policy
    from optative.optimizers.options import LOSSES as TABLE
    from optative.optimizers.preference import sums_of

    lm = world.lm
    loss, numbers = LOSSES[options["tiny"]]
    config: Any = TABLE[loss].config
    settings = config(**numbers, learning_rate=RATE, schedule="constant", warmup_ratio=0, units_per_step=STEP)
    prepare_training(lm, None, seed, keep_start=True)
    before = draw(lm, world.held_out, seed, "held out")
    cost, least = cost_of(reward, before)
    spent = dict.fromkeys(SPENT, 0.0)
    curve: tuple[list[float], list[float]] = ([], [])
    pairs: list[Unit] = []  # of the first round, the same in all arms

    def sample(number: int, prompts: Sequence[str]) -> list[list[Completion]]:
        with nullcontext() if options["on_policy"] else starting_point(lm):
            return draw(lm, prompts, seed, number)

    def label(number: int, prompts: Sequence[str], answers: list[list[Completion]]) -> list[Judged]:
        spent["reward queries"] += sum(map(len, answers))
        if options["on_policy"]:
            far = abs(k1(lm, prompts, answers))
            assert far < TOLERANCE, f"answers were not drawn from the policy that trains on them: k1 = {far:.3g}"
            spent["largest k1 at the first step"] = max(far, spent["largest k1 at the first step"])
        found = sampled_groups(lm, prompts, answers)
        return [Judged(group, [-cost(len(ids)) for ids in group.completion_ids]) for group in found]

    def select(number: int, judged: Sequence[Judged]) -> list[Unit]:
        if number == 1:
            pairs.extend(units(judged, "DPO", seed))
        found = units(judged, options["tiny"], seed)
        spent["units"] += len(found)
        return list(islice(cycle(found), STEPS * STEP))  # equally many steps from however many units

    def teach(number: int, found: Sequence[Unit]) -> None:
        if found:  # else all answers are equally good: the steps of this round have no gradient
            fit(lm, found, loss=loss, options=settings, seed=seed, folder=folder / str(number))
        spent["gradient steps"] += STEPS
        if number % LOOK == 0:
            curve[0].append(spent["gradient steps"])
            curve[1].append(mean(cost, *draw(lm, world.held_out, seed, "look", n=1)))

    asked = rounds(world.prompts, options["rounds"], options["prompts"], seed)
    on_policy(asked, sample=sample, label=label, select=select, train=teach)
    after = draw(lm, world.held_out, seed, "held out")
    moved = np.array(sums_of(lm, pairs, range(len(pairs)), settings))
    with starting_point(lm):
        divergence = k1(lm, world.held_out, after)
        moved -= np.array(sums_of(lm, pairs, range(len(pairs)), settings))
    start = mean(cost, *before)
    values = {
        SHARE: [(start - mean(cost, own)) / (start - least) for own in after],
        "mean length": [mean(float, own) for own in after],
        "tail index": tail_index([-cost(len(a.ids)) for own in before for a in own]).value,
        "kl to reference": divergence,
        "log-ratio of the best": moved[:, 0].mean(),
        "log-ratio of the worst": moved[:, 1].mean(),
        **spent,
    }
    return values, curve


def rounds(prompts: Sequence[str], count: int, each: int, seed: int) -> list[list[str]]:
    """Other prompts in each round."""
    from optative.core.rng import stream

    order = stream(seed, "rounds").permutation(len(prompts))
    assert len(order) >= count * each, "prompts would come again"
    return [[prompts[i] for i in order[at : at + each]] for at in range(0, count * each, each)]


def draw(lm: LanguageModel, prompts: Sequence[str], *key: Any, n: int = ANSWERS) -> list[list[Completion]]:
    """Answers at temperature 1. Their random numbers are those of (key, prompt), in every arm the same."""
    from optative.core.rng import seed_from
    from optative.generators.language.sample import SamplingSettings, sample

    return sample(lm, prompts, n, SamplingSettings(max_new_tokens=LONGEST), seed=seed_from(*key))


def k1(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[Sequence[Completion]]) -> float:
    """The k1 estimate of KL(who drew the answers || `lm` as it is now), nats an answer."""
    from optative.evaluation.modes import sampled_kl
    from optative.generators.language.sample import sampled_groups
    from optative.generators.language.score import summed

    now = [value for own in summed(lm, sampled_groups(lm, prompts, answers)) for value in own]
    return sampled_kl([sum(a.sampling_logps) for own in answers for a in own], now).k1.value


def cost_of(reward: str, supervised: Sequence[Sequence[Completion]]) -> tuple[Callable[[int], float], float]:
    """What an answer of so many tokens costs (the reward is its negative), and the least that one can cost."""
    if reward == "minimal length":
        return float, 1.0  # the end token alone
    mode = round(mean(float, *supervised))
    return lambda length: float(abs(length - mode)), 0.0


def mean(cost: Callable[[int], float], *answers: Sequence[Completion]) -> float:
    found = [cost(len(answer.ids)) for own in answers for answer in own]
    return sum(found) / len(found)


def units(judged: Sequence[Judged], algorithm: str, seed: int) -> list[Unit]:
    """What an algorithm learns from: best against worst, the best alone, or the better one of each two."""
    from optative.feedback.select import best_worst
    from optative.optimizers.units import Unit

    found = []
    for one in judged:
        ids, key = one.group.completion_ids, (seed, one.group.prompt_ids)
        size = 2 if algorithm == "Pref-FT" else len(ids)
        contests = [slice(at, at + size) for at in range(0, len(ids), size)]
        picked = [
            (ids[own][best], ids[own][worst])
            for own in contests
            for best, worst, gap in best_worst(one.rewards[own], [*map(len, ids[own])], 1, key)
            if gap > GAP
        ]
        if picked and algorithm in ("DPO", "IPO"):
            found.append(Unit("", replace(one.group, completion_ids=picked[0])))
        elif picked:
            good = replace(one.group, completion_ids=tuple(best for best, _ in picked))
            found.append(Unit("", good, levels=(1.0,) * len(picked), labelled=True))
    return found
