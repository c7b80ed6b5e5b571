"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math


def learning_rate(
    step: int, total: int, *, peak: float, schedule: str, warmup_ratio: float, final_ratio: float = 0.0
) -> float:
    """The rate of step `step` (0-based) of `total`: linear warm-up, then constant, or linear or cosine decay.

    The decay would reach `final_ratio` times the peak one step after the last.

    >>> [round(learning_rate(s, 4, peak=1.0, schedule="linear", warmup_ratio=0.25), 3) for s in range(4)]
    [1.0, 1.0, 0.667, 0.333]
    """
    warmup = round(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (step - warmup) / max(1, total - warmup)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (final_ratio + (1 - final_ratio) * (1 - left))
    if schedule == "cosine":
        return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * left)))
    raise ValueError(f"unknown schedule {schedule!r}")
