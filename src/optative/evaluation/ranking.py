"""Does a model rank held-out pairs as people did? For alignment on preferences, where no rule can check an answer.

Knows: summed log-probabilities of chosen and rejected answers under both models. Does not know: models, texts.

- `ranking_accuracy`: share of pairs whose chosen answer has the larger log-probability; equal ones count half (Chen et
  al. 2024, arXiv:2405.19534). Sums favour short answers: `ranking_accuracy_per_token` compares means a token.
- `reward_accuracy`: the same for the implicit reward `beta * (logp - base logp)` (Rafailov et al. 2023,
  arXiv:2305.18290). The base has reward 0 on both sides, hence 0.5.
- `reward_margin`: reward of chosen minus rejected; `chosen_logp`, `rejected_logp`: mean summed log-probability. Both
  usually fall in DPO; when the chosen ones fall too, likelihood was displaced (Razin et al. 2024, arXiv:2410.08847).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optative.core.errors import InputError
from optative.evaluation.figures import Figure, score_figure, warning
from optative.evaluation.pairs import half_ties, ranked_right

FEW_PAIRS = 30
NUMBERS = ("base_chosen", "base_rejected", "steered_chosen", "steered_rejected")
TOKENS = ("num_tokens_chosen", "num_tokens_rejected")


def assemble_ranking(
    rows: Sequence[Mapping[str, Any]],
    *,
    beta: float,
    seed: int = 0,
    level: float = 0.95,
    measured_by: str = "held-out pairs of the same preferences",
) -> dict[str, Any]:
    """The content of `evaluation.json` for an alignment on pairs.

    rows: one held-out pair each: `id`, the summed log-probabilities `base_chosen`, `base_rejected`, `steered_chosen`,
    `steered_rejected`, and where known `num_tokens_chosen`, `num_tokens_rejected`; `prompt_id` groups pairs of one
    prompt. The pairs come from those who also labelled the training pairs, so all is `same_rule_held_out`.
    Raises InputError without rows, for an id that occurs twice, and for numbers that are not finite.
    """
    _verify(rows)
    base_chosen, base_rejected, chosen, rejected = (np.array([float(r[name]) for r in rows]) for name in NUMBERS)
    margin = beta * ((chosen - base_chosen) - (rejected - base_rejected))
    pairs: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float] | None]] = {
        "ranking_accuracy": (ranked_right(base_chosen, base_rejected), ranked_right(chosen, rejected), (0, 1)),
        "reward_accuracy": (np.full(len(rows), 0.5), half_ties(margin), (0, 1)),
        "reward_margin": (np.zeros(len(rows)), margin, None),
        "chosen_logp": (base_chosen, chosen, None),
        "rejected_logp": (base_rejected, rejected, None),
    }
    if all(row.get(name) for row in rows for name in TOKENS):
        own, other = (np.array([float(r[name]) for r in rows]) for name in TOKENS)
        before = ranked_right(base_chosen, base_rejected, own, other)
        pairs["ranking_accuracy_per_token"] = (before, ranked_right(chosen, rejected, own, other), (0, 1))
    figures = {
        name: score_figure(
            name,
            "held_out",
            base.tolist(),
            steered.tolist(),
            clusters=[str(row.get("prompt_id", row["id"])) for row in rows],
            bounds=bounds,
            level=level,
            seed=seed,
            measured_by=measured_by,
            independence="same_rule_held_out",
        )
        for name, (base, steered, bounds) in pairs.items()
    }
    return {
        "metrics": [figure.to_json() for figure in figures.values()],
        "by_kind": [],
        "flips": {},
        "warnings": _warnings(figures),
        "mode": "preferences",
        "criteria": [],
    }


def _verify(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise InputError("no held-out pair to evaluate", hint="Keep a larger part of the pairs for the evaluation.")
    seen: set[str] = set()
    for row in rows:
        if str(row["id"]) in seen:
            raise InputError("a held-out pair occurs twice", field="id", found=row["id"])
        seen.add(str(row["id"]))
        for name in NUMBERS:
            if not np.isfinite(row[name]):
                raise InputError("not a finite log-probability", field=f"{row['id']}.{name}", found=row[name])


def _warnings(figures: Mapping[str, Figure]) -> list[dict[str, str]]:
    found = []
    accuracy, chosen, ranking = figures["reward_accuracy"], figures["chosen_logp"], figures["ranking_accuracy"]
    if accuracy.n < FEW_PAIRS:
        found.append(warning("few_pairs", f"Only {accuracy.n} pairs were held out; the intervals are wide."))
    low, high = accuracy.interval.low, accuracy.interval.high
    if low is not None and high is not None and low <= 0 <= high:
        message = (
            f"The rewards order {accuracy.steered:.1%} of the held-out pairs right; the interval includes chance, 50 %."
        )
        found.append(warning("uncertain", message))
    if chosen.interval.high is not None and chosen.interval.high < 0:
        message = (
            f"The chosen answers lost {-(chosen.difference or 0):.1f} nats of log-probability on held-out pairs too."
        )
        found.append(warning("likelihood_displacement", message))
    if ranking.interval.high is not None and ranking.interval.high < 0:
        change = f"{ranking.base:.1%} to {ranking.steered:.1%}"
        found.append(warning("ranking_fell", f"The steered model ranks fewer held-out pairs as people did: {change}."))
    return found
