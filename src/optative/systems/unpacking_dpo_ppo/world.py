"""System 16's small world: a supervised model, pairs that four kinds of raters label, and how a policy is measured.

Knows: the task's prompts, who writes and who rates, one training, what is measured of a policy. Does not know: arms,
factors, criteria. Every training of a seed has the same supervised model, prompts, pairs of answers, number of steps
and limit of length; only who labelled the pairs and what is learnt from them differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optative.feedback.raters import Rater

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.sample import Completion
    from optative.optimizers.units import Unit

SCORE, KL = "judge score", "KL to the supervised model, nats an answer"
HELD = "answers that name the asker, which nobody rates"
WEAKLY = 0.6  # share of aspects that are good in what the supervised model learns, and in the answers of pairs
NOISE = 0.3  # of one rating: who is better in one of four aspects loses 28 % of overall ratings, 12 % of mean ones
DATA = {
    "per-aspect mean": Rater(noise=NOISE),
    "overall score": Rater(noise=NOISE, overall=True),
    "30% flipped": Rater(noise=NOISE, flipped=0.3),
    "length-biased": Rater(noise=NOISE, per_word=0.1),  # saying it again is worth more than the aspect that it costs
}
# Of 1e-4, 3e-4 and 1e-3 the largest at which every algorithm gained from pairs of the per-aspect raters, on seed 100:
# at 3e-4 chosen answers of all losses on pairs became 8 to 14 nats less likely, and KTO lost.
RATE = 1e-4
ALGORITHMS: dict[str, tuple[str, dict[str, float]]] = {
    "DPO": ("dpo", {"beta": 0.1, "learning_rate": RATE}),
    "IPO": ("ipo", {"beta": 0.5, "learning_rate": RATE}),  # aims at 1 nat a token
    "KTO": ("kto", {"beta": 0.1, "learning_rate": RATE}),
    "SimPO": ("simpo", {"beta": 2.0, "gamma": 1.0, "learning_rate": RATE}),
    "supervised": ("sft", {"learning_rate": RATE}),  # on the chosen answers
}
STEP, LONGEST, TEMPERATURE = 32, 32, 1.0  # units of a step; most tokens of an answer; of all answers
WATCHED = 200  # of the pairs that are trained on
TOKENS = 1024  # of a step of supervised training
TOLERANCE = 1e-3  # nats an answer


@dataclass(frozen=True)
class Pair:
    """Two answers, and what is true of each: `good` in the rated aspects."""

    prompt: str
    answers: tuple[str, str]
    good: tuple[tuple[bool, ...], tuple[bool, ...]]


def prompts(options: Mapping[str, Any], seed: int) -> tuple[list[str], list[str], list[str]]:
    """Prompts for demonstrations, for pairs and to measure on; no prompt is in two of them."""
    from optative.core.rng import stream
    from optative.objectives import rated_sums

    taken = options["pairs"] + options["held_out"]
    every = rated_sums.prompts(taken + options["prompts"], stream(seed, "prompts"))
    return every[taken:], every[: options["pairs"]], every[options["pairs"] : taken]


def supervised(options: Mapping[str, Any], seed: int, folder: Path) -> LanguageModel:
    """The supervised model of a seed, made once for all arms; `folder` keeps it.

    Its first documents are good in every aspect, the later ones weakly: so it knows what is asked and half does it.
    """
    import math

    from optative.core.ids import content_hash
    from optative.core.rng import stream
    from optative.generators.language import tiny
    from optative.generators.language.kept import kept
    from optative.generators.options import Tiny
    from optative.objectives import rated_sums

    own, rng = prompts(options, seed)[0], stream(seed, "demonstrations")
    texts = [
        [
            (prompt, rated_sums.answer(prompt, rated_sums.weakly_good(share, rng), rng))
            for prompt in (own[i] for i in rng.integers(0, len(own), count))
        ]
        for share, count in zip((1.0, WEAKLY), options["documents"])
    ]

    def make() -> LanguageModel:
        tokenizer = tiny.train_tokenizer((a + b for a, b in texts[-1][:4000]), options["model"]["vocabulary"])
        lm = tiny.build(Tiny.model_validate(options["model"]), tokenizer, seed)
        stages = []
        for part in texts:
            groups = [tiny.document(tokenizer, text, prompt) for prompt, text in part]
            stages.append(tiny.Stage(groups, math.ceil(sum(group.num_tokens for group in groups) / TOKENS)))
        tiny.pretrain_stages(lm, stages, tokens_per_step=TOKENS, learning_rate=3e-3, seed=seed)
        return lm

    return kept(folder / content_hash([options["model"], texts, seed])[:12], make)


@cache
def pairs_of(asked: Sequence[str], seed: int) -> list[Pair]:
    """Two different answers to each prompt, of the writers that the supervised model learnt from."""
    from optative.core.rng import stream
    from optative.objectives import rated_sums

    rng, found = stream(seed, "pairs"), []
    for prompt in asked:
        first = second = rated_sums.answer(prompt, rated_sums.weakly_good(WEAKLY, rng), rng)
        while second == first:
            second = rated_sums.answer(prompt, rated_sums.weakly_good(WEAKLY, rng), rng)
        found.append(Pair(prompt, (first, second), (rated_sums.judge(prompt, first), rated_sums.judge(prompt, second))))
    return found


def labelled(lm: LanguageModel, pairs: Sequence[Pair], rater: Rater, seed: int) -> tuple[list[Unit], float]:
    """The pairs as a rater orders them, and by how much the judge finds the chosen answers better.

    Raters of aspects make the same errors in all data sets, so that these differ only in what is added.
    """
    import numpy as np

    from optative.core.rng import stream
    from optative.feedback.raters import check_direction, prefer, rate
    from optative.generators.language.tokens import encode_group
    from optative.optimizers.units import Unit

    good_NA = np.array([own for pair in pairs for own in pair.good])
    words_N = np.array([len(text.split()) for pair in pairs for text in pair.answers])
    ratings_P2 = rate(rater, good_NA, words_N, stream(seed, "ratings")).reshape(-1, 2)
    chosen_P = prefer(rater, ratings_P2, stream(seed, "flips"))
    check_direction(ratings_P2, chosen_P)
    truth_P2, places = good_NA.mean(axis=1).reshape(-1, 2), np.arange(len(pairs))
    units = [
        Unit(str(i), encode_group(lm, pair.prompt, (pair.answers[c], pair.answers[1 - c])))
        for i, (pair, c) in enumerate(zip(pairs, chosen_P))
    ]
    return units, float((truth_P2[places, chosen_P] - truth_P2[places, 1 - chosen_P]).mean())


def learn(lm: LanguageModel, units: Sequence[Unit], algorithm: Any, epochs: int, seed: int) -> dict[str, float]:
    """Train all weights of `lm`; how log-probabilities of pairs moved that were trained on, in nats an answer."""
    import numpy as np

    from optative.generators.language.trained import prepare_training, starting_point
    from optative.optimizers.fit import fit
    from optative.optimizers.options import LOSSES
    from optative.optimizers.preference import sums_of

    loss, numbers = algorithm
    config: Any = LOSSES[loss].config
    settings = config(**numbers, schedule="linear", units_per_step=STEP, epochs=epochs, checkpoint_every=1000)
    prepare_training(lm, None, seed, keep_start=True)
    with TemporaryDirectory() as files:
        steps = fit(lm, units, loss=loss, options=settings, seed=seed, folder=Path(files))
    watched = range(min(WATCHED, len(units)))
    now = np.array(sums_of(lm, units, watched, settings))
    with starting_point(lm):
        moved = now - np.array(sums_of(lm, units, watched, settings))
    return {
        "gradient steps": len(steps),
        "change of log-probability, chosen": float(moved[:, 0].mean()),
        "change of log-probability, rejected": float(moved[:, 1].mean()),
    }


def measure(lm: LanguageModel, asked: Sequence[str], seed: int, n: int = 1) -> dict[str, Any]:
    """What is true of one answer to each prompt; of `n`, of the one that the per-aspect raters like best.

    Answers are drawn at temperature 1, where their log-probabilities are the policy's own, as a KL estimate needs it.
    """
    import numpy as np

    from optative.core.rng import seed_from, stream
    from optative.evaluation.modes import sampled_kl
    from optative.feedback.raters import rate
    from optative.generators.language.sample import SamplingSettings, sample, sampled_groups
    from optative.generators.language.score import summed
    from optative.generators.language.trained import starting_point
    from optative.objectives import rated_sums

    settings = SamplingSettings(temperature=TEMPERATURE, max_new_tokens=LONGEST)
    drawn = sample(lm, asked, n, settings, seed=seed_from(seed, "measured"))
    check_policy(drawn)
    good_PKA = np.array([[rated_sums.judge(p, answer.text) for answer in own] for p, own in zip(asked, drawn)])
    words_PK = np.array([[len(answer.text.split()) for answer in own] for own in drawn])
    good_NA = good_PKA.reshape(-1, len(rated_sums.ASPECTS))
    ratings_N = rate(DATA["per-aspect mean"], good_NA, words_PK.ravel(), stream(seed, "best of"))
    best_P = ratings_N.reshape(words_PK.shape).argmax(axis=1)
    answers = [own[best] for own, best in zip(drawn, best_P)]
    good_PA = good_PKA[np.arange(len(asked)), best_P]
    values: dict[str, Any] = {SCORE: good_PA.mean(axis=1)}
    values |= {f"judge: {aspect}": good_PA[:, i] for i, aspect in enumerate(rated_sums.ASPECTS)}
    values[HELD] = [rated_sums.names_the_asker(p, answer.text) for p, answer in zip(asked, answers)]
    values["answers cut off"] = [answer.finish_reason == "length" for answer in answers]
    values["tokens an answer"] = [len(answer.ids) for answer in answers]
    if n == 1:  # else the answers are not the policy's
        with starting_point(lm):
            before = [own[0] for own in summed(lm, sampled_groups(lm, asked, drawn))]
        values[KL] = sampled_kl([sum(answer.sampling_logps) for answer in answers], before).k1.value
    return values


def check_policy(drawn: Sequence[Sequence[Completion]]) -> None:
    """Answers drawn at another temperature or from a cut distribution say nothing about a KL: k1 can go below 0."""
    far = max(abs(sum(answer.logps) - sum(answer.sampling_logps)) for own in drawn for answer in own)
    assert far < TOLERANCE, f"answers were not drawn from the policy itself: {far:.3g} nats apart"
