"""16. Unpacking DPO and PPO: what matters in learning from preferences (Ivison et al. 2024, arXiv:2406.09279).

The preference half: who labelled the pairs x what is learnt from them. Here: arms, criteria, the two factors.
Beside it: the small world (`world`). Shared: the task and its judge (`objectives.rated_sums`), raters
(`feedback.raters`), losses and trainer (`optimizers`), shares of variance (`evaluation.factorial`), small models
(`generators.language.tiny`), cells and pairing (`runs.study`).
Criteria that speak of policy gradients or reward models have no arms yet: they count as not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from optative.core.config import Field
from optative.generators.options import Tiny
from optative.systems.record import AnyCriterion, StudyOptions, System, at_least, command, higher
from optative.systems.status import arms_of
from optative.systems.unpacking_dpo_ppo.world import (
    ALGORITHMS,
    DATA,
    HELD,
    KL,
    SCORE,
    labelled,
    learn,
    measure,
    pairs_of,
    prompts,
    supervised,
)

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.runs.study import Measured, Metric

VERSION = 1  # raised when a change of code moves the cells' numbers
BASE, BEST_OF, ANSWERS = "supervised model", "best of 8", 8
FACTORS = ("data", "algorithm")
ETA, GAP = "eta squared, preference losses", "judge score, best minus worst level, preference losses"
ETA_ALL, GAP_ALL = "eta squared, all algorithms", "judge score, best minus worst level, all algorithms"
MATCHED, REACHED = "judge score in matched cells", "share of matched cells in which it reaches DPO"
POLICY_GRADIENTS, RM_ACCURACY = "PPO and GRPO", "accuracy of the reward model"
TINY_EFFECT = 1e-3  # where the line asks for more than nothing


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines. Only the first and the fifth have arms before there are policy gradients."""
    return (
        higher(ETA, "data", "algorithm", TINY_EFFECT),
        *(higher(ETA_ALL, "data", other, TINY_EFFECT) for other in ("algorithm", "reward model", "prompts")),
        at_least(GAP, "data", 0.08),
        at_least(REACHED, POLICY_GRADIENTS, 0.6),
        higher(MATCHED, POLICY_GRADIENTS, "DPO", TINY_EFFECT),
        higher(RM_ACCURACY, "reward model of 2M", "reward model of 0.3M", 0.03),
        higher(GAP_ALL, "data", "reward model", TINY_EFFECT),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="The preference half: four data sets x DPO, IPO, KTO, SimPO and supervised training on chosen answers. "
    "Policy gradients, reward models and sets of prompts are not run, and with them what is claimed of PPO and of "
    "larger reward models. No real pairs are used. A model of 2 million parameters on sums with an answer in an asked "
    "form, judged by rules in four aspects. The data sets have the same prompts and answers and simulated raters: each "
    "aspect rated with noise; the whole rated with the same noise; the first with 30 % of labels flipped; the first "
    "with a bonus for words. The published sets differ in prompts, writers and size too. Answers are judged at "
    "temperature 1. One learning rate for all, chosen on seed 100 with the smaller model of the quick study.",
)


class Study(StudyOptions):
    model: Tiny = Field(Tiny(layers=2, hidden=128, vocabulary=512, context=128), description="The supervised model.")
    prompts: int = Field(2800, ge=1, description="Prompts of demonstrations.")
    documents: tuple[int, int] = Field(
        (12_000, 6_000), description="Demonstrations that are good in every aspect, then weakly good ones; each once."
    )
    pairs: int = Field(384, ge=2, description="Pairs of answers in each data set.")
    epochs: int = Field(3, ge=1, description="Passes over the pairs. Paper: 3.")
    held_out: int = Field(200, ge=2, description="Prompts on which policies are measured.")
    algorithms: tuple[Literal["DPO", "IPO", "KTO", "SimPO", "supervised"], ...] = Field(
        ("DPO", "supervised"), min_length=2, description="What is learnt from each data set."
    )

    @field_validator("algorithms")
    @classmethod
    def _different(cls, algorithms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(algorithms)) < len(algorithms):
            raise ValueError("an algorithm is named twice, and is no second level of the factor")
        return algorithms


FULL = Study(
    seeds=(0, 1, 2),
    model=Tiny(layers=4, hidden=192, vocabulary=512, context=128),
    documents=(16_000, 8_000),
    pairs=512,
    held_out=400,
    algorithms=("DPO", "IPO", "KTO", "SimPO", "supervised"),
)


def run(study: Study, folder: Path) -> dict[str, Any]:
    """Every recipe, then from their cells the main effects and the factors' shares; keeps the best recipe's policy."""
    from optative.generators.language.kept import kept
    from optative.runs.study import Arm
    from optative.runs.study import study as run_study

    own = study.model_dump(mode="json", exclude={"seeds", "algorithms"})
    recipes = {f"{a} on {d}": (d, a) for d in DATA for a in study.algorithms}
    arms = {BASE: Arm(options=own | {"answers": 1}), BEST_OF: Arm(options=own | {"answers": ANSWERS}, baseline=BASE)}
    for name, (data, algorithm) in recipes.items():
        recipe = {"data": data, "rater": asdict(DATA[data]), "algorithm": ALGORITHMS[algorithm]}
        arms[name] = Arm(options=own | recipe, baseline=BASE)
    known: list[Mapping[str, Any]] = []
    asked = partial(
        run_study,
        folder,
        name="unpacking-dpo-ppo",
        title="Which data, and what is learnt from them",
        command=command(16, study, FULL),
        version=VERSION,
        seeds=study.seeds,
        metrics=_metrics(),
        cell=partial(cell, Path(folder), recipes, known),
        criteria=SYSTEM.hash,
    )
    known += asked(arms=arms)["cells"]
    keys = [one["key"] for one in known if one["arm"] in recipes]
    for place, factor in enumerate(FACTORS):
        arms[factor] = Arm(options={"cells": keys, "factor": place}, panel="factors")
        for level in dict.fromkeys(levels[place] for levels in recipes.values()):
            of_level = {"cells": keys, "factor": place, "level": level}
            arms[f"{factor}: {level}"] = Arm(options=of_level, baseline=BASE, panel="main effects")
    score = {name: _mean(known, name) for name in recipes}
    best, seed = max(score, key=lambda name: score[name]), study.seeds[0]
    made = next(one["key"] for one in known if one["arm"] == best and one["seed"] == seed)
    kept(Path(folder) / f"policy-{made}", lambda: policy(Path(folder), arms[best].options, seed)[0])
    answered = {(m, a) for m in (ETA, GAP) for a in FACTORS}
    open_ = [c for c in SYSTEM.criteria if not answered >= {(c.metric, arm) for arm in arms_of(c)}]
    notes = [
        SYSTEM.differs,
        f"The best recipe of {len(recipes)} was {best} ({100 * score[best]:.1f} points, on the prompts that it was "
        f"chosen by); its policy of seed {seed} is in policy-{made}.",
        f"{len(open_)} of {len(SYSTEM.criteria)} criteria need policy gradients or reward models and are not run.",
    ]
    return asked(arms=arms, notes=notes)


def cell(
    folder: Path,
    recipes: Mapping[str, tuple[str, str]],
    known: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    seed: int,
) -> Measured:
    """One recipe or baseline; or, of all recipes of a seed that are `known`, a factor or one of its levels."""
    from optative.runs.study import Measured

    if "factor" in options:
        return Measured(effects(recipes, known, options, seed))
    lm, values = policy(folder, options, seed)
    return Measured(values | measure(lm, prompts(options, seed)[2], seed, options.get("answers", 1)))


def policy(folder: Path, options: Mapping[str, Any], seed: int) -> tuple[LanguageModel, dict[str, float]]:
    """The model of a cell, and what was seen while it learnt; without a recipe the supervised one."""
    from optative.feedback.raters import Rater
    from optative.generators.language.trained import prepare_training

    lm = supervised(options, seed, folder / "supervised")
    if "algorithm" not in options:
        prepare_training(lm, None, seed)
        return lm, {}
    pairs = pairs_of(tuple(prompts(options, seed)[1]), seed)
    units, gap = labelled(lm, pairs, Rater(**options["rater"]), seed)
    found = learn(lm, units, options["algorithm"], options["epochs"], seed)
    return lm, found | {"judge score, chosen minus rejected": gap}


def effects(
    recipes: Mapping[str, tuple[str, str]], known: Sequence[Mapping[str, Any]], options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Of a level the judge score on each prompt, over all recipes with it; of a factor its share and its gap."""
    from optative.evaluation.factorial import eta_squared, gap, level_means

    own = {recipes[one["arm"]]: one for one in known if one["seed"] == seed and one["arm"] in recipes}
    scores = {levels: one["values"][SCORE] for levels, one in own.items()}
    place = options["factor"]
    if "level" in options:
        return {SCORE: level_means(scores, place)[options["level"]]}
    return {ETA: eta_squared(scores)[place], GAP: gap(scores, place)}


def _mean(known: Sequence[Mapping[str, Any]], arm: str) -> float:
    from statistics import fmean

    return fmean(fmean(one["values"][SCORE]) for one in known if one["arm"] == arm)


def _metrics() -> dict[str, Metric]:
    from optative.objectives.rated_sums import ASPECTS
    from optative.runs.study import Metric

    shares = (SCORE, *(f"judge: {aspect}" for aspect in ASPECTS))
    found = {name: Metric("same_rule_held_out", (0.0, 1.0)) for name in shares}
    found |= {name: Metric("independent", (0.0, 1.0)) for name in (HELD, "answers cut off")}
    found |= {name: Metric("same_rule_held_out") for name in (ETA, GAP)}
    found |= {name: Metric("independent") for name in (KL, "tokens an answer", "gradient steps")}
    moved = (f"change of log-probability, {side}" for side in ("chosen", "rejected"))
    return found | {name: Metric("seen") for name in (*moved, "judge score, chosen minus rejected")}
