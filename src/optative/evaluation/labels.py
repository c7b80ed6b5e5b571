"""Does a model find held-out answers likelier where they were called desirable, and less likely where not?

For alignment on labels of single answers (thumbs up, thumbs down). Knows: summed log-probabilities under both models.
Does not know: models, texts.

- `label_accuracy`: share of answers whose implicit reward `logp - base logp` has the sign of their label; 0 counts
  half, so that the base has 0.5 (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1, with the reference point at 0).
- `label_margin`: that reward times beta, counted against undesirable answers.
- `desirable_logp`, `undesirable_logp`: mean summed log-probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optative.evaluation.figures import score_figure, warning

FEW_ANSWERS = 30


def assemble_labels(
    rows: Sequence[Mapping[str, Any]],
    *,
    beta: float,
    seed: int = 0,
    level: float = 0.95,
    measured_by: str = "held-out labels of the same people",
) -> dict[str, Any]:
    """The content of `evaluation.json` for an alignment on labels.

    rows: one held-out answer each: `id`, `prompt_id`, `desirable` (bool), the summed log-probabilities `base` and
    `steered`. The labels come from those who also labelled the training answers: `same_rule_held_out`.
    """
    sign = np.array([1.0 if row["desirable"] else -1.0 for row in rows])
    base, steered = (np.array([float(row[name]) for row in rows]) for name in ("base", "steered"))
    margin = beta * sign * (steered - base)
    everything = np.arange(len(rows))
    measured: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float] | None]] = {
        "label_accuracy": (everything, np.full(len(rows), 0.5), (np.sign(margin) + 1) / 2, (0, 1)),
        "label_margin": (everything, np.zeros(len(rows)), margin, None),
        "desirable_logp": (np.flatnonzero(sign > 0), base, steered, None),
        "undesirable_logp": (np.flatnonzero(sign < 0), base, steered, None),
    }
    figures = [
        score_figure(
            name,
            "held_out",
            before[some].tolist(),
            after[some].tolist(),
            clusters=[str(rows[i]["prompt_id"]) for i in some],
            bounds=bounds,
            level=level,
            seed=seed,
            measured_by=measured_by,
            independence="same_rule_held_out",
        )
        for name, (some, before, after, bounds) in measured.items()
        if len(some)
    ]
    few = f"Only {len(rows)} labelled answers were held out; the intervals are wide."
    return {
        "metrics": [figure.to_json() for figure in figures],
        "by_kind": [],
        "flips": {},
        "warnings": [warning("few_labels", few)] if len(rows) < FEW_ANSWERS else [],
        "mode": "preferences",
        "criteria": [],
    }
