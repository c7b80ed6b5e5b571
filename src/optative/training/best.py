"""The best evaluation so far, and whether it is time to stop.

Knows: steps and the held-out losses measured there. Does not know: weights, files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

METRIC = "eval_loss"  # smaller is better


@dataclass
class Best:
    """`step` and `value` of the best evaluation (step 0: none yet); `waited`: evaluations since then."""

    step: int = 0
    value: float = math.inf
    waited: int = 0

    def see(self, step: int, value: float) -> bool:
        """Take note of an evaluation; whether it is the best so far. Of equal ones the first is the best.

        >>> best = Best()
        >>> [best.see(step, value) for step, value in ((5, 0.7), (10, 0.6), (15, 0.6), (20, 0.8))], best
        ([True, True, False, False], Best(step=10, value=0.6, waited=2))
        """
        if value < self.value:
            self.step, self.value, self.waited = step, value, 0
            return True
        self.waited += 1
        return False
