"""Which pairs a training turns round, step by step: flip analysis (Chen et al. 2024, arXiv:2405.19534, section 4).

Knows: per-step log-probabilities of the same pairs (`data.pair_steps`). Does not know: models, how they were trained.
Each pair is in one of four classes at each step: right or wrong under the reference, right or wrong now. Right means
that the chosen answer has the strictly larger log-probability (whole answers, no reference); an equal one is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.data.pair_steps import PairSteps
from optative.evaluation.pairs import difficulty, half_ties, ranked_right

CLASSES = ("right_right", "wrong_right", "right_wrong", "wrong_wrong")  # reference, then now


@dataclass(frozen=True)
class PairCurves:
    """Steps S. `share_S`, `loss_S`, `margin_S` by class: share of pairs, mean DPO loss and mean reward margin of the
    class (NaN where it is empty). `flip_rate_S`: share of the initially wrong pairs that are right now; `lost_rate_S`:
    share of the initially right ones that are wrong now; both NaN without such pairs."""

    steps_S: np.ndarray
    share_S: Mapping[str, np.ndarray]
    loss_S: Mapping[str, np.ndarray]
    margin_S: Mapping[str, np.ndarray]
    mean_loss_S: np.ndarray
    ranking_S: np.ndarray
    reward_S: np.ndarray
    flip_rate_S: np.ndarray
    lost_rate_S: np.ndarray
    lowest: int

    @property
    def lowest_step(self) -> int:
        """The step of the lowest mean loss; the first of several."""
        return int(self.steps_S[self.lowest])


def pair_curves(found: PairSteps) -> PairCurves:
    """The four classes over the steps, with the DPO loss `-log sigmoid(beta * ((lw - ll) - (rw - rl)))`.

    `right_right` and the other names say the reference first. `ranking_S` is the ranking accuracy, `reward_S` the
    reward accuracy that trainers log (log-ratios; 0.5 for a policy that has not moved): their distance is what the
    paper warns of.
    """
    margin_SB = found.chosen_SB - found.rejected_SB
    before_B = found.ref_chosen_B > found.ref_rejected_B
    now_SB = margin_SB > 0
    reward_SB = found.beta * (margin_SB - (found.ref_chosen_B - found.ref_rejected_B))
    loss_SB = np.logaddexp(0.0, -reward_SB)
    classes = dict(zip(CLASSES, (before_B & now_SB, ~before_B & now_SB, before_B & ~now_SB, ~before_B & ~now_SB)))
    mean_loss_S = loss_SB.mean(axis=1)
    return PairCurves(
        np.asarray(found.steps_S),
        {name: mask_SB.mean(axis=1) for name, mask_SB in classes.items()},
        {name: _mean(loss_SB, mask_SB) for name, mask_SB in classes.items()},
        {name: _mean(reward_SB, mask_SB) for name, mask_SB in classes.items()},
        mean_loss_S,
        half_ties(margin_SB).mean(axis=1),
        half_ties(reward_SB).mean(axis=1),
        _mean(now_SB, np.broadcast_to(~before_B, now_SB.shape)),
        _mean(~now_SB, np.broadcast_to(before_B, now_SB.shape)),
        int(np.argmin(mean_loss_S)),
    )


def lowest_step(found: PairSteps, gamma: float = 1.0) -> int:
    """Index of the measurement after the start with the lowest mean loss; the first of several.

    The loss is `-log sigmoid(beta * (m - gamma * m_ref))` with the margins m of log-probabilities: that of DPO, and
    of its variant with another share of the reference. The start is no result of a training, so it is not chosen.
    """
    if len(found.steps_S) < 2:
        raise InputError("nothing was measured after the start", field="steps", found=found.steps_S.tolist())
    margin_SB = found.chosen_SB - found.rejected_SB
    loss_SB = np.logaddexp(0.0, -found.beta * (margin_SB - gamma * (found.ref_chosen_B - found.ref_rejected_B)))
    return 1 + int(np.argmin(loss_SB[1:].mean(axis=1)))


def flips_by_difficulty(
    ref_chosen_B: Any, ref_rejected_B: Any, now_B: Any, *, parts: int = 4, level: float = 0.95, seed: int = 0
) -> list[dict[str, Any]]:
    """The pairs that the reference has wrong, in equal parts by difficulty, easiest first: how many are right now.

    now_B: whether each pair is ranked right now. One row a part: `n`, `difficulty` [smallest, largest], `flipped`
    (share), `interval`.
    """
    hard_B, now = difficulty(ref_chosen_B, ref_rejected_B), np.asarray(now_B, float)
    wrong = np.flatnonzero(hard_B >= 0)
    rows = []
    for part in np.array_split(wrong[np.argsort(hard_B[wrong], kind="stable")], parts):
        if len(part):
            share = stats.mean(now[part], bounds=(0, 1), level=level, seed=seed)
            ends = [float(hard_B[part].min()), float(hard_B[part].max())]
            rows.append(
                {"n": len(part), "difficulty": ends, "flipped": share.value, "interval": share.interval.to_list()}
            )
    return rows


def describe_curves(found: PairSteps, *, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Everything about one file of curves as plain JSON values; a number that does not exist is None."""
    curves = pair_curves(found)
    wrong = found.ref_chosen_B <= found.ref_rejected_B
    at = curves.lowest
    now = ranked_right(found.chosen_SB[at], found.rejected_SB[at])
    reward = half_ties((found.chosen_SB[at] - found.rejected_SB[at]) - (found.ref_chosen_B - found.ref_rejected_B))
    gap = stats.paired_difference(now, reward, bounds=(0, 1), level=level, seed=seed)
    flipped = None
    if wrong.any():
        right = (found.chosen_SB[at] > found.rejected_SB[at])[wrong].astype(float)
        share = stats.mean(right, bounds=(0, 1), level=level, seed=seed)
        flipped = {"value": share.value, "interval": share.interval.to_list(), "n": share.n}
    numbers = {
        "mean_loss": curves.mean_loss_S,
        "ranking_accuracy": curves.ranking_S,
        "reward_accuracy": curves.reward_S,
        "flip_rate": curves.flip_rate_S,
        "lost_rate": curves.lost_rate_S,
    }
    return {
        "kind": "curves",
        "part": found.part,
        "beta": found.beta,
        "n": len(found.ids),
        "initially_wrong": int(wrong.sum()),
        "steps": curves.steps_S.tolist(),
        **{name: _plain(values) for name, values in numbers.items()},
        "classes": {
            name: {
                "share": _plain(curves.share_S[name]),
                "loss": _plain(curves.loss_S[name]),
                "margin": _plain(curves.margin_S[name]),
            }
            for name in CLASSES
        },
        "lowest_loss": {
            "step": curves.lowest_step,
            "loss": float(curves.mean_loss_S[at]),
            "flip_rate": flipped,
            "ranking_accuracy": gap.base,
            "reward_accuracy": gap.other,
            "reward_minus_ranking": {"value": gap.difference, "interval": gap.interval.to_list()},
            "by_difficulty": flips_by_difficulty(
                found.ref_chosen_B,
                found.ref_rejected_B,
                found.chosen_SB[at] > found.rejected_SB[at],
                level=level,
                seed=seed,
            ),
        },
    }


def _mean(values_SB: np.ndarray, mask_SB: np.ndarray) -> np.ndarray:
    counts = mask_SB.sum(axis=1)
    sums = np.where(mask_SB, values_SB, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
