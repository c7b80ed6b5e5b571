"""51. Preference training does not teach rankings: what it can turn and what not (Chen et al. 2024, arXiv:2405.19534).

Own code here: the identities (part A of the study), which need no model. Shared: rankings and bounds
(`evaluation.pairs`), losses (`optimizers.losses`), cells and pairing (`runs.study`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.record import AnyCriterion, Bound, Criterion, StudyOptions, System, command

if TYPE_CHECKING:
    import numpy as np

    from optative.runs.study import Measured

VERSION = 1  # raised when a change of code moves the cells' numbers
IDENTITIES, REAL, TINY = "identities", "SmolLM2-135M-Instruct on HH pairs", "tiny LM with DPO"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines of parts A, B and C; B draws nothing, so that one seed says all."""

    def bound(metric: str, arm: str, direction: Any, limit: float, seeds: int) -> Bound:
        return Bound(metric=metric, arm=arm, direction=direction, limit=limit, seeds=seeds)

    return (
        bound("pairs on which the theorem holds", IDENTITIES, "at_least", 1.0, 3),
        bound("largest error of the idealised margin, nats", IDENTITIES, "at_most", 1e-3, 3),
        bound("ranking accuracy per token", REAL, "at_least", 0.40, 1),
        bound("ranking accuracy per token", REAL, "at_most", 0.62, 1),
        bound("largest difference to scoring token by token, nats", REAL, "at_most", 1e-3, 1),
        bound("largest difference between two calls, nats", REAL, "at_most", 0.0, 1),
        bound("flip rate at the lowest loss", TINY, "at_most", 0.25, 3),
        bound("flip rate of the easiest quarter over the hardest", TINY, "at_least", 3.0, 3),
        bound("reward accuracy minus ranking accuracy", TINY, "at_least", 0.10, 3),
        bound("AUC of the required loss on training pairs", TINY, "at_least", 0.95, 3),
        bound("Spearman correlation of gamma and ranking accuracy", TINY, "at_most", -0.8, 3),
        Criterion(
            metric="step of the peak",
            arm="win rate by an exact judge",
            baseline="ranking accuracy",
            smallest_effect=1,
            direction="lower",
            seeds=3,
        ),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="So far the identities only, on numbers drawn at random. The real model on real pairs, the training of a "
    "tiny language model, and the win rate by an exact judge are not run yet: their criteria stay open.",
)


class Study(StudyOptions):
    pairs: int = Field(10_000, ge=1, description="Random pairs for the theorem.")
    problems: int = Field(50, ge=1, description="Two-answer problems for each beta.")


FULL = Study(seeds=(0, 1, 2))


def run(study: Study, folder: Path) -> dict[str, Any]:
    from optative.runs.study import Arm, Metric
    from optative.runs.study import study as run_study

    metrics = {"pairs on which the theorem holds": Metric("independent", (0.0, 1.0))}
    metrics |= {"largest error of the idealised margin, nats": Metric("independent")}
    return run_study(
        folder,
        name="preference-rankings",
        title="What preference training can turn round",
        command=command(51, study, FULL),
        version=VERSION,
        arms={IDENTITIES: Arm(options=study.model_dump(exclude={"seeds"}))},
        seeds=study.seeds,
        metrics=metrics,
        cell=identities,
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def identities(options: Mapping[str, Any], seed: int) -> Measured:
    """The theorem on random pairs, and the idealised margin against policies that were optimised numerically."""
    import numpy as np

    from optative.core.rng import stream
    from optative.evaluation.pairs import BETAS, idealised_margin
    from optative.runs.study import Measured

    rng = stream(seed, "identities")
    beta = rng.choice(BETAS, options["pairs"])
    holds = theorem_holds(rng.normal(0, 5, options["pairs"]), rng.normal(0, 5, options["pairs"]), beta)
    reference, shares = rng.normal(0, 5, options["problems"]), rng.uniform(0.02, 0.98, options["problems"])
    error = np.abs(optimised_margin(reference, shares, BETAS) - idealised_margin(reference, shares, BETAS))
    return Measured(
        {"pairs on which the theorem holds": holds.mean(), "largest error of the idealised margin, nats": error.max()}
    )


def theorem_holds(margin_B: np.ndarray, difficulty_B: np.ndarray, beta_B: np.ndarray) -> np.ndarray:
    """Is a pair ranked right exactly when its DPO loss is below the required one? (theorem 4.1), [B] of bool."""
    import numpy as np
    import torch

    from optative.evaluation.pairs import required_loss
    from optative.optimizers.losses.pairs import dpo

    right_B = np.zeros(len(margin_B), bool)
    for beta in np.unique(beta_B):
        own = beta_B == beta
        chosen, rejected = torch.tensor(margin_B[own]), torch.zeros(int(own.sum()), dtype=torch.float64)
        loss = dpo(chosen, rejected, rejected, torch.tensor(difficulty_B[own]), beta=float(beta)).numpy()
        right_B[own] = (loss < required_loss(difficulty_B[own], float(beta))) == (margin_B[own] > 0)
    return right_B


def optimised_margin(reference_B: np.ndarray, shares_B: np.ndarray, betas_K: tuple[float, ...]) -> np.ndarray:
    """Margins, [K, B], of two-answer policies that minimise the expected DPO loss over voters, by L-BFGS."""
    import numpy as np
    import torch

    from optative.optimizers.losses.pairs import dpo

    reference_B2 = torch.tensor(np.stack([reference_B, np.zeros_like(reference_B)], 1)).log_softmax(-1)
    votes_B, found = torch.tensor(shares_B), []
    for beta in betas_K:
        scaled_B2 = torch.zeros_like(reference_B2, requires_grad=True)  # logits times beta: one scale for every beta
        optimizer = torch.optim.LBFGS(
            [scaled_B2], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def closure(scaled_B2: Any = scaled_B2, optimizer: Any = optimizer, beta: float = beta) -> torch.Tensor:
            optimizer.zero_grad()
            policy_B2 = (scaled_B2 / beta).log_softmax(-1)
            loss = dpo(*policy_B2.unbind(-1), *reference_B2.unbind(-1), confidence_B=votes_B, beta=beta).sum()  # type: ignore[misc]
            loss.backward()
            return loss

        optimizer.step(closure)
        policy_B2 = (scaled_B2.detach() / beta).log_softmax(-1)
        found.append((policy_B2[:, 0] - policy_B2[:, 1]).numpy())
    return np.stack(found)
