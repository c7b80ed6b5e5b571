"""One measured figure: base beside steered, the paired difference, how sure it is, and who judged.

Knows: lists of paired scores. Does not know: where the scores come from.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optative.core import stats
from optative.core.stats import Interval
from optative.evaluation.independence import Independence


@dataclass(frozen=True)
class Figure:
    """`difference` is steered minus base and `interval` belongs to it; both sides carry an interval of their own too.

    Where only one model was measured, it stands in `base`; `steered` and `difference` are None.
    `extra`: further fields of this figure, written beside the others.
    """

    name: str
    split: str
    base: float | None
    steered: float | None
    difference: float | None
    interval: Interval
    n: int
    measured_by: str
    independence: Independence
    base_interval: Interval | None = None
    steered_interval: Interval | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        own = {
            f"{side}_interval": i.to_list() for side in ("base", "steered") if (i := getattr(self, f"{side}_interval"))
        }
        return {
            "name": self.name,
            "split": self.split,
            "base": self.base,
            "steered": self.steered,
            "difference": self.difference,
            "interval": self.interval.to_list(),
            "level": self.interval.level,
            "n": self.n,
            "measured_by": self.measured_by,
            "independence": self.independence,
            "method": self.interval.method,
            **own,
            **self.extra,
        }


def score_figure(
    name: str,
    split: str,
    base: Sequence[float],
    steered: Sequence[float] | None,
    *,
    clusters: Sequence[Hashable],
    bounds: tuple[float, float] | None,
    level: float,
    seed: int,
    measured_by: str,
    independence: Independence,
    extra: Mapping[str, Any] | None = None,
) -> Figure:
    """The figure of scores per item; item i of `base` and of `steered` is the same prompt, `clusters[i]` its source."""
    own = stats.mean(base, clusters=clusters, bounds=bounds, level=level, seed=seed)
    if steered is None:
        nothing = Interval(None, None, level, "undefined")
        return Figure(
            name,
            split,
            own.value,
            None,
            None,
            nothing,
            own.n,
            measured_by,
            independence,
            own.interval,
            None,
            extra or {},
        )
    paired = stats.paired_difference(base, steered, clusters=clusters, bounds=bounds, level=level, seed=seed)
    other = stats.mean(steered, clusters=clusters, bounds=bounds, level=level, seed=seed)
    return Figure(
        name,
        split,
        paired.base,
        paired.other,
        paired.difference,
        paired.interval,
        paired.n,
        measured_by,
        independence,
        own.interval,
        other.interval,
        extra or {},
    )


def warning(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
