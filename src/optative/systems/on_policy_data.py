"""36. Suboptimal, on-policy data: when do fresh answers and a negative gradient pay? (Tajwar et al., arXiv:2404.14367)

Own code here: the 100-bin bandit of the paper's section 5, the one loop whose settings are the methods, and which flow
is timed. Shared: losses (`optimizers.losses`), flows and divergences (`evaluation.modes`), cells and pairing
(`runs.study`). A policy is a table of logits, 10 states x 100 answers; every state has the same reward, so that
states are items. Offline and on-policy arms draw equally many answers at the same moments and take equally many
steps: they differ in who the answers are drawn from, nothing else. Reward is the exact expectation under the policy.

Letters: S states, N answers drawn for a state, K answers there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.record import AnyCriterion, Bound, Criterion, Spread, StudyOptions, System, command

if TYPE_CHECKING:
    import numpy as np
    import torch

    from optative.runs.study import Measured

VERSION = 1  # raised when a change of code moves the cells' numbers
STATES, ANSWERS, BINS, WIDTH = 10, 10, 100, 10.0
TAIL, ALIGNED = 70, 20  # where the reward peaks: in the reference's tail, and where its mass is
IPO_MARGIN = 10.0  # the paper's beta: the log-ratio that IPO aims at, the inverse of what `ipo` calls beta
DPO_BETA, GAP = 0.1, 0.2  # pairs whose rewards differ by GAP or less are not learnt from
TEMPERATURE, MOST_WEIGHT = 0.2, 20.0  # of reward-weighted regression: exp(reward / TEMPERATURE), at most MOST_WEIGHT
LOSSES = ("BoN", "RWR", "REINFORCE", "DPO", "IPO")
POINTS = 40  # of a curve
STARTS, RATE, LONGEST = (1e-3, 1e-4, 1e-5), 0.1, 20_000  # of the flows
RATIO = "steps to half the mass, reverse over forward"
LENGTH = "tiny LM, share of the range from SFT to the minimum"


def arm(sampling: str, loss: str, peak: int) -> str:
    return f"{sampling} {loss}, peak at {peak}"


def flow_arm(start: float) -> str:
    return f"flows to a bin at {start:g}"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines. `both losses`, `every method`: BoN and IPO, offline and on-policy."""
    four = tuple(arm(sampling, loss, ALIGNED) for sampling in ("offline", "on-policy") for loss in ("BoN", "IPO"))

    def higher(own: str, baseline: str, effect: float, metric: str = "reward", seeds: int = 5) -> Criterion:
        return Criterion(
            metric=metric, arm=own, baseline=baseline, smallest_effect=effect, direction="higher", seeds=seeds
        )

    return (
        *(higher(arm("on-policy", loss, TAIL), arm("offline", loss, TAIL), 0.3) for loss in ("BoN", "IPO")),
        higher(arm("offline", "IPO", TAIL), arm("offline", "BoN", TAIL), 0.08),
        *(Bound(metric="reward", arm=name, direction="at_least", limit=0.9, seeds=5) for name in four),
        Spread(metric="reward", arms=four, at_most=0.08, seeds=5),
        *(Bound(metric=RATIO, arm=flow_arm(start), direction="at_most", limit=0.5, seeds=5) for start in STARTS),
        higher("online DPO", "offline DPO", 0.15, f"{LENGTH}, minimal length", 3),
        Spread(metric=f"{LENGTH}, modal length", arms=("online DPO", "offline DPO"), at_most=0.05, seeds=3),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="A table of logits in place of a network, the exact expected reward in place of a sampled one, and labels "
    "that are the true reward. The paper's language models are out of reach here; the length rewards on a tiny "
    "language model are not run yet, so that their criteria stay open. Sample reuse (claim 2) and wall-clock are not "
    "compared.",
    explanation="IPO and BoN offline: IPO is better in each seed, but by 0.075 where 0.08 was asked. After 600 steps "
    "it still rises while BoN stands still (1,500 steps of a seed outside of the study: 0.52 against 0.30). Flows: the "
    "reverse flow moves a logit in proportion to the answer's own probability, so that a rare target is hardly pulled "
    "up at first, while the forward flow pulls it by q - p, almost 1, from the first step; the reverse flow takes 5 "
    "times as many steps from 1e-3, 27 times from 1e-4, and from 1e-5 is not there after 20,000.",
)


class Study(StudyOptions):
    refreshes: int = Field(600, ge=2, description="How often answers are drawn anew.")
    steps: int = Field(1, ge=1, description="Gradient steps on the answers of one draw.")
    learning_rate: float = Field(0.05, gt=0, description="Of Adam, the same for all methods.")


FULL = Study(seeds=(0, 1, 2, 3, 4))


@dataclass(frozen=True)
class World:
    """One bandit. `labels_K`: what the annotator says; `reward_K`: the truth, which is what is measured."""

    reference_K: np.ndarray
    labels_K: np.ndarray
    reward_K: np.ndarray


@dataclass(frozen=True)
class Draw:
    """Answers with the log-probabilities that they were drawn with, and their labels."""

    answers_SN: np.ndarray
    logps_SN: np.ndarray
    labels_SN: np.ndarray


def run(study: Study, folder: Path) -> dict[str, Any]:
    """All arms: five losses, offline and on-policy, two peaks; and the two flows."""
    from optative.runs.study import Arm, Metric
    from optative.runs.study import study as run_study

    own = study.model_dump(exclude={"seeds"})
    arms = {
        arm(sampling, loss, peak): Arm(
            options={"peak": peak, "loss": loss, "on_policy": sampling == "on-policy", **own},
            baseline=arm("offline", loss, peak) if sampling == "on-policy" else _offline_baseline(loss, peak),
            panel=f"peak at {peak}",
        )
        for peak in (TAIL, ALIGNED)
        for sampling in ("on-policy", "offline")
        for loss in LOSSES
    }
    arms |= {flow_arm(start): Arm(options={"start": start}, panel="flows") for start in STARTS}
    found = ("kl to reference", "kl from reference", "entropy", "largest k1 at the first step", "tail index")
    metrics = {"reward": Metric("same_rule_held_out", (0.0, 1.0))}
    metrics |= {name: Metric("independent") for name in (*found, "reward queries", "gradient steps")}
    flows = (RATIO, "steps to half the mass, forward", "steps to half the mass, reverse")
    metrics |= {name: Metric("independent") for name in flows}
    return run_study(
        folder,
        name="on-policy-suboptimal",
        title="Fresh samples and negative gradients where good answers are rare",
        command=command(36, study, FULL),
        version=VERSION,
        arms=arms,
        seeds=study.seeds,
        metrics=metrics,
        cell=cell,
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def _offline_baseline(loss: str, peak: int) -> str | None:
    return None if loss == "BoN" else arm("offline", "BoN", peak)


def cell(options: Mapping[str, Any], seed: int) -> Measured:
    return time_flows(options["start"], seed) if "start" in options else train(options, seed, world(options, seed))


def world(options: Mapping[str, Any], seed: int) -> World:
    """The bandit with its reward's peak; the reference is a tanh-squashed Cauchy, binned from 10,000 draws."""
    import numpy as np

    from optative.core.rng import stream

    squashed = np.tanh(-0.7 + 0.4 * stream(seed, "reference").standard_cauchy(10_000))
    counts = np.histogram(squashed, BINS, (-1, 1))[0]
    reward_K = np.exp(-(((np.arange(BINS) - options["peak"]) / WIDTH) ** 2))
    return World(np.log(counts / counts.sum()), reward_K, reward_K)


def train(options: Mapping[str, Any], seed: int, world: World) -> Measured:
    """The loop of all methods: draw, label, step, draw anew; the reference of a loss is the first policy throughout."""
    import numpy as np
    import torch

    from optative.evaluation import modes
    from optative.runs.study import Measured

    reference_SK = np.tile(world.reference_K, (STATES, 1))
    logits_SK = torch.tensor(reference_SK, requires_grad=True)
    optimizer = torch.optim.Adam([logits_SK], lr=options["learning_rate"])
    curves: dict[str, tuple[list[int], list[float]]] = {}
    k1 = queries = steps = 0.0
    policy_SK = reference_SK
    for refresh in range(options["refreshes"]):
        drawn = draw(policy_SK if options["on_policy"] else reference_SK, world, seed, refresh)
        queries += drawn.labels_SN.size
        if options["on_policy"]:
            k1 = max(k1, abs(off_policy(drawn, policy_SK)))
            assert k1 < 1e-9, f"answers were not drawn from the policy that trains on them: k1 = {k1:.3g}"
        for step in range(options["steps"]):
            optimizer.zero_grad()
            losses_U = losses(options["loss"], logits_SK.log_softmax(-1), torch.tensor(reference_SK), drawn)
            (losses_U.sum() / STATES).backward()  # zero where no pair is kept; a step is taken all the same
            if step == 0:
                norm = float(logits_SK.grad.norm())  # type: ignore[union-attr]
            optimizer.step()
            steps += 1
        policy_SK = logits_SK.detach().log_softmax(-1).numpy()
        if refresh % max(1, options["refreshes"] // POINTS) == 0 or refresh == options["refreshes"] - 1:
            seen = watch(policy_SK, reference_SK, drawn) | {"gradient norm": norm}
            _note(curves, steps, {"reward": float((np.exp(policy_SK) @ world.reward_K).mean()), **seen})
    values: dict[str, Any] = {
        "reward": np.exp(policy_SK) @ world.reward_K,
        "kl to reference": [modes.kl(own, world.reference_K) for own in policy_SK],
        "kl from reference": [modes.kl(world.reference_K, own) for own in policy_SK],
        "entropy": [modes.entropy(own) for own in policy_SK],
        "tail index": modes.tail_index(world.reward_K, world.reference_K).value,
        "reward queries": queries,
        "gradient steps": steps,
    }
    return Measured(values | ({"largest k1 at the first step": k1} if options["on_policy"] else {}), curves=curves)


def draw(policy_SK: np.ndarray, world: World, seed: int, refresh: int) -> Draw:
    """N answers a state. The random numbers are those of (seed, refresh), in every arm the same."""
    import numpy as np

    from optative.core.rng import stream

    uniforms_SN = stream(seed, "answers", refresh).random((STATES, ANSWERS))
    edges_SK = np.exp(policy_SK).cumsum(-1)
    answers_SN = (uniforms_SN[:, :, None] * edges_SK[:, None, -1:] > edges_SK[:, None, :]).sum(-1)
    return Draw(answers_SN, np.take_along_axis(policy_SK, answers_SN, -1), world.labels_K[answers_SN])


def off_policy(drawn: Draw, policy_SK: np.ndarray) -> float:
    """The k1 estimate of KL(sampler || policy) on the answers drawn."""
    import numpy as np

    from optative.evaluation import modes

    policy_SN = np.take_along_axis(policy_SK, drawn.answers_SN, -1)
    return modes.sampled_kl(drawn.logps_SN.ravel(), policy_SN.ravel()).k1.value


def pairs(drawn: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best and worst answer of each state, and which states keep their pair: those with a gap of labels."""
    import numpy as np

    states = np.arange(len(drawn.labels_SN))
    best_S, worst_S = drawn.labels_SN.argmax(-1), drawn.labels_SN.argmin(-1)
    gap_S = drawn.labels_SN[states, best_S] - drawn.labels_SN[states, worst_S]
    return drawn.answers_SN[states, best_S], drawn.answers_SN[states, worst_S], gap_S > GAP


def losses(name: str, logps_SK: torch.Tensor, reference_SK: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """One value a unit, [U]: a state, or a pair that is kept. An answer is one token."""
    import torch

    from optative.optimizers.losses.pairs import dpo, ipo
    from optative.optimizers.losses.supervised import nll

    best_S, worst_S, kept_S = (torch.tensor(array) for array in pairs(drawn))

    def of(table_SK: torch.Tensor, answers_S: torch.Tensor) -> torch.Tensor:
        return table_SK.gather(-1, answers_S[:, None])[:, 0]

    one_S = torch.ones(len(best_S), dtype=logps_SK.dtype)
    if name == "BoN":
        return nll(of(logps_SK, best_S), one_S)
    if name in ("DPO", "IPO"):
        chosen_B, rejected_B = of(logps_SK, best_S)[kept_S], of(logps_SK, worst_S)[kept_S]
        ref_chosen_B, ref_rejected_B = of(reference_SK, best_S)[kept_S], of(reference_SK, worst_S)[kept_S]
        if name == "DPO":
            return dpo(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=DPO_BETA)
        one_B = one_S[kept_S]
        return ipo(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, one_B, one_B, beta=ipo_beta())
    labels_SN = torch.tensor(drawn.labels_SN)
    nll_SN = nll(logps_SK.gather(-1, torch.tensor(drawn.answers_SN)).ravel(), torch.ones(labels_SN.numel()))
    if name == "RWR":
        weights_SN = (labels_SN / TEMPERATURE).exp().clamp(max=MOST_WEIGHT)
    else:
        weights_SN = labels_SN - labels_SN.mean(-1, keepdim=True)
    return (weights_SN * nll_SN.view_as(labels_SN)).mean(-1)


def ipo_beta() -> float:
    """The paper's loss is (log-ratio - IPO_MARGIN)^2; ours aims at 1 / (2 beta)."""
    return 1 / (2 * IPO_MARGIN)


def watch(policy_SK: np.ndarray, reference_SK: np.ndarray, drawn: Draw) -> dict[str, float]:
    """What moved since the reference, on the best and worst answers of this draw; and the spread of the policy."""
    import numpy as np

    from optative.evaluation import modes

    best_S, worst_S, _ = pairs(drawn)
    ratios_SK = policy_SK - reference_SK
    best, worst = (float(np.take_along_axis(ratios_SK, own[:, None], -1).mean()) for own in (best_S, worst_S))
    return {
        "log-ratio of the best": best,
        "log-ratio of the worst": worst,
        "implicit margin": best - worst,
        "kl to reference": float(np.mean([modes.kl(p, q) for p, q in zip(policy_SK, reference_SK)])),
        "entropy": float(np.mean([modes.entropy(p) for p in policy_SK])),
    }


def time_flows(start: float, seed: int) -> Measured:
    """Steps until half of the mass is at a target whose bin has probability `start` in the first policy.

    At most LONGEST are taken: a flow that is not there by then counts as LONGEST, so that the ratio is a lower bound.
    """
    import numpy as np

    from optative.evaluation import modes
    from optative.runs.study import Measured

    first_K = np.exp(world({"peak": TAIL}, seed).reference_K)
    first_K = np.where(np.arange(BINS) == TAIL, start, first_K * (1 - start) / (1 - first_K[TAIL]))
    target_K = np.where(np.arange(BINS) == TAIL, 1 - (BINS - 1) * 1e-9, 1e-9)
    taken: dict[str, int] = {}
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for direction in ("forward", "reverse"):
        path = modes.flow(np.log(first_K), np.log(target_K), direction=direction, rate=RATE, steps=LONGEST)
        share = modes.share_arrived(path, np.log(target_K))
        half = modes.steps_to(share)
        taken[direction] = LONGEST if half is None else half
        shown = np.unique(np.geomspace(1, LONGEST, 150).astype(int))
        curves[f"share arrived, {direction}"] = (shown.tolist(), share[shown].tolist())
    ratio = taken["reverse"] / taken["forward"]
    values = {f"steps to half the mass, {direction}": float(steps) for direction, steps in taken.items()}
    return Measured(values | {RATIO: ratio}, curves=curves)


def _note(curves: dict[str, tuple[list[int], list[float]]], step: float, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        steps, seen = curves.setdefault(name, ([], []))
        steps.append(int(step))
        seen.append(value)
