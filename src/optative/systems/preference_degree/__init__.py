"""45. SPO: telling how degraded an answer is, beside the preference (Li et al. 2024, arXiv:2409.17791).

Here: arms, criteria, what is compared with what. Beside it: a language of facts with an exact judge (`world`), tiny
models that are aligned on it (`training`), what is measured of these (`measures`), real summaries under a frozen real
model (`real`).
Shared: key phrases (`objectives`), graded versions (`feedback.grades`), heads and the loss beside any loss on
preferences (`optimizers.degree`), small models (`generators.language.tiny`), cells and pairing (`runs.study`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optative.core.config import Field
from optative.core.errors import InputError, unknown
from optative.generators.options import Tiny
from optative.systems.preference_degree import measures, real, training
from optative.systems.preference_degree.measures import BEYOND, DEGREE, SPEARMAN
from optative.systems.preference_degree.training import COVERAGE, PERPLEXITY, PLUGGED
from optative.systems.record import AnyCriterion, StudyOptions, System, at_least, at_most, command, higher

if TYPE_CHECKING:
    from optative.evaluation.independence import Independence
    from optative.runs.study import Measured, Metric

VERSION = 1  # raised when a change of code moves the cells' numbers
BASE, DPO, SPO, RANDOM = "base", "DPO", "DPO + degree", "DPO + degree, random deletion"
PLUG, REAL, POOLED = "degree beside other losses", "SmolLM2-135M-Instruct on published summaries", "all seeds"
WIN, LOW = "win rate of DPO + degree over DPO", "lower end of that win rate's interval"
OVER_RANDOM = "that win rate minus the one with random deletion"
CONTENT, MOST_PERPLEXITY = 0.10, 1.2  # what the head must know beyond length; where the language is taken to suffer


@dataclass(frozen=True)
class Method:
    """What an arm trains. told: what of the true gap between two answers its loss is told, as ratings would."""

    loss: str | None = "dpo"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    degree: Mapping[str, Any] | None = None
    way: str = "rake"
    told: Literal["", "strength", "confidence"] = ""


METHODS: dict[str, Method] = {
    BASE: Method(None),
    DPO: Method(),
    SPO: Method(degree={}),
    RANDOM: Method(degree={}, way="random"),
    "DPO + degree, filler": Method(degree={}, way="filler"),
    "DPO + degree, truncation": Method(degree={}, way="truncation"),
    "DPO + degree, detached": Method(degree={"detach": True}),
    "DPO + degree, chosen only": Method(degree={"roles": "chosen"}),
    "DPO + degree, rejected only": Method(degree={"roles": "rejected"}),
    "DPO + degree, gamma 0.01": Method(degree={"gamma": 0.01}),
    "DPO + degree, gamma 1": Method(degree={"gamma": 1.0}),
    "DPO + degree, 2 grades": Method(degree={"grades": 2}),
    "DPO + degree, 6 grades": Method(degree={"grades": 6}),
    "DPO + degree, ordinal": Method(degree={"ordinal": True}),
    "DPO + degree, one head": Method(degree={"shared_head": True}),
    "DPO + degree, last token": Method(degree={"pool": "last"}),
    "margin DPO, true gaps": Method(numbers={"margin_per_strength": 0.5}, told="strength"),
    "DPO, soft labels from true gaps": Method(told="confidence"),
    "DPO, label smoothing": Method(numbers={"label_smoothing": 0.15}),
    "IPO": Method("ipo"),
}


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines of parts A, B and C. The second win-rate line and the next are of all seeds together."""
    return (
        at_least(WIN, POOLED, 0.53),
        at_least(LOW, POOLED, 0.50),
        higher(SPEARMAN, SPO, DPO, 0.05),
        at_least(DEGREE, SPO, 0.70),
        at_least(OVER_RANDOM, POOLED, 0.0),
        at_most(COVERAGE, DPO, 0.97),
        at_least(real.ACCURACY, REAL, 0.60),
        at_least(PLUGGED, PLUG, 1.0),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="A model of 2 million weights that fills slots, judged exactly by the facts that its answers state, in "
    "place of 7 billion weights on TL;DR and HH judged by GPT-4. A grammar writes the answers of pairs. Those "
    "that state fewer facts often state other values instead; without these, implicit rewards follow the number "
    "of clauses and order answers almost perfectly after DPO alone (0.93, seed 100). Three grades, half of the "
    "key phrases, gamma 0.1, the mean of the last layer's states, a head for each role, one version a step and "
    "100 steps of the heads alone are our choices; the published repository holds none. Answers from which too "
    "few phrases can be taken for three different versions are aligned only. The interval of the win rate is "
    "over the prompts of all seeds and says nothing of other seeds. Real summaries (with `--set "
    "summaries=FOLDER`) are cut to their first sentences, up to 40 words, and graded by a head alone on a "
    "frozen real model's standardised states: its top layer is not trained. The degree loss as a separate stage "
    "before is not built.",
    explanation="The heads learn content (0.89 to 0.93 against 0.50 to 0.53 from length alone; 0.97 where filler keeps "
    "the length), and the policy is none the better. In seeds 0 and 2 the base states three and two facts of four for "
    "all or nearly all prompts, and each training lifts all of them by one: greedy answers of the two arms differ for "
    "16 and 0 prompts of 300, and in seed 0 DPO alone leaves no room. In seed 1, where answers vary, 22 gain by "
    "degrees and 32 lose. Implicit rewards order answers less well with degrees in every seed; they fall with every "
    "grade in only 5 to 30 % of the answers, since a shorter answer costs fewer nats, and in 75 to 94 % where filler "
    "keeps the length. The loss that failed the plug-in test is SimPO in seed 2: six steps, -0.4 nats with a standard "
    "error of 0.3.",
)


class Study(StudyOptions):
    model: Tiny = Field(Tiny(layers=3, hidden=128, vocabulary=1024, context=160), description="The tiny model.")
    documents: int = Field(15_000, ge=100, description="Texts that the tiny model learns from, any number of facts.")
    steps: int = Field(600, ge=1, description="Steps of 1024 tokens in which it learns them.")
    pairs: int = Field(256, ge=32, description="Pairs that each arm is trained on.")
    flips: float = Field(0.15, ge=0, lt=0.5, description="Share of the labels that point the wrong way.")
    held_out: int = Field(60, ge=8, description="Prompts, with two answers each, on which all is measured.")
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    rate: float = Field(3e-4, gt=0, description="Peak learning rate on pairs, the same in all arms.")
    arms: tuple[str, ...] = Field((BASE, DPO, SPO, RANDOM), min_length=1, description="Which of the methods to train.")
    plug_pairs: int = Field(64, ge=32, description="Pairs of the short trainings with other losses.")
    summaries: Path | None = Field(
        None, description="Folder with the published summaries (experiments/tldr of system 57's repository)."
    )
    pairs_file: Path | None = Field(None, description="A file of preference pairs whose replies the head grades, too.")
    posts: int = Field(60, ge=6, description="Posts whose three summaries are graded; a third of them are held out.")
    replies: int = Field(40, ge=1, description="Pairs of the file, from its top.")


# Rate and epochs: with DPO on seed 100, a base of 0.7 million weights went from 0.38 of the facts to 0.54, and to 0.50
# with 1e-3; pairs without wrong values and 32 steps moved next to nothing.
FULL = Study(
    seeds=(0, 1, 2),
    model=Tiny(layers=4, hidden=200, vocabulary=1024, context=160),
    documents=25_000,
    steps=900,
    pairs=768,
    held_out=300,
    epochs=2,
    arms=(BASE, DPO, SPO, RANDOM, "DPO + degree, filler"),
    plug_pairs=96,
    posts=250,
    replies=200,
)


def run(study: Study, folder: Path) -> dict[str, Any]:
    """All arms; then, from their answers, the win rates over all seeds; and in words what the head knows and costs."""
    from optative.core.ids import file_hash
    from optative.runs.study import Arm
    from optative.runs.study import study as run_study

    for name in study.arms:
        if name not in METHODS:
            raise InputError(unknown("method", name, METHODS), field="arms")
    for path, there in ((study.summaries, Path.is_dir), (study.pairs_file, Path.is_file)):
        if path is not None and not there(path):
            raise InputError("no such file or folder", file=path)
    if study.pairs_file and not study.summaries:
        raise InputError("cannot act: the head learns on summaries", field="pairs_file", expected="`summaries` too")
    known = study.model_dump(mode="json")
    world = {name: known[name] for name in ("model", "documents", "steps", "pairs", "flips", "held_out")}
    common = {"world": world, "rate": study.rate, "epochs": study.epochs}
    arms = {
        name: Arm(
            options={**common, **_options(METHODS[name])},
            baseline=DPO if DPO in study.arms and name != DPO else None,
            panel="alignment",
        )
        for name in study.arms
    }
    plugs = {
        **common,
        "world": {**world, "pairs": study.plug_pairs, "held_out": min(100, study.held_out)},
        "plug": list(training.PLUGS),
    }
    arms[PLUG] = Arm(options=plugs, panel="other losses")
    notes = [SYSTEM.differs]
    if study.summaries is not None:
        files = {path.name: file_hash(path) for path in sorted(study.summaries.glob("*.json"))}
        more = file_hash(study.pairs_file) if study.pairs_file else None
        own = {"posts": study.posts, "replies": study.replies, "files": files, "pairs": more}
        arms[REAL] = Arm(options=own, panel="real summaries")
    else:
        notes.append("The real summaries are left out: the option `summaries` names no folder with them.")
    asked = partial(
        run_study,
        folder,
        name="preference-degree",
        title="Telling degrees of a preference beside the preference",
        command=command(45, study, FULL),
        version=VERSION,
        seeds=study.seeds,
        metrics=_metrics(),
        cell=partial(cell, Path(folder), study.summaries, study.pairs_file),
        criteria=SYSTEM.hash,
    )
    found = asked(arms=arms, notes=notes)
    notes += remarks(found["cells"])
    if not {DPO, SPO, RANDOM} <= set(study.arms):
        return asked(arms=arms, notes=notes)
    wins = {arm: over(found["cells"], arm, DPO) for arm in (SPO, RANDOM)}
    return asked(arms=arms | {POOLED: Arm(options={"wins": wins}, panel="pooled")}, notes=notes)


def cell(folder: Path, summaries: Path | None, pairs: Path | None, options: Mapping[str, Any], seed: int) -> Measured:
    from optative.core import stats
    from optative.runs.study import Measured

    if "files" in options:
        assert summaries is not None
        return real.cell(options, seed, folder / "shared", (summaries, pairs))
    if "wins" in options:
        own, other = options["wins"][SPO], options["wins"][RANDOM]
        low = stats.mean(own, bounds=(0.0, 1.0)).interval.low
        gap = sum(own) / len(own) - sum(other) / len(other)
        return Measured({WIN: own, LOW: low or 0.0, OVER_RANDOM: gap})
    return training.cell(options, seed, folder / "models")


def over(cells: Sequence[Mapping[str, Any]], arm: str, other: str) -> list[float]:
    """For each prompt of each seed: 1 where the greedy answer of `arm` states more facts, 0.5 as many, 0 fewer."""
    from optative.evaluation.pairs import half_ties

    at = {(one["arm"], one["seed"]): one["values"][COVERAGE] for one in cells if COVERAGE in one["values"]}
    seeds = sorted(seed for name, seed in at if name == arm)
    gaps = [a - b for seed in seeds for a, b in zip(at[arm, seed], at[other, seed], strict=True)]
    return [float(value) for value in half_ties(gaps)]


def remarks(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the traps of the method say of these cells: content or length, and language bent to the classifier."""
    alone = {one["seed"]: one["values"][PERPLEXITY] for one in cells if one["arm"] == DPO}
    found = []
    for one in cells:
        where, values = f"{one['arm']}, seed {one['seed']}", one["values"]
        name = BEYOND if BEYOND in values else real.BEYOND
        if values.get(name, CONTENT) < CONTENT:
            found.append(f"{where}: the head knows {values[name]:.2f} beyond length alone: no claim on content.")
        if one["seed"] in alone and values.get(PERPLEXITY, 0) > MOST_PERPLEXITY * alone[one["seed"]]:
            found.append(f"{where}: chosen answers are over {MOST_PERPLEXITY} times as perplexing as after DPO alone.")
    return found


def _options(method: Method) -> dict[str, Any]:
    own = {"loss": method.loss, "numbers": dict(method.numbers), "degree": None, "way": method.way}
    return own | {"told": method.told, "degree": None if method.degree is None else dict(method.degree)}


def _metrics() -> dict[str, Metric]:
    from optative.runs.study import Metric

    held: Independence = "same_rule_held_out"
    share = (0.0, 1.0)
    found = {name: Metric(held, share) for name in (COVERAGE, DEGREE, measures.LENGTH_ALONE, training.RANKING)}
    found |= {name: Metric(held, share) for name in (measures.FALL, PLUGGED, WIN, real.ACCURACY, real.ALONE)}
    found |= {name: Metric(held) for name in (SPEARMAN, BEYOND, measures.ORDER, PERPLEXITY, training.WORDS)}
    found |= {name: Metric(held) for name in (measures.LEFT_OUT, LOW, OVER_RANDOM, real.BEYOND, real.ORDER)}
    return found | {real.REPLIES: Metric("independent", share)}
