"""47. Control tokens by parameter-efficient tuning: controls first, then model and controls (MEET, arXiv:2310.00819).

Own code here: which control an arm has and in which stages it learns, and what is measured. Shared: soft prompts and
LoRAs with labels (`generators.language.controls`), labels and their exact task (`objectives.control_labels`), the
trainer (`optimizers.fit`), small models (`generators.language.tiny`), cells and pairing (`runs.study`).

Every arm takes equally many steps of equally many rows; an arm with two stages takes half of them in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.control_tokens.learning import LONGEST, Recipe, Task, asked, learn, task_of
from optative.systems.record import AnyCriterion, StudyOptions, System, at_least, command, higher

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.sample import Completion
    from optative.runs.study import Measured

VERSION = 1  # raised when a change of code moves the cells' numbers
ANSWERS = 4  # answers to each prompt under a blend
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
GAP, QUALITY, LEAKAGE = "control gap, points", "quality under good", "leakage accuracy"
ABOVE_SFT, MONOTONE = "quality minus that of SFT on good, points", "Spearman correlation of blend and quality"


RECIPES = {
    "special token": Recipe("special token"),
    "CoH text": Recipe("text"),
    "MEET soft prompt": Recipe("soft prompt", ("controls", "joint")),
    "MEET LoRA": Recipe("lora", ("controls", "joint")),
    "stage 1 only": Recipe("soft prompt", ("controls",)),
    "stage 2 only": Recipe("random soft prompt"),
    "SFT on good": Recipe(),
    "DPO": Recipe("", ("pairs",)),
    "MEET, DPO in stage 2": Recipe("soft prompt", ("controls", "pairs")),
}
MEET = ("MEET soft prompt", "MEET LoRA")
MANNERS, LENGTHS, STYLES = "", "three lengths, ", "styles, "  # the tasks, as their arms are called
ARMS = {
    MANNERS: ("manners", tuple(RECIPES)),
    LENGTHS: ("lengths", ("CoH text", "MEET soft prompt")),
    STYLES: ("styles", ("CoH text", *MEET, "stage 2 only", "SFT on good")),
}


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines, those of two labels on both tasks and for both forms of MEET."""
    found: list[AnyCriterion] = []
    for task in (MANNERS, STYLES):
        found += [higher(GAP, task + arm, task + other, 3.0) for arm in MEET for other in ("CoH text", "stage 2 only")]
        found += [at_least(ABOVE_SFT, task + arm, -1.0) for arm in MEET]
        found += [at_least(MONOTONE, task + arm, 0.9) for arm in MEET]
    return (*found, at_least(LEAKAGE, f"{LENGTHS}MEET soft prompt", 0.6))


SYSTEM = System(
    criteria=_criteria(),
    differs="A Llama of 2 million parameters on sums that are answered politely or rudely, rightly or wrongly, judged "
    "by an exact rule in place of a language model; the labels that are learnt from are wrong in one case of ten. Soft "
    "prompts of 10 embeddings and LoRAs of rank 8, since the paper's sizes could not be read. Three labels: thirds of "
    "the lengths of Python's docstrings. Styles: the docstrings of two packages, good those of the first, judged by a "
    "classifier of words that learnt from other docstrings and tells 83 to 85 % of them apart. The dialogues "
    "and summaries of the paper are not run.",
    explanation="Equal steps are what decides here. On sums the base cannot do what is asked (after the first stage "
    "alone the gap is -3 to 5 points), so that all that counts is how long the weights themselves learn: 200 steps "
    "with control sentences or in the second stage alone, 100 with MEET, and with good rows only twice as many of "
    "these a step (right and polite in 0.33 to 0.53, with MEET in 0.06 to 0.26). On styles, which "
    "the base knows from its pretraining, LoRAs part the labels by 19, 17 and 23 points against 10, 1 and 5 for the "
    "sentences, as published. Soft prompts do so in two seeds; that both stages are needed holds in two seeds of LoRA "
    "and one of soft prompts.",
)


class Study(StudyOptions):
    pretraining: int = Field(30, ge=1, description="Steps of the base model, about 4,096 tokens each.")
    pairs: int = Field(500, ge=1, description="Questions that are learnt from, two answers each.")
    steps: int = Field(20, ge=2, description="Steps of each arm, all stages together.")
    styles: tuple[str, str] | None = Field(
        None, description="Two corpora: texts like those of the first are good, of the second bad. None: not run."
    )


FULL = Study(
    seeds=(0, 1, 2),
    pretraining=150,
    pairs=2000,
    steps=200,
    styles=("python-docstrings", "transformers-docstrings"),
)


def run(study: Study, folder: Path) -> dict[str, Any]:
    from functools import partial

    from optative.runs.study import Arm, Metric
    from optative.runs.study import study as run_study

    own = study.model_dump(mode="json", exclude={"seeds", "styles"})
    arms = {
        prefix + arm: Arm(
            options={"arm": arm, "task": task, **own}
            | ({"styles": list(study.styles or ())} if prefix == STYLES else {}),
            baseline=None if arm == "CoH text" else f"{prefix}CoH text",
            panel=prefix.removesuffix(", "),
        )
        for prefix, (task, recipes) in ARMS.items()
        if prefix != STYLES or study.styles
        for arm in recipes
    }
    shares = (QUALITY, LEAKAGE, "quality under bad", "quality without control", "answers that repeat the control")
    metrics = {name: Metric("same_rule_held_out", (0.0, 1.0)) for name in shares}
    metrics |= {name: Metric("same_rule_held_out") for name in (GAP, ABOVE_SFT, MONOTONE)}
    others = [f"tokens under {label}" for label in ("good", "bad", "short", "medium", "long")]
    others += ["fluency, nats a token", "gradient steps", "distance of the controls in stage 2"]
    return run_study(
        folder,
        name="meet-control-tokens",
        title="Controls as soft prompts and adapters, tuned first and then with the model",
        command=command(47, study, FULL),
        version=VERSION,
        arms=arms,
        seeds=study.seeds,
        metrics=metrics | {name: Metric("independent") for name in others},
        cell=partial(cell, folder=folder / "models"),
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def cell(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """`folder` keeps base models, and the supervised ones that MEET is compared with on each prompt."""
    from optative.core.ids import content_hash
    from optative.generators.language.kept import kept
    from optative.objectives.control_labels import GOOD
    from optative.runs.study import Measured

    task, recipe = task_of(options, seed, folder), RECIPES[options["arm"]]

    def learnt(arm: str) -> tuple[LanguageModel, dict[str, Any]]:
        lm = task.base()
        with TemporaryDirectory() as files:
            return lm, learn(lm, task, RECIPES[arm], options["steps"], seed, Path(files))

    lm, values = learnt(options["arm"])
    values |= measure(lm, task, recipe, seed)
    if options["arm"] in MEET and GOOD in task.labels:
        key = content_hash([VERSION, {**options, "arm": "SFT on good"}, seed])[:12]
        sft = kept(folder / f"sft-{key}", lambda: learnt("SFT on good")[0])
        theirs = measure(sft, task, Recipe(), seed)[QUALITY]
        values[ABOVE_SFT] = [100 * (own - other) for own, other in zip(values[QUALITY], theirs, strict=True)]
        values[MONOTONE] = monotone(lm, task, recipe, seed)
    return Measured(values)


def measure(lm: LanguageModel, task: Task, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What the rule says of one answer to each held-out prompt under each control; items are the prompts."""
    from optative.generators.language.sample import sampled_groups
    from optative.generators.language.score import summed
    from optative.objectives.control_labels import BAD, GOOD, sentence

    labels = task.labels if recipe.control else ("",)
    drawn = {label: answers(lm, recipe, label, task.prompts, seed) for label in labels}
    found = {label: [task.verdict(p, own[0].text) for p, own in zip(task.prompts, drawn[label])] for label in labels}
    values: dict[str, Any] = {
        f"tokens under {label}": [len(own[0].ids) for own in drawn[label]] for label in labels if label
    }
    if GOOD in task.labels:
        good = [verdict == GOOD for verdict in found[GOOD if recipe.control else ""]]
        values[QUALITY] = good
        bare = found[""] if "" in found else verdicts(lm, task, Recipe(), "", seed)
        values["quality without control"] = [verdict == GOOD for verdict in bare]
    if recipe.control:
        right = [[verdict == label for verdict in found[label]] for label in labels]
        values[LEAKAGE] = [sum(own) / len(own) for own in zip(*right)]
        repeats = [sentence(label) in own[0].text for label in labels for own in drawn[label]]
        values["answers that repeat the control"] = sum(repeats) / len(repeats)
    if recipe.control and GOOD in task.labels:
        bad = [verdict == GOOD for verdict in found[BAD]]
        values["quality under bad"] = bad
        values[GAP] = [100 * (one - other) for one, other in zip(good, bad)]
    first = drawn[labels[0]]
    fluent = summed(task.base(), sampled_groups(lm, task.prompts, first))
    values["fluency, nats a token"] = [own[0] / len(a[0].ids) for own, a in zip(fluent, first)]
    return values


def verdicts(lm: LanguageModel, task: Task, recipe: Recipe, label: str, seed: int) -> list[str]:
    drawn = answers(lm, recipe, label, task.prompts, seed)
    return [task.verdict(prompt, own[0].text) for prompt, own in zip(task.prompts, drawn)]


def answers(
    lm: LanguageModel, recipe: Recipe, label: str, prompts: Sequence[str], seed: int, n: int = 1
) -> list[list[Completion]]:
    """At temperature 1; the random numbers are those of the prompt, in every arm and under every label the same."""
    from optative.generators.language.controls import active
    from optative.generators.language.sample import SamplingSettings, sample

    groups = [asked(lm, recipe, label, prompt) for prompt in prompts]
    settings = SamplingSettings(max_new_tokens=LONGEST)
    with active(lm, groups[0].control):
        return sample(lm, [group.prompt_ids for group in groups], n, settings, seed=seed, keys=prompts)


def monotone(lm: LanguageModel, task: Task, recipe: Recipe, seed: int) -> float:
    """Spearman's correlation of a and the quality under (1 - a) bad + a good."""
    from scipy.stats import spearmanr

    from optative.generators.language.controls import blended
    from optative.objectives.control_labels import BAD, GOOD

    found = []
    for share in BLENDS:
        with blended(lm, GOOD, {BAD: 1 - share, GOOD: share}):
            drawn = answers(lm, recipe, GOOD, task.prompts, seed, ANSWERS)
        told = [task.verdict(p, answer.text) == GOOD for p, own in zip(task.prompts, drawn) for answer in own]
        found.append(sum(told) / len(told))
    return float(spearmanr(BLENDS, found).statistic) if len(set(found)) > 1 else 0.0
