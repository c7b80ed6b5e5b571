"""What holds for every preference training: a theorem and a formula, checked on numbers (arXiv:2405.19534).

Knows: the loss on pairs, the bounds of `evaluation.pairs`. Does not know: models, arms, criteria.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from optative.runs.study import Measured


def identities(options: Mapping[str, Any], seed: int) -> Measured:
    """The theorem on random pairs, and the idealised margin against policies that were optimised numerically."""
    import numpy as np

    from optative.core.rng import stream
    from optative.evaluation.pairs import BETAS, idealised_margin
    from optative.runs.study import Measured

    rng = stream(seed, "identities")
    beta = rng.choice(BETAS, options["random_pairs"])
    holds = theorem_holds(rng.normal(0, 5, options["random_pairs"]), rng.normal(0, 5, options["random_pairs"]), beta)
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
            (first_B, second_B), (ref_first_B, ref_second_B) = policy_B2.unbind(-1), reference_B2.unbind(-1)
            loss = dpo(first_B, second_B, ref_first_B, ref_second_B, confidence_B=votes_B, beta=beta).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        policy_B2 = (scaled_B2.detach() / beta).log_softmax(-1)
        found.append((policy_B2[:, 0] - policy_B2[:, 1]).numpy())
    return np.stack(found)
