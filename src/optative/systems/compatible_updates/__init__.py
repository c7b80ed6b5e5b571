"""53. Compatible updates: a new model that keeps what the old one could (MUSCLE; Echterhoff et al., arXiv:2407.09435).

Own code here: the arms and what they are compared on; what is updated is in `language` (parts A and B) and
`digits` (part C). Shared: the loss and its trainer (`optimizers.distillation`), flips (`evaluation.flips`),
which option is taken (`evaluation.choices`), cells and pairing (`runs.study`). An update is compared with `M_v1`, the
old model, item by item: NFR is the share of items that `M_v1` had right and the update has wrong. It can be lowered by
being `M_v1`, so that PFR and accuracy stand beside it, and so does an arm that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.record import AnyCriterion, StudyOptions, System, at_least, at_most, command, lower

if TYPE_CHECKING:
    import numpy as np

    from optative.optimizers.losses.distillation import Align
    from optative.runs.study import Measured

VERSION = 1  # raised when a change of code moves the cells' numbers
DIGITS, CHOICES, TEXTS, REAL = "digits", "choices", "texts", "choices of a real model"
OLD, NEW, LONGER, MUSCLE = "M_v1", "M_v2", "longer M_v2", "MUSCLE"
RATIO, UPPER, ITSELF = "NFR over M_v2's", "upper end of NFR minus M_v2's", "NFR against itself"
REAL_RATE = 5e-4  # of a real model's adapters
GAIN, GAIN_S, P = "accuracy minus M_v2's", "similarity minus M_v2's", "p of NFR's change"


@dataclass(frozen=True)
class Method:
    """What M_v2 is trained on further. Without `align` the new data alone."""

    align: Align | None
    nll_weight: float = 0.0


METHODS: dict[str, Method] = {
    LONGER: Method(None),
    "distilling M_v1": Method("always"),
    MUSCLE: Method("student_wrong"),
    "MUSCLE + CE": Method("student_wrong", 1.0),
    "towards M_v1 where it is right": Method("old_right"),
    "towards M_v1 where likelier, a token + CE": Method("likelier_token", 1.0),
}


def arm(part: str, method: str) -> str:
    return f"{part}: {method}"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines of parts A (choices), B (texts) and C (digits)."""
    return (
        at_most(RATIO, arm(CHOICES, MUSCLE), 0.85),
        at_most(UPPER, arm(CHOICES, MUSCLE), 0.0),
        at_least(GAIN, arm(CHOICES, MUSCLE), -0.005),
        lower("NFR", arm(CHOICES, MUSCLE), arm(CHOICES, LONGER), 1e-9),
        lower("NFR_mc", arm(CHOICES, MUSCLE), arm(CHOICES, NEW), 1e-9),
        at_most(RATIO, arm(TEXTS, MUSCLE), 0.90),
        at_least(GAIN_S, arm(TEXTS, MUSCLE), 0.0),
        at_most(RATIO, arm(DIGITS, MUSCLE), 0.85),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="Language models of 2 and 3 million weights that were pretrained for minutes on the documentation of "
    "installed packages, in place of Llama, Vicuna and Phi; questions made of such texts, in place of HellaSwag and "
    "PIQA; dates and numbers with a character F-score, in place of SAMSum with ROUGE-1. A completion's loss is the "
    "mean over its tokens. A real model before and after it read some of the texts: one update, on 300 questions, the "
    "same in each seed; its arms came after the others were recorded, and no criterion rests on them. Digits: an item "
    "is one token; several updates are pooled in a seed, because one has too few flips.",
    explanation="Digits, where the new model is right in 0.88: MUSCLE breaks fewer old successes at equal accuracy, as "
    "claimed. Choices: both models are little better than chance (0.32, chance 0.25), the student is wrong on most "
    "tokens, the mask hands most of the loss to the old model, and the update becomes like it: NFR falls by 4 to "
    "28 %, and with it PFR and accuracy. Texts: M_v2 is far from trained out, and the weaker old model teaches worse "
    "than data do; with cross-entropy beside it NFR falls by 41 to 56 %, and by more when M_v2 is just trained longer. "
    "The real pair differs in 6 answers of 300, so that there is next to nothing to mend: 2 old successes broken by "
    "M_v2, 1 after MUSCLE, 14 when M_v2 is trained as long.",
)


class Study(StudyOptions):
    corpora: tuple[str, ...] = Field(("numpy-docstrings",), description="Texts of the bases and of the questions.")
    pretraining: tuple[int, int] = Field((20, 30), description="Steps of 4096 tokens of the old and of the new base.")
    train: int = Field(300, ge=16, description="Examples of each task that the adapters learn from.")
    test: int = Field(200, ge=16, description="Items of each task that are measured.")
    epochs: int = Field(3, ge=1, description="Passes of an adapter over its examples, and of each further training.")
    adapter_rate: float = Field(2e-3, gt=0, description="Learning rate of the adapters.")
    dead_zone: float = Field(0.02, ge=0, description="Differences of similarity up to this are no flip.")
    model: str | None = Field(None, description="A real model, before and after reading some of the texts: adds arms.")
    reading: int = Field(10, ge=1, description="Steps of 4096 tokens that it reads.")
    questions: tuple[int, int] = Field((300, 300), description="What it learns from, and what it is measured on.")
    updates: int = Field(4, ge=1, description="Digits: updates in a seed, each with its own split and networks.")
    units: tuple[int, int] = Field((8, 12), description="Digits: hidden units of the old and of the new network.")
    steps: int = Field(300, ge=1, description="Digits: full-batch steps of each network, and of each further training.")
    learning_rate: float = Field(0.01, gt=0, description="Digits: of Adam.")


FULL = Study(
    seeds=(0, 1, 2),
    corpora=("python-docstrings", "numpy-docstrings", "scipy-docstrings"),
    pretraining=(440, 600),
    train=3000,
    test=1500,
    model="smollm2-135m-instruct",
    updates=30,
)
OF_DIGITS = ("updates", "units", "steps", "learning_rate")


def run(study: Study, folder: Path) -> dict[str, Any]:
    from optative.runs.study import Arm, Metric
    from optative.runs.study import study as run_study

    asked = study.model_dump(mode="json", exclude={"seeds"})
    tiny = {name: asked[name] for name in ("corpora", "pretraining", "train", "test", "epochs", "dead_zone")}
    tiny |= {"learning_rate": study.adapter_rate, "model": None}
    own: dict[str, dict[str, Any]] = {
        DIGITS: {name: asked[name] for name in OF_DIGITS},
        CHOICES: {"part": CHOICES, **tiny},
        TEXTS: {"part": TEXTS, **tiny},
    }
    methods = dict.fromkeys(own, (OLD, NEW, *METHODS))
    if study.model is not None:
        train, test = study.questions
        real = {"model": study.model, "pretraining": [0, study.reading], "train": train, "test": test}
        own[REAL] = own[CHOICES] | real | {"learning_rate": REAL_RATE}
        methods[REAL] = (OLD, NEW, LONGER, MUSCLE)
    arms = {
        arm(part, method): Arm(
            options={"method": method, **own[part]}, baseline=None if method == NEW else arm(part, NEW), panel=part
        )
        for part in own
        for method in methods[part]
    }
    shares = ("accuracy", "NFR", "PFR", "NFR_mc", "backward trust", "similarity")
    metrics = {name: Metric("same_rule_held_out", (0.0, 1.0)) for name in shares}
    metrics |= {name: Metric("same_rule_held_out") for name in (RATIO, UPPER, GAIN, GAIN_S, ITSELF, P)}
    return run_study(
        folder,
        name="muscle-compatibility",
        title="Updates that keep what the old model could",
        command=command(53, study, FULL),
        version=VERSION,
        arms=arms,
        seeds=study.seeds,
        metrics=metrics,
        cell=partial(cell, folder=folder / "models"),
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def cell(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """One cell. Those of a real model are the same in every seed, and kept."""
    from optative.core.events import default_events
    from optative.runs.environment import moving_facts
    from optative.runs.stages import Stages
    from optative.runs.study import Measured
    from optative.systems.compatible_updates import digits, language

    if "part" not in options:
        return digits.digits(options, seed)
    if options["model"] is None:
        return language.cell(options, seed, folder)

    def plain() -> dict[str, Any]:
        import numpy as np

        found = language.cell(options, 0, folder)
        return {"values": {n: np.asarray(v).tolist() for n, v in found.values.items()}, "clusters": found.clusters}

    stages = Stages(folder / "shared", moving_facts("float32", "cpu"), default_events())
    return Measured(**stages.value(stages.key("real", VERSION, options), plain))


def compared(
    old_N: Sequence[int] | np.ndarray,
    new_N: Sequence[int] | np.ndarray,
    own_N: Sequence[int] | np.ndarray,
    again_N: Sequence[int] | np.ndarray,
    truth_N: Sequence[int] | np.ndarray,
    clusters: Sequence[Any],
) -> Measured:
    """An update's choices against those of M_v1 (`old`), beside those of M_v2 (`new`) and its own of another time."""
    import numpy as np

    from optative.evaluation.flips import anatomy, change_of_negative_flips
    from optative.runs.study import Measured

    old_N, new_N, own_N, again_N, truth_N = map(np.asarray, (old_N, new_N, own_N, again_N, truth_N))
    was, now, is_ = (choices_N == truth_N for choices_N in (old_N, new_N, own_N))
    found = anatomy(was, is_, same=old_N == own_N, clusters=clusters)
    change = change_of_negative_flips(was, now, is_, clusters=clusters)
    items = {"accuracy": is_, "NFR": was & ~is_, "PFR": ~was & is_, "NFR_mc": ~is_ & (old_N != own_N)}
    assert all(abs(items[name].mean() - found[name.lower()]["value"]) < 1e-9 for name in ("NFR", "PFR", "NFR_mc"))
    values: dict[str, Any] = {
        **items,
        "backward trust": found["backward_trust"]["value"],
        UPPER: change["interval"][1],
        GAIN: change["accuracy_difference"],
        P: change["p"],
        ITSELF: (is_ & (again_N != truth_N)).mean(),
    }
    if change["relative"] is not None:  # else M_v2 lost nothing, and there is nothing to lower
        values[RATIO] = 1 + change["relative"]
    return Measured(values, dict.fromkeys(items, clusters))


def compared_texts(
    old_N: np.ndarray, new_N: np.ndarray, own_N: np.ndarray, again_N: np.ndarray, dead_zone: float
) -> Measured:
    """The same of similarities to the truth: a fall or a rise is one by more than the dead zone."""
    from optative.evaluation.flips import generation_flips
    from optative.runs.study import Measured

    found, beside, itself = (
        generation_flips(a.tolist(), b.tolist(), dead_zone=dead_zone)
        for a, b in ((old_N, own_N), (old_N, new_N), (own_N, again_N))
    )
    change_N = own_N - old_N
    values: dict[str, Any] = {
        "similarity": own_N,
        "NFR": change_N < -dead_zone,
        "PFR": change_N > dead_zone,
        GAIN_S: found["mean_new"] - beside["mean_new"],
        ITSELF: itself["nfr"]["value"],
    }
    if beside["nfr"]["value"]:
        values[RATIO] = found["nfr"]["value"] / beside["nfr"]["value"]
    return Measured(values)
