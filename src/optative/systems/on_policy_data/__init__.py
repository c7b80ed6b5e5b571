"""36. Suboptimal, on-policy data: when do fresh answers and a negative gradient pay? (Tajwar et al., arXiv:2404.14367)

Knows: which arms there are, what is claimed. The two worlds are modules of their own: the paper's bandit, where all is
exact (`bandit`), and rewards on the length of a tiny language model's answers (`lengths`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.on_policy_data.bandit import ALIGNED, DIAGNOSTICS, LOSSES, RATIO, TAIL
from optative.systems.on_policy_data.lengths import LOSSES as TINY_LOSSES
from optative.systems.on_policy_data.lengths import MOVED, REWARDS, SHARE, SPENT
from optative.systems.record import AnyCriterion, Spread, StudyOptions, System, at_least, at_most, command, higher

if TYPE_CHECKING:
    from optative.runs.study import Arm, Measured, Metric

VERSION = 1  # raised when a change of code moves the cells' numbers
STARTS = (1e-3, 1e-4, 1e-5)  # of the flows


def arm(sampling: str, loss: str, peak: int) -> str:
    return f"{sampling} {loss}, peak at {peak}"


def flow_arm(start: float) -> str:
    return f"flows to a bin at {start:g}"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines. `both losses`, `every method`: BoN and IPO, offline and on-policy."""
    four = tuple(arm(sampling, loss, ALIGNED) for sampling in ("offline", "on-policy") for loss in ("BoN", "IPO"))

    return (
        *(
            higher("reward", arm("on-policy", loss, TAIL), arm("offline", loss, TAIL), 0.3, 5)
            for loss in ("BoN", "IPO")
        ),
        higher("reward", arm("offline", "IPO", TAIL), arm("offline", "BoN", TAIL), 0.08, 5),
        *(at_least("reward", name, 0.9, 5) for name in four),
        Spread(metric="reward", arms=four, at_most=0.08, seeds=5),
        *(at_most(RATIO, flow_arm(start), 0.5, 5) for start in STARTS),
        higher(f"{SHARE}, minimal length", "online DPO", "offline DPO", 0.15),
        Spread(metric=f"{SHARE}, modal length", arms=("online DPO", "offline DPO"), at_most=0.05, seeds=3),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="Bandit: a table of logits in place of a network, the exact expected reward in place of a sampled one, and "
    "labels that are the true reward. Language model: a Llama of 2 million parameters that continues docstrings, in "
    "place of Pythia 1.4B; the length itself labels, in place of reward models trained on it; each round has an "
    "optimizer of its own; IPO aims at a margin a token. The share of the range is in the cost of a reward: tokens, or "
    "distance from the mode. Sample reuse (claim 2) and wall-clock are not compared.",
    explanation="IPO and BoN offline: IPO is better in each seed, but by 0.075 where 0.08 was asked. After 600 steps "
    "it still rises while BoN stands still (1,500 steps of a seed outside of the study: 0.52 against 0.30). Flows: the "
    "reverse flow moves a logit in proportion to the answer's own probability, so that a rare target is hardly pulled "
    "up at first, while the forward flow pulls it by q - p, almost 1, from the first step; the reverse flow takes 5 "
    "times as many steps from 1e-3, 27 times from 1e-4, and from 1e-5 is not there after 20,000. "
    "Tiny LM: the mean gain of online DPO on minimal length rests on seed 3, where offline DPO goes on from stale "
    "answers until it breaks (51 nats from the start); in the others it is 0.02 to 0.10, since offline DPO has gone "
    "almost all the way. Where the mode pays, the limit is missed by that seed, and by 0.04 and 0.06 in two more, "
    "with opposite signs. Copying the best answers shows the claim in each seed: online 0.99 of the way, offline "
    "0.65 to 0.76.",
)


class Study(StudyOptions):
    refreshes: int = Field(600, ge=2, description="Bandit: how often answers are drawn anew.")
    steps: int = Field(1, ge=1, description="Bandit: gradient steps on the answers of one draw.")
    learning_rate: float = Field(0.05, gt=0, description="Bandit: of Adam, the same for all methods.")
    corpora: tuple[str, ...] = Field(("python-docstrings",), description="Tiny LM: what it is trained on.")
    pretraining: int = Field(30, ge=1, description="Tiny LM: steps of supervised training.")
    rounds: int = Field(2, ge=1, description="Tiny LM: how often answers are drawn anew.")
    prompts: int = Field(16, ge=1, description="Tiny LM: prompts of a round, and those that are measured on.")


FULL = Study(
    seeds=(0, 1, 2, 3, 4),
    corpora=("python-docstrings", "numpy-docstrings", "torch-docstrings"),
    pretraining=150,
    rounds=16,
    prompts=64,
)


def run(study: Study, folder: Path) -> dict[str, Any]:
    """All arms: the bandit, two flows, and the tiny language model."""
    from functools import partial

    from optative.runs.study import study as run_study

    return run_study(
        folder,
        name="on-policy-suboptimal",
        title="Fresh samples and negative gradients where good answers are rare",
        command=command(36, study, FULL),
        version=VERSION,
        arms=arms(study),
        seeds=study.seeds,
        metrics=metrics(),
        cell=partial(cell, folder=folder / "models"),
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def arms(study: Study) -> dict[str, Arm]:
    """Each method on-policy beside itself offline, and offline beside the best of N."""
    from optative.runs.study import Arm

    bandit = study.model_dump(include={"refreshes", "steps", "learning_rate"})
    found = {
        arm(sampling, loss, peak): Arm(
            options={"peak": peak, "loss": loss, "on_policy": sampling == "on-policy", **bandit},
            baseline=arm("offline", loss, peak) if sampling == "on-policy" else _offline_baseline(loss, peak),
            panel=f"peak at {peak}",
        )
        for peak in (TAIL, ALIGNED)
        for sampling in ("on-policy", "offline")
        for loss in LOSSES
    }
    found |= {flow_arm(start): Arm(options={"start": start}, panel="flows") for start in STARTS}
    tiny = study.model_dump(include={"corpora", "pretraining", "rounds", "prompts"}, mode="json")
    return found | {
        f"{sampling} {loss}": Arm(
            options={"tiny": loss, "on_policy": sampling == "online", **tiny},
            baseline=f"offline {loss}" if sampling == "online" else None if loss == "BoN" else "offline BoN",
            panel="tiny LM",
        )
        for sampling in ("online", "offline")
        for loss in TINY_LOSSES
    }


def metrics() -> dict[str, Metric]:
    from optative.runs.study import Metric

    found = {"reward": Metric("same_rule_held_out", (0.0, 1.0))}
    found |= {f"{SHARE}, {reward}": Metric("same_rule_held_out") for reward in REWARDS}
    bandit = (*DIAGNOSTICS, RATIO, "steps to half the mass, forward", "steps to half the mass, reverse")
    tiny = (f"{name}, {reward}" for name in (*MOVED, *SPENT) for reward in REWARDS)
    return found | {name: Metric("independent") for name in (*bandit, *tiny)}


def _offline_baseline(loss: str, peak: int) -> str | None:
    return None if loss == "BoN" else arm("offline", "BoN", peak)


def cell(options: Mapping[str, Any], seed: int, folder: Path) -> Measured:
    """`folder` keeps the supervised language models."""
    from optative.systems.on_policy_data import bandit, lengths

    if "tiny" in options:
        return lengths.cell(options, seed, folder)
    if "start" in options:
        return bandit.time_flows(options["start"], seed)
    return bandit.train(options, seed, bandit.world(options, seed))
