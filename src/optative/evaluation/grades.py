"""What length alone would tell of grades. Knows: grades, lengths. Does not know: texts, models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optative.core.errors import InputError


def right_by_length(
    seen_lengths_M: Sequence[float] | np.ndarray,
    seen_grades_M: Sequence[int] | np.ndarray,
    lengths_N: Sequence[float] | np.ndarray,
    grades_N: Sequence[int] | np.ndarray,
) -> np.ndarray:
    """Which of N grades someone who reads nothing but lengths would name, [N] of bool.

    He names the usual grade of the things that he saw with the nearest length; of equally usual ones the lowest, of two
    equally near lengths the shorter.

    >>> right_by_length([9, 9, 5, 5], [0, 0, 1, 1], [8, 6, 9], [0, 0, 0]).tolist()
    [True, False, True]
    """
    if not len(seen_lengths_M) or len(seen_lengths_M) != len(seen_grades_M) or len(lengths_N) != len(grades_N):
        found = [len(seen_lengths_M), len(seen_grades_M), len(lengths_N), len(grades_N)]
        raise InputError("lengths and grades do not go together", found=found)
    grades = np.asarray(seen_grades_M)
    known_U, where_M = np.unique(np.asarray(seen_lengths_M, float), return_inverse=True)
    counts_UK = np.zeros((len(known_U), grades.max() + 1))
    np.add.at(counts_UK, (where_M, grades), 1)
    nearest_N = np.abs(np.asarray(lengths_N, float)[:, None] - known_U).argmin(1)
    return counts_UK.argmax(1)[nearest_N] == np.asarray(grades_N)
