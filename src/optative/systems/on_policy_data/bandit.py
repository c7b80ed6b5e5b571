"""The 100-bin bandit of Tajwar et al. 2024 (arXiv:2404.14367, section 5), and the one loop whose settings are methods.

Knows: the bandit, whom an answer is drawn from, what each method does with labelled answers, which flow is timed. Does
not know: arms, criteria. Losses are those of `optimizers.losses`, flows and divergences those of `evaluation.modes`.

A policy is a table of logits, 10 states x 100 answers; every state has the same reward, so that states are items.
Offline and on-policy arms draw equally many answers at the same moments and take equally many steps: they differ in
whom the answers are drawn from, nothing else. Reward is the exact expectation under the policy.

Letters: S states, N answers drawn for a state, K answers there are, U units of a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from optative.runs.study import Measured

STATES, ANSWERS, BINS, WIDTH = 10, 10, 100, 10.0
TAIL, ALIGNED = 70, 20  # where the reward peaks: in the reference's tail, and where its mass is
IPO_MARGIN = 10.0  # the paper's beta: the log-ratio that IPO aims at, the inverse of what `ipo` calls beta
DPO_BETA, GAP = 0.1, 0.2  # pairs whose rewards differ by GAP or less are not learnt from
TEMPERATURE, MOST_WEIGHT = 0.2, 20.0  # of reward-weighted regression: exp(reward / TEMPERATURE), at most MOST_WEIGHT
LOSSES = ("BoN", "RWR", "REINFORCE", "DPO", "IPO")
DIAGNOSTICS = (
    "kl to reference",
    "kl from reference",
    "entropy",
    "largest k1 at the first step",
    "tail index",
    "reward queries",
    "gradient steps",
)
POINTS = 40  # of a curve
RATE, LONGEST = 0.1, 20_000  # of the flows
RATIO = "steps to half the mass, reverse over forward"


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
