"""51. Preference training does not teach rankings: what it can turn and what not (Chen et al. 2024, arXiv:2405.19534).

Here: arms, criteria, which cell is which. Beside it: identities that need no model (`identities`), a real
model on a user's pairs (`real`), tiny models (`worlds`) that are trained (`training`).
Shared: rankings and bounds (`evaluation.pairs`), curves of pairs (`evaluation.pair_curves`), losses and trainer
(`optimizers`), small models (`generators.language.tiny`), an exact judge (`objectives.word_runs`), cells and pairing
(`runs.study`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.core.errors import InputError
from optative.systems.preference_rankings import real, training, worlds
from optative.systems.preference_rankings.training import RANKING, WINS
from optative.systems.record import AnyCriterion, StudyOptions, System, at_least, at_most, command, lower

if TYPE_CHECKING:
    from optative.runs.study import Measured, Metric

VERSION = 2  # raised when a change of code moves the cells' numbers
IDENTITIES, REAL, TINY = "identities", "SmolLM2-135M-Instruct on HH pairs", "tiny LM with DPO"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines of parts A, B and C; B draws nothing, so that one seed says all."""
    return (
        at_least("pairs on which the theorem holds", IDENTITIES, 1.0),
        at_most("largest error of the idealised margin, nats", IDENTITIES, 1e-3),
        at_least("ranking accuracy per token", REAL, 0.40, 1),
        at_most("ranking accuracy per token", REAL, 0.62, 1),
        at_most("largest difference to scoring token by token, nats", REAL, 1e-3, 1),
        at_most("largest difference between two calls, nats", REAL, 0.0, 1),
        at_most("flip rate at the lowest loss", TINY, 0.25),
        at_least("flip rate of the easiest quarter over the hardest", TINY, 3.0),
        at_least("reward accuracy minus ranking accuracy", TINY, 0.10),
        at_least("AUC of the required loss on training pairs", TINY, 0.95),
        at_most("Spearman correlation of gamma and ranking accuracy", TINY, -0.8),
        lower("step of the peak", WINS, RANKING, 1),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="A model of 3 million parameters in place of 124 million to 7 billion, AdamW in place of RMSProp, one "
    "training of each kind. Answers are cut to 64 tokens, prompts to 96. Vote shares are taken to be 0.75 everywhere. "
    "With a file of one's own (`--set pairs=FILE`; the full study is meant for HH-RLHF harmless, its test part) the "
    "real model ranks its pairs, and the tiny one learns its chosen answers and then its pairs. Without, no real model "
    "is measured, and the pairs are docstrings' continuations that the tiny model wrote itself, ordered by an exact "
    "judge: on-policy pairs of equal length, which are easier to turn than answers that others wrote and people "
    "ordered. The win rate is judged on those in either case.",
    explanation="All that the theorem says held, and so did its consequence, that few and mostly the easy pairs turn. "
    "Reward minus ranking accuracy: it grows with steps (0.18 where the held-out loss was lowest at step 28, 0.04 and "
    "0.05 at steps 14 and 7), and 1,500 pairs of people teach a model of 3 million parameters so little beyond "
    "themselves that this loss rises early. Gamma: accuracies of gamma 0 to 1 differ by a pair or two of 300, and that "
    "of gamma 2 is the lowest in each seed; a rank correlation of four such numbers turns on single pairs. Win rate: "
    "it rises to about 0.7 by step 100 and falls to 0.42 in each seed, as claimed; but ranking accuracy on 200 "
    "held-out pairs of equal length stays between 0.49 and 0.54 throughout, so that the place of its peak is chance.",
)


class Study(StudyOptions):
    random_pairs: int = Field(10_000, ge=1, description="Random pairs for the theorem.")
    problems: int = Field(50, ge=1, description="Two-answer problems for each beta.")
    pairs: Path | None = Field(None, description="A file of preference pairs for the models; none: made-up pairs.")
    real_pairs: int = Field(40, ge=1, description="Pairs of the file, from its top, that the real model ranks.")
    slow_pairs: int = Field(2, ge=1, description="Of these, pairs that are scored once more token by token.")
    documents: int = Field(3000, ge=2, description="Docstrings; half of them to learn, half to be continued.")
    train_pairs: int = Field(256, ge=4, description="Pairs that the tiny model is trained on.")
    held_out: int = Field(64, ge=4, description="Pairs, with prompts of their own, that choose the step.")
    steps: int = Field(60, ge=1, description="Steps in which the tiny model learns docstrings.")
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    rate: float = Field(1e-4, gt=0, description="Learning rate on pairs.")
    long_epochs: int = Field(4, ge=1, description="Passes over the pairs while the win rate is followed.")
    measurements: int = Field(4, ge=1, description="About how often pairs are measured.")
    looks: int = Field(8, ge=1, description="About how often the win rate is.")


FULL = Study(
    seeds=(0, 1, 2),
    real_pairs=300,
    slow_pairs=8,
    documents=8000,
    train_pairs=1500,
    held_out=200,
    steps=300,
    epochs=1,
    long_epochs=12,
    measurements=6,
    looks=24,
)


def run(study: Study, folder: Path) -> dict[str, Any]:
    """The identities, the real model on pairs of a file, flips in a tiny model, and its win rate along a training."""
    from optative.core.ids import file_hash
    from optative.runs.study import Arm
    from optative.runs.study import study as run_study

    if study.pairs is not None and not study.pairs.is_file():
        raise InputError("no such file", file=study.pairs, field="pairs")
    known = study.model_dump(mode="json", exclude={"seeds", "pairs"})

    def options(part: str, *names: str, **more: Any) -> dict[str, Any]:
        return {"part": part, **{name: known[name] for name in names}, **more}

    file = None if study.pairs is None else file_hash(study.pairs)
    pairs = ("train_pairs", "held_out", "rate")
    arms = {IDENTITIES: Arm(options=options("identities", "random_pairs", "problems"))}
    if file is not None:
        arms[REAL] = Arm(options=options("real", "real_pairs", "slow_pairs", file=file), panel="the real model")
    source = options("flips", "documents", "steps") if file is None else options("flips", file=file)
    arms[TINY] = Arm(options=source | options("flips", *pairs, "epochs", "measurements"), panel="flips")
    followed = {"epochs": study.long_epochs, "measurements": study.looks}
    for name in (WINS, RANKING):
        own = options("path", "documents", "steps", *pairs, curve=name, **followed)
        arms[name] = Arm(options=own, panel="win rate and ranking", baseline=RANKING if name == WINS else None)
    return run_study(
        folder,
        name="preference-rankings",
        title="What preference training can turn round",
        command=command(51, study, FULL),
        version=VERSION,
        arms=arms,
        seeds=study.seeds,
        metrics=_metrics(),
        cell=partial(cell, study.pairs, folder),
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs, *(() if file else ("No file of pairs was given: the real model is left out.",))),
    )


def cell(file: Path | None, folder: Path, options: Mapping[str, Any], seed: int) -> Measured:
    """One cell. Scores of the real model are those of every seed, and two arms read the same path: both are kept."""
    from optative.core.events import default_events
    from optative.runs.environment import moving_facts
    from optative.runs.stages import Stages
    from optative.systems.preference_rankings.identities import identities

    part = options["part"]
    if part == "identities":
        return identities(options, seed)
    if part == "flips":
        world = worlds.from_texts(options, seed) if file is None else worlds.from_file(options, seed, file)
        return training.flips(options, seed, world)
    stages = Stages(folder / "shared", moving_facts("float32", "cpu"), default_events())
    if part == "real":
        assert file is not None
        return real.figures(stages.value(stages.key("scores", VERSION, options), lambda: real.scores(options, file)))
    own = {name: value for name, value in options.items() if name != "curve"}
    path = stages.value(stages.key("path", VERSION, [own, seed]), lambda: training.path(options, seed))
    return training.peak(path, options["curve"])


def _metrics() -> dict[str, Metric]:
    from optative.runs.study import Metric

    found = {"pairs on which the theorem holds": Metric("independent", (0.0, 1.0))}
    found |= {name: Metric("independent", (0.0, 1.0)) for name in real.SHARES}
    found |= {name: Metric("independent") for name in (*real.NUMBERS, "largest error of the idealised margin, nats")}
    found |= {training.SPEARMAN: Metric("seen"), training.LOWEST: Metric("same_rule_held_out")}
    for name, bounds in training.OF_PAIRS.items():
        found.setdefault(name, Metric("seen", bounds))
        found[f"{training.HELD_OUT}: {name}"] = Metric("same_rule_held_out", bounds)
    return found | {name: Metric("same_rule_held_out") for name in training.OF_PATH}
