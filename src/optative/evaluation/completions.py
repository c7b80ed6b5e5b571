"""How likely a model finds held-out answers that it should give: for supervised training on completions.

Knows: summed log-probabilities and lengths under both models. Does not know: models, texts.
`nll_per_token`: mean over the answers of -log p per token, in nats; lower is better, and exp of it is the perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optative.evaluation.figures import score_figure, warning

FEW_ANSWERS = 30


def assemble_completions(
    rows: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    level: float = 0.95,
    measured_by: str = "held-out answers of the same source",
) -> dict[str, Any]:
    """The content of `evaluation.json` for supervised training.

    rows: one held-out answer each: `id`, `prompt_id`, `num_tokens`, the summed log-probabilities `base` and `steered`.
    """
    figure = score_figure(
        "nll_per_token",
        "held_out",
        [-row["base"] / row["num_tokens"] for row in rows],
        [-row["steered"] / row["num_tokens"] for row in rows],
        clusters=[str(row["prompt_id"]) for row in rows],
        bounds=None,
        level=level,
        seed=seed,
        measured_by=measured_by,
        independence="same_rule_held_out",
    )
    found = []
    if len(rows) < FEW_ANSWERS:
        found.append(warning("few_answers", f"Only {len(rows)} answers were held out; the intervals are wide."))
    if figure.interval.low is not None and figure.interval.low > 0:
        found.append(warning("overfitting", "The steered model finds the held-out answers less likely than the base."))
    return {
        "metrics": [figure.to_json()],
        "by_kind": [],
        "flips": {},
        "warnings": found,
        "mode": "preferences",
        "criteria": [],
    }
