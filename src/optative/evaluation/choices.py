"""Which of several options a model takes, from a score for each; equal scores are no coin toss.

Knows: scores. Does not know: models, options' texts. Two runs of one model differ by rounding, so that options that are
as good as each other would flip without any change of the model; a tolerance larger than rounding rules that out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optative.core.errors import InputError

TOLERANCE = 1e-4  # nats: above float32's rounding of a sum over some dozen tokens


def take(scores: Sequence[Sequence[float]] | np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """For each item the first option whose score is within `tolerance` of the best one, [N].

    >>> take([[-3.0, -2.00001, -2.0], [-1.0, -5.0, -9.0]]).tolist()
    [1, 0]
    """
    if tolerance < 0:
        raise InputError("not a tolerance", field="tolerance", found=tolerance, expected="0 or more")
    table_NK = np.asarray(scores, float)
    if table_NK.ndim != 2 or not table_NK.size or not np.isfinite(table_NK).all():
        raise InputError("not scores", found=table_NK.shape, expected="a finite number for each item and option")
    return (table_NK >= table_NK.max(1, keepdims=True) - tolerance).argmax(1)
