"""How long packs take on this machine, measured, and the packing of a step that takes the least.

Knows: seconds of forward and backward at some numbers of tokens. Does not know: losses, runs; the caller keeps what was
measured, so that a run that goes on packs as before. Small packs pay the fixed costs of a forward often; large ones
keep more for the backward than `fused` holds, so that layers are computed twice: where the best lies depends on the
model, the dtype and the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from optative.core.errors import InputError
from optative.core.memory import release
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import score_pack

SMALLEST = 256  # tokens of the first pack that is timed; each next one has twice as many
ENOUGH = 0.97  # the search ends when doubling a pack brings the seconds a token to no less than this share
REPEATS = 2  # the best of these counts


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of packs by their number of tokens, in rising order; in between a straight line."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def predict(self, num_tokens: int) -> float:
        """Seconds of a pack.

        >>> [round(Cost((100, 200), (3.0, 5.0)).predict(n), 6) for n in (50, 150, 400)]
        [2.0, 4.0, 10.0]
        """
        if num_tokens >= self.tokens[-1]:
            return self.seconds[-1] * num_tokens / self.tokens[-1]
        (a, *_), (at_a, *_) = self.tokens, self.seconds
        slope = (self.seconds[1] - at_a) / (self.tokens[1] - a) if len(self.tokens) > 1 else at_a / a
        return float(np.interp(num_tokens, (0, *self.tokens), (max(0.0, at_a - slope * a), *self.seconds)))

    def plan(self, groups: Sequence[Group]) -> list[Pack]:
        """Of the packings by each measured size the one that is predicted to take the least time."""
        plans = [plan(groups, size) for size in self.tokens]
        return min(plans, key=lambda packs: sum(self.predict(pack.num_tokens) for pack in packs))


def measure(lm: LanguageModel, groups: Sequence[Group]) -> Cost:
    """Time forward and backward of packs of some groups, doubling their size while that pays; no weight changes.

    Ends at the number of tokens that the groups have, or that the device has memory for.
    """
    if not groups:
        raise InputError("nothing to measure a pack on")
    tokens, seconds = list[int](), list[float]()
    size = SMALLEST
    while True:
        pack = _filled(groups, size)
        if tokens and pack.num_tokens <= tokens[-1]:
            break
        try:
            found = min(_time(lm, pack) for _ in range(REPEATS + (not tokens)))  # the first call sets up kernels
        except torch.OutOfMemoryError:
            if not tokens:
                raise
            break
        finally:
            lm.model.zero_grad(set_to_none=True)
            release()
        pays = not tokens or found / pack.num_tokens < ENOUGH * seconds[-1] / tokens[-1]
        tokens.append(pack.num_tokens)
        seconds.append(found)
        if not pays:
            break
        size *= 2
    return Cost(tuple(tokens), tuple(seconds))


def _filled(groups: Sequence[Group], size: int) -> Pack:
    """The first groups that make up a number of tokens, or all; of one control, as in any pack."""
    groups = [group for group in groups if group.control == groups[0].control]
    counts = np.cumsum([group.num_tokens for group in groups])
    needed = min(int(np.searchsorted(counts, size)) + 1, len(groups))
    return Pack(tuple(groups[:needed]), tuple(range(needed)))


def _time(lm: LanguageModel, pack: Pack) -> float:
    started = time.perf_counter()
    logps = score_pack(lm, pack).logps
    assert logps is not None
    logps.sum().backward()
    if logps.device.type == "cuda":
        torch.cuda.synchronize(logps.device)
    return time.perf_counter() - started
