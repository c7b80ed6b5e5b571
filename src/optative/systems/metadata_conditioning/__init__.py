"""2. Metadata conditioning: pretrain with the source in front, then for a while without (MeCo, Gao et al. 2025).

Own code: the method and its worlds (`tags`), and here the study. Shared: corpora (`data.corpora`),
invented people (`data.invented`), tiny models and their pretraining in stages (`generators.language.tiny`), judges
(`evaluation.text_judges`), cells and pairing (`runs.study`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.metadata_conditioning.tags import (
    FACT_MODEL,
    GOOD,
    MODEL,
    PAGE,
    beginning,
    document,
    nats,
    pages,
    pretrain,
    recall,
    samples,
    stages,
    tag,
    tag_effect,
    world,
)
from optative.systems.record import AnyCriterion, Spread, StudyOptions, System, at_least, at_most, command, higher

if TYPE_CHECKING:
    from optative.runs.study import Arm, Measured, Metric

VERSION = 1  # raised when a change of code moves the cells' numbers
# Very different in style; all but the last travel with Python or with what optative requires.
SOURCES = (
    "python-reference",
    "python-docstrings",
    "python-code",
    "networkx-docstrings",
    "scipy-docstrings",
    "sympy-docstrings",
    "transformers-docstrings",
    "torch-headers",
    "arrow-cython",
    "package-readmes",
    "package-licences",
    "unicode-names",
    "grumbles",
)
# Share of tagged documents before and in the cooldown.
ARMS = {"standard": (0.0, 0.0), "100% tagged": (1.0, 1.0), "mixed 90/10": (0.9, 0.9)}
ARMS |= {"MeCo": (1.0, 0.0), "MeCo-hashed": (1.0, 0.0)}
FACT_ARMS = {f"facts, {name}": ARMS[name] for name in ("standard", "MeCo", "MeCo-hashed")}
LOSS = "held-out loss without a prefix, nats a token"
BEFORE, AFTER = (
    f"loss under the true tag minus under a wrong one, {when} the cooldown" for when in ("before", "after")
)
SHARE = "share of sources whose tag helps before the cooldown"
NAMED, TIMES = "samples that the judge gives to the source asked for", "the same, times chance"
JUDGE = "held-out texts that the judge gives to their source"
PROFANITY = "profanity under the cleanest source over that without a prefix"
RECALL, TAGGED_RECALL = "facts recalled without a prefix", "facts recalled under their source"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's four accept lines."""
    return (
        higher(LOSS, "100% tagged", "standard", 0.05),
        Spread(metric=LOSS, arms=("MeCo", "standard"), at_most=0.03, seeds=3),
        at_most(BEFORE, "MeCo", -0.10),
        at_least(SHARE, "MeCo", 0.9),
        at_most(AFTER, "MeCo", -0.03),
        at_least(TIMES, "MeCo", 3.0),
        higher(NAMED, "MeCo", "standard", 0.15),
        at_most(PROFANITY, "MeCo", 0.7),
        higher(RECALL, "facts, MeCo", "facts, standard", 0.05),
        Spread(metric=RECALL, arms=("facts, MeCo", "facts, MeCo-hashed"), at_most=0.03, seeds=3),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="Models of about 0.9 million parameters on 1 million tokens of thirteen sources, in place of 0.6 to 8 "
    "billion on 160 billion tokens of the web; a source is a name such as scipy-docstrings, not a URL. No few-shot "
    "benchmarks: knowledge is the recall of invented facts, of 250 people in place of 2,000 so that each is seen often "
    "enough in minutes. Contexts of 192 tokens, one piece of a document each. The source of mild profanity is made of "
    "templates. The classifier of profanity is a linear one, not Detoxify.",
    explanation="Conditioning works as published and the cooldown does too little. Without a prefix the model that "
    "always saw a tag is 0.35, 0.64 and 0.26 nats worse than the standard one; the last tenth of the steps, without "
    "tags, takes a fifth to two fifths of that back, where nearly all was asked. A tenth is 16 billion tokens as "
    "published and 50 steps of a falling learning rate here. Facts: no arm learnt them (recall 0.06 to 0.07, and 1 in "
    "16 is chance), so both lines on them say nothing of the claim: each person is read some tens of times.",
)


class Study(StudyOptions):
    sources: tuple[str, ...] = Field(SOURCES, min_length=3, description="Corpora, each of which is a source.")
    documents: int = Field(100, ge=40, description="Most documents of a source.")
    steps: int = Field(40, ge=20, description="Steps on the sources, of about 2,000 tokens.")
    samples: int = Field(10, ge=1, description="Samples under each source.")
    people: int = Field(50, ge=PAGE, description="People whose facts are to be learnt.")
    fact_steps: int = Field(40, ge=20, description="Steps on the facts.")


FULL = Study(seeds=(0, 1, 2), documents=1000, steps=500, samples=100, people=250, fact_steps=900)


def run(study: Study, folder: Path) -> dict[str, Any]:
    """All arms on the sources, and three of them on the facts. Needs the extra `systems`."""
    from optative.runs.study import study as run_study

    return run_study(
        folder,
        name="metadata-conditioning",
        title="Pretraining with the source in front, and then without",
        command=command(2, study, FULL),
        version=VERSION,
        arms=arms(study),
        seeds=study.seeds,
        metrics=metrics(),
        cell=cell,
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def arms(study: Study) -> dict[str, Arm]:
    from optative.runs.study import Arm

    found = {}
    for table, panel, own in (
        (ARMS, "sources", {"sources", "documents", "steps", "samples"}),
        (FACT_ARMS, "facts", {"people", "fact_steps"}),
    ):
        for name, tagged in table.items():
            options = {
                "tagged": list(tagged),
                "hashed": name.endswith("hashed"),
                **study.model_dump(include=own, mode="json"),
            }
            baseline = None if name == next(iter(table)) else next(iter(table))
            found[name] = Arm(options=options, baseline=baseline, panel=panel)
    return found


def metrics() -> dict[str, Metric]:
    from optative.runs.study import Metric

    shares = (SHARE, NAMED, JUDGE, RECALL, TAGGED_RECALL)
    found = {name: Metric("independent", (0.0, 1.0)) for name in shares}
    return found | {name: Metric("independent") for name in (LOSS, BEFORE, AFTER, TIMES, PROFANITY)}


def cell(options: Mapping[str, Any], seed: int) -> Measured:
    return facts(options, seed) if "people" in options else sources(options, seed)


def sources(options: Mapping[str, Any], seed: int) -> Measured:
    """Pretrain on the sources; losses with and without tags, and samples that an outside judge names."""
    import numpy as np

    from optative.evaluation.text_judges import profanity
    from optative.generators.language.tiny import build
    from optative.runs.study import Measured

    here = world(seed, tuple(options["sources"]), options["documents"])
    names = sorted({one.source for one in here.train})
    lm = build(MODEL, here.tokenizer, seed)
    between = []
    losses = pretrain(
        lm,
        stages(lm, here.train, options, options["steps"], seed),
        seed,
        lambda: between.append(tag_effect(lm, here.held_out, names, options["hashed"])),
    )
    (before,), after = between, tag_effect(lm, here.held_out, names, options["hashed"])
    plain, tokens = nats(lm, [document(lm, one.text) for one in here.held_out])
    drawn = samples(lm, [tag(name, options["hashed"]) for name in names], options["samples"], seed)
    (free,) = samples(lm, [""], 4 * options["samples"], seed)
    right = [float(found == name) for name, texts in zip(names, drawn) for found in here.judge(texts)]
    offence = {name: profanity([one.text for one in here.train if one.source == name]).mean() for name in names}
    cleanest = names.index(min(names, key=offence.__getitem__))
    guessed = here.judge([beginning(lm.tokenizer, one.text) for one in here.held_out])
    return Measured(
        {
            LOSS: plain / tokens.mean(),  # their mean is the mean over all tokens
            BEFORE: before,
            AFTER: after,
            SHARE: float(np.mean(before < 0)),
            NAMED: right,
            TIMES: float(np.mean(right)) * len(names),
            PROFANITY: float(profanity(drawn[cleanest]).mean() / profanity(free).mean()),
            JUDGE: [float(found == one.source) for found, one in zip(guessed, here.held_out)],
        },
        clusters={LOSS: [one.source for one in here.held_out], NAMED: [n for n, t in zip(names, drawn) for _ in t]},
        curves={"loss": (range(1, len(losses) + 1), losses)},
    )


def facts(options: Mapping[str, Any], seed: int) -> Measured:
    """Pretrain on pages of people, one page of a good source to seven of junk, and ask for the good source's facts."""
    from optative.data.invented import FACTS
    from optative.generators.language.tiny import build, train_tokenizer
    from optative.runs.study import Measured

    known, texts = pages(seed, options["people"], options["fact_steps"])
    tokenizer = train_tokenizer((one.text for one in islice(texts, 2000)), FACT_MODEL.vocabulary)
    lm = build(FACT_MODEL, tokenizer, seed)
    losses = pretrain(lm, stages(lm, texts, options, options["fact_steps"], seed), seed)
    recalled = {
        metric: recall(lm, [question for one in known for question in one.questions], prefix)
        for metric, prefix in ((RECALL, ""), (TAGGED_RECALL, tag(GOOD, options["hashed"])))
    }
    owner = [one.name for one in known for _ in FACTS]
    return Measured(
        recalled, clusters=dict.fromkeys(recalled, owner), curves={"loss": (range(1, len(losses) + 1), losses)}
    )
