"""57. SAMI: answers learn to depend on stated principles, without labels (Fränken et al. 2024, arXiv:2404.14313).

Own code here: the iterations (who samples, who is trained, from where), what is watched, when training went too far,
and the published summaries under a real model. Shared: principles (`objectives`), squares and their trainer
(`optimizers.mutual_information`), bounds (`optimizers.losses`), small models (`generators.language.tiny`), cells
(`runs.study`). Iteration h lets pi_{h-1} answer one half of the queries under their constitutions and trains the *base*
on these answers; the halves alternate, so that no policy answers queries that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.generators.options import Tiny
from optative.systems.record import AnyCriterion, StudyOptions, System, at_least, at_most, command, higher

if TYPE_CHECKING:
    from optative.runs.study import Measured

VERSION = 1  # raised when a change of code moves the cells' numbers
BASE, SAMI, SHUFFLED, LONG = "base", "SAMI", "answers shuffled over constitutions", "SAMI, last iteration 20 x as long"
POOLED, REAL = "all seeds and iterations", "SmolLM2-135M-Instruct on published summaries"
FOLLOWING, HELD = "principle following", "principle following, held-out combinations"
BOUND, RISE = "bound on mutual information, nats", "smallest rise of the bound over an iteration, nats"
GAIN, PERPLEXITY = (
    "gain in principle following over the base",
    "perplexity under the base, over its own answers'",
)
FLAG, RHO = "flagged as trained too long", "Spearman correlation of the gains in bound and following"
MOST_PERPLEXITY, LOST = 1.3, 0.02  # beyond these an iteration that raised the bound went too far
QUERIES, TOO_LONG = 32, 20  # of a step; times as many steps


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines; of the demo of over-training: the bound rises further and the flag is up."""
    return (
        higher(FOLLOWING, SAMI, BASE, 0.12),
        at_least(RISE, SAMI, 0.0),
        at_least(RHO, POOLED, 0.7),
        higher(HELD, SAMI, BASE, 0.05),
        at_most(GAIN, SHUFFLED, 0.02),
        at_most(PERPLEXITY, SAMI, MOST_PERPLEXITY),
        higher(BOUND, LONG, SAMI, 1e-3),
        at_least(FLAG, LONG, 1.0),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="A language model of 2 million weights, pretrained on generated texts that follow their principles, then "
    "on ones that follow each with probability 0.6 (20,000 of the latter alone taught it nothing); rules in place of a "
    "judge. Training answers are greedy as published, but following and bound are measured on answers sampled at "
    "temperature 1: a model that follows with 0.6 nearly always follows greedily. "
    "Sampling and training use one plain prompt, with the principles in a new order, without a turn that shows the "
    "format. Learning rate and batch are the small model's own. Published summaries are only scored, by another model "
    "than those that wrote them, so that their figures are no bound.",
    explanation="Training answers are greedy, and greedy answers of so small a base are few: 33, 5 and 14 different "
    "sentences among 600 in seeds 0, 1 and the pilot's 99. They follow case and ending and, at chance, length and "
    "topic. Where both of the first were followed always (seeds 1 and 99) following rose by 0.13 and 0.12 as claimed; "
    "in seed 0 the ending was followed in 0.83, answers were loops of one sentence, and its likelihood was learnt in "
    "place of the principle. With answers at temperature 1 or 0.6 the bound (sums, both sides) is below zero before "
    "training, because answers differ in length, and the method stops with advice. The learning rate was chosen on "
    "seed 99 alone, and does not carry over.",
)


class Study(StudyOptions):
    model: Tiny = Field(Tiny(layers=2, hidden=128, vocabulary=1024, context=128), description="The base.")
    documents: tuple[int, int] = Field(
        (22_500, 10_000), description="Pretraining texts that follow their principles always, then weakly; each once."
    )
    queries: int = Field(600, ge=2, description="Queries without answers, half of them for each iteration in turn.")
    held_out: int = Field(150, ge=2, description="Queries on which all is measured.")
    temperature: float = Field(0.0, ge=0, description="Of the answers that are trained on; 0: greedy, as published.")
    steps: tuple[int, ...] = Field((8, 16, 24), min_length=1, description="Steps of each iteration.")
    learning_rate: float = Field(3e-4, gt=0, description="Of AdamW in the iterations.")
    posts: int = Field(40, ge=2, description="Published posts that the real model scores.")
    outputs: Path | None = Field(
        None, description="Folder with the published constitutions and responses (experiments/tldr of the repository)."
    )


# Learning rate: of 5e-5, 1e-4, 1.5e-4, 1.7e-4, 2e-4 and 3e-4 the highest that kept the perplexity of seed 99 within its
# limit. Gains in following: 0.03, 0.08, 0.12, 0.12, 0.12, 0.05; perplexity: 1.0, 1.0, 1.1, 1.6, 2.5, 5.2 times.
FULL = Study(
    seeds=(0, 1, 2),
    model=Tiny(layers=4, hidden=192, vocabulary=1024, context=128),
    documents=(40_000, 20_000),
    held_out=400,
    learning_rate=1.5e-4,
)


def run(study: Study, folder: Path) -> dict[str, Any]:
    """All arms; then, from their curves, the correlation over all seeds, and in words what went too far."""
    from optative.core.ids import content_hash
    from optative.objectives.published_summaries import read
    from optative.runs.study import Arm, Metric
    from optative.runs.study import study as run_study
    from optative.systems.mutual_information.outputs import METRICS as REAL_METRICS

    own = study.model_dump(exclude={"seeds", "outputs", "posts"})
    training = own | {"shuffle": False}
    last = (*study.steps[:-1], TOO_LONG * study.steps[-1])
    arms = {
        BASE: Arm(options=training | {"steps": ()}),
        SAMI: Arm(options=training, baseline=BASE),
        SHUFFLED: Arm(options=training | {"shuffle": True}, baseline=BASE),
        LONG: Arm(options=training | {"steps": last}, baseline=SAMI),
    }
    notes = [SYSTEM.differs]
    if study.outputs is not None:
        negatives, written = read(study.outputs)
        files = content_hash([sorted(negatives.items()), written])
        arms[REAL] = Arm(options={"posts": study.posts, "files": files}, panel="published")
    else:
        notes.append("The published summaries are left out: the option `outputs` names no folder with them.")
    metrics = {name: Metric("independent", (0.0, 1.0)) for name in (FOLLOWING, HELD)}
    metrics |= {name: Metric("independent") for name in (GAIN, PERPLEXITY, "words an answer", FLAG, RHO)}
    metrics |= {name: Metric("same_rule_held_out") for name in (BOUND, RISE, "share of queries kept", *REAL_METRICS)}
    asked = partial(
        run_study,
        folder,
        name="mutual-information",
        title="Following principles by mutual information",
        command=command(57, study, FULL),
        version=VERSION,
        seeds=study.seeds,
        metrics=metrics,
        cell=partial(cell, Path(folder), study.outputs),
        criteria=SYSTEM.hash,
    )
    found = asked(arms=arms, notes=notes)
    curves = [one["curves"] for one in found["cells"] if one["arm"] == SAMI]
    points = [[v - own[name][1][0] for own in curves for v in own[name][1][1:]] for name in (BOUND, FOLLOWING)]
    flagged = [f"{one['arm']}, seed {one['seed']}" for one in found["cells"] if one["values"].get(FLAG)]
    notes += [f"{which}: trained too long. The bound rose, and following or fluency fell." for which in flagged]
    return asked(arms=arms | {POOLED: Arm(options={"points": points}, panel="pooled")}, notes=notes)


def cell(folder: Path, outputs: Path | None, options: Mapping[str, Any], seed: int) -> Measured:
    from optative.runs.study import Measured
    from optative.systems.mutual_information.outputs import score_outputs

    if "files" in options:
        assert outputs is not None
        return score_outputs(outputs, options["posts"], seed)
    if "points" in options:
        return Measured({RHO: rank_correlation(*options["points"])})
    return align(folder, options, seed)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; 0 where one of them does not vary, because then nothing goes along with anything."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic) if len(set(first)) > 1 and len(set(second)) > 1 else 0.0


def align(folder: Path, options: Mapping[str, Any], seed: int) -> Measured:
    """The iterations of one arm, and what is seen after each."""
    import math

    from optative.core.rng import stream
    from optative.generators.language.sample import SamplingSettings
    from optative.generators.language.trained import load_trained, prepare_training
    from optative.objectives import checked_principles as world
    from optative.optimizers.constitutions import answered
    from optative.optimizers.mutual_information import MutualInformation, initial_bound, train_mutual_information
    from optative.runs.study import Measured
    from optative.systems.mutual_information.world import NEW_TOKENS, TRAINED, base, prompt, watch

    every = world.queries(options["queries"] + options["held_out"], stream(seed, "queries"))
    held_out, queries = every[: options["held_out"]], every[options["held_out"] :]
    lm, weights = base(folder / "bases", options["model"], options["documents"], queries, seed)
    prepare_training(lm, None, seed, keep_start=True)
    seen, kept = [watch(lm, held_out, seed)], []
    for iteration, steps in enumerate(options["steps"], 1):
        squares, share = answered(
            lm,
            queries[iteration % 2 :: 2],
            world.PRINCIPLES,
            prompt,
            settings=SamplingSettings(temperature=options["temperature"], max_new_tokens=NEW_TOKENS),
            key=(seed, iteration),
            only=TRAINED,
            shuffle=options["shuffle"],
        )
        kept.append(share)
        load_trained(lm, weights)  # each iteration starts from the base, not from the policy that answered
        if iteration == 1 and not options["shuffle"]:
            initial_bound(lm, squares)
        if squares:  # else the policy fell silent or always says the same, and this iteration leaves the base
            asked = MutualInformation(
                learning_rate=options["learning_rate"],
                schedule="constant",
                warmup_ratio=0.0,
                units_per_step=QUERIES,
                epochs=math.ceil(steps / math.ceil(len(squares) / QUERIES)),
                steps=steps,
            )
            with TemporaryDirectory() as place:
                train_mutual_information(
                    lm,
                    squares,
                    options=asked,
                    seed=seed,
                    key=f"iteration-{iteration}",
                    journal_path=Path(place) / "metrics.jsonl",
                    checkpoints=Path(place) / "checkpoints",
                )
        seen.append(watch(lm, held_out, seed))
    bounds_H, following_H = [s.bound for s in seen], [float(s.following.mean()) for s in seen]
    ratio_H = [s.perplexity / seen[0].perplexity for s in seen]
    values: dict[str, Any] = {
        FOLLOWING: seen[-1].following,
        HELD: seen[-1].held_combinations,
        BOUND: bounds_H[-1],
        "words an answer": seen[-1].words,
    }
    if kept:
        values |= {
            RISE: min(after - before for before, after in pairwise(bounds_H)),
            GAIN: following_H[-1] - following_H[0],
            PERPLEXITY: ratio_H[-1],
            FLAG: float(too_long(bounds_H, following_H, ratio_H)),
            "share of queries kept": sum(kept) / len(kept),
        }
    places = list(range(len(seen)))
    curves = {BOUND: (places, bounds_H), FOLLOWING: (places, following_H), PERPLEXITY: (places, ratio_H)}
    return Measured(values, curves=curves if kept else {})


def too_long(bounds_H: Sequence[float], following_H: Sequence[float], ratio_H: Sequence[float]) -> bool:
    """Is the last bound above that of the iteration that followed best before, at the price of following or fluency?"""
    best = max(range(len(following_H) - 1), key=lambda h: following_H[h])
    worse = following_H[-1] < following_H[best] - LOST or ratio_H[-1] > MOST_PERPLEXITY
    return bounds_H[-1] > bounds_H[best] and worse
