"""What a file of pairs says about a model and its reference: the content of `diagnosis.json`.

Knows: log-probabilities and token counts of both models, vote shares; which figures and warnings follow from them. Does
not know: models, files, texts. The formulas are those of `pairs` and `flips`; this module puts intervals to them and
calls by name what a reader must not overlook.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.evaluation import pairs
from optative.evaluation.figures import score_figure, warning
from optative.evaluation.flips import anatomy
from optative.evaluation.pair_curves import flips_by_difficulty

FEW_PAIRS = 30
BINS = 30
BY_LENGTH = 0.9  # a model that ranks the shorter answer first this often is a ruler
VARIANTS = ("raw", "per_token")


@dataclass(frozen=True)
class Scored:
    """Pairs B under one model: summed log-probabilities and counts of the tokens that they were summed over."""

    chosen_B: np.ndarray
    rejected_B: np.ndarray
    chosen_tokens_B: np.ndarray
    rejected_tokens_B: np.ndarray

    def margin(self, variant: str) -> np.ndarray:
        tokens = (self.chosen_tokens_B, self.rejected_tokens_B) if variant == "per_token" else ()
        return pairs.margin(self.chosen_B, self.rejected_B, *tokens)

    @property
    def shorter_B(self) -> np.ndarray:
        """1 where the chosen answer is the shorter one, 0.5 where both have as many tokens."""
        return pairs.half_ties(self.rejected_tokens_B - self.chosen_tokens_B)


def diagnose(
    ids: Sequence[str],
    model: Scored,
    reference: Scored,
    shares_B: Any,
    *,
    betas: Sequence[float] = pairs.BETAS,
    prompts: Sequence[Hashable] | None = None,
    hardest: int = 20,
    level: float = stats.LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures as plain JSON values; numbers that do not exist are None. Intervals resample prompts.

    Returns `metrics` (model, reference and their paired difference), `length`, `idealised` and `gap` (each raw and per
    token), `difficulty`, `hardest` (indices and numbers of the pairs that the reference gets most wrong), `flips` from
    reference to model, and `warnings`.
    """
    if len(ids) != len(model.chosen_B):
        raise InputError(f"{len(ids)} ids for {len(model.chosen_B)} pairs")
    betas = sorted(betas)
    shares = np.asarray(shares_B, float)
    right = {v: pairs.half_ties(model.margin(v)) for v in VARIANTS}
    ideal = {v: pairs.idealised_right(reference.margin(v), shares, betas) for v in VARIANTS}
    moved = model.margin("raw") - reference.margin("raw")
    sampling: dict[str, Any] = {"level": level, "seed": seed}

    def figure(name: str, own: Any, other: Any, bounds: tuple[float, float] | None = (0, 1)) -> dict[str, Any]:
        made = score_figure(
            name, "pairs", list(other), list(own), clusters=prompts or list(ids), bounds=bounds,
            measured_by="", independence="same_rule_held_out", **sampling,
        ).to_json()  # fmt: skip
        names = {"base": "reference", "steered": "model"}
        kept = {key: value for key, value in made.items() if key not in ("split", "measured_by", "independence")}
        return {_renamed(key, names): value for key, value in kept.items()}

    def share(values: np.ndarray) -> dict[str, Any]:
        found = stats.mean(values, clusters=prompts, bounds=(0, 1), **sampling)
        return {"value": found.value, "interval": found.interval.to_list(), "n": found.n}

    metrics = [
        figure("ranking_accuracy", right["raw"], pairs.half_ties(reference.margin("raw"))),
        figure("ranking_accuracy_per_token", right["per_token"], pairs.half_ties(reference.margin("per_token"))),
        figure("reward_accuracy", pairs.half_ties(moved), np.full(len(ids), 0.5)),
        figure("log_ratio_margin", moved, np.zeros(len(ids)), None),
    ]
    length = _length(model, reference, right, share, prompts, sampling)
    found = {
        "n": len(ids),
        "prompts": len(set(prompts)) if prompts is not None else len(ids),
        "level": level,
        "betas": list(betas),
        "metrics": metrics,
        "length": length,
        "idealised": {v: _idealised(ideal[v], betas, share) for v in VARIANTS},
        "gap": {
            v: _difference(right[v], pairs.median_row(ideal[v]), prompts, sampling)
            for v in VARIANTS
        },
        "difficulty": _difficulty(reference),
        "hardest": _hardest(ids, model, reference, shares, betas, hardest),
        "flips": {
            v: anatomy(
                (reference.margin(v) > 0).astype(int).tolist(), (model.margin(v) > 0).astype(int).tolist(),
                clusters=prompts, **sampling,
            )
            for v in VARIANTS
        },
        "flips_by_difficulty": flips_by_difficulty(
            reference.chosen_B, reference.rejected_B, model.margin("raw") > 0, level=level, seed=seed
        ),
    }  # fmt: skip
    return {**found, "warnings": _warnings(found, moved, shares)}


def _idealised(right_KB: np.ndarray, betas: Sequence[float], share: Any) -> dict[str, Any]:
    rows = [{"beta": beta, **share(row), "not_fixable": int((row == 0).sum())} for beta, row in zip(betas, right_KB)]
    values = [row["value"] for row in rows]
    return {"by_beta": rows, "min": min(values), "median": float(np.median(values)), "max": max(values)}


def _length(
    model: Scored, reference: Scored, right: Mapping[str, np.ndarray], share: Any, prompts: Any, sampling: Any
) -> dict[str, Any]:
    """The baseline that knows lengths only, and how often each model ranks the shorter answer first."""
    from scipy.stats import spearmanr

    shorter = model.shorter_B
    unequal = shorter != 0.5
    difference = model.rejected_tokens_B - model.chosen_tokens_B
    hard = pairs.difficulty(reference.chosen_B, reference.rejected_B)
    varied = len(hard) > 2 and np.ptp(difference) > 0 and np.ptp(hard) > 0
    agreement = {
        name: float((pairs.half_ties(side.margin("raw")) == shorter)[unequal].mean()) if unequal.any() else None
        for name, side in (("model", model), ("reference", reference))
    }
    return {
        "chosen_is_shorter": share(shorter),
        "ranking_minus_shorter": _difference(shorter, right["raw"], prompts, sampling),
        "equal_length": int((~unequal).sum()),
        "model_ranks_shorter_first": agreement["model"],
        "reference_ranks_shorter_first": agreement["reference"],
        "rank_correlation_with_difficulty": float(spearmanr(-difference, hard).statistic) if varied else None,
    }


def _difference(base: np.ndarray, other: np.ndarray, prompts: Any, sampling: Any) -> dict[str, Any]:
    found = stats.paired_difference(base, other, clusters=prompts, bounds=(0, 1), **sampling)
    return {"value": found.difference, "interval": found.interval.to_list(), "n": found.n}


def _difficulty(reference: Scored) -> dict[str, Any]:
    hard = pairs.difficulty(reference.chosen_B, reference.rejected_B)
    counts, edges = np.histogram(hard, BINS)
    return {
        "mean": float(hard.mean()),
        "standard_deviation": float(hard.std(ddof=1)) if len(hard) > 1 else None,
        "quantiles": {f"{q:g}": float(np.quantile(hard, q)) for q in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)},
        "reference_wrong": int((hard > 0).sum()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _hardest(
    ids: Sequence[str], model: Scored, reference: Scored, shares: np.ndarray, betas: Sequence[float], most: int
) -> list[dict[str, Any]]:
    """The pairs of the largest difficulty, the hardest first; equal ones in the order of the file."""
    hard = pairs.difficulty(reference.chosen_B, reference.rejected_B)
    limit = pairs.largest_beta(hard, shares)
    required = [pairs.required_loss(hard, beta) for beta in betas]
    picked = [int(i) for i in np.argsort(-hard, kind="stable")[:most] if hard[i] > 0]
    return [
        {
            "index": i,
            "id": ids[i],
            "difficulty": float(hard[i]),
            "share": float(shares[i]),
            "largest_beta": float(limit[i]),
            "required_loss": [float(row[i]) for row in required],
            "chosen_tokens": int(reference.chosen_tokens_B[i]),
            "rejected_tokens": int(reference.rejected_tokens_B[i]),
            "model_right": bool(model.chosen_B[i] > model.rejected_B[i]),
        }
        for i in picked
    ]


def _warnings(found: Mapping[str, Any], moved: np.ndarray, shares: np.ndarray) -> list[dict[str, str]]:
    warnings = []
    if found["n"] < FEW_PAIRS:
        warnings.append(warning("few_pairs", f"Only {found['n']} pairs were scored; the intervals are wide."))
    if not moved.any():
        message = "Model and reference give every pair the same margin: they are the same model as far as this shows."
        warnings.append(warning("same_model", message))
    against = int((shares < 0.5).sum())
    if against:
        message = f"{against} pairs have a vote share below one half: most voters preferred the rejected answer."
        warnings.append(warning("label_against_votes", message))
    ruler = found["length"]["model_ranks_shorter_first"]
    if ruler is not None and ruler >= BY_LENGTH:
        message = (
            f"The model gives the shorter answer more probability in {ruler:.0%} of the pairs: the ranking of whole "
            "answers is mostly one of length. Read the figures per token beside it."
        )
        warnings.append(warning("ranks_by_length", message))
    low, high = found["length"]["ranking_minus_shorter"]["interval"]
    if low is not None and low <= 0 <= high:
        message = "The ranking accuracy is not told apart from that of the rule that the shorter answer is better."
        warnings.append(warning("no_better_than_length", message))
    return warnings


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if key == old or key == f"{old}_interval":
            return key.replace(old, new)
    return key
