"""Which number format the frozen weights get: measured, chosen, and said in words.

Knows: matrix products of a model's shapes on this machine. Does not know: models, adapters (they stay float32).
bfloat16 halves the memory and is several times faster where the processor multiplies it natively (AMX, AVX512-BF16,
GPUs since Ampere); on other processors it is emulated and slower than float32. A flag of the processor does not tell:
measure.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

from optative.core.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

NAMES = ("auto", "float32", "bfloat16")
# Below this gain the lower precision is not worth it; the measurement itself varies by about a tenth.
SMALLEST_GAIN = 1.25
_SECONDS = 0.25
_ROWS = 256


def choose_dtype(
    name: str, device: torch.device, *, hidden: int = 576, intermediate: int = 1536
) -> tuple[torch.dtype, str]:
    """The dtype of the frozen weights and the reason in words, e.g. `bfloat16 is 2.9 times as fast as float32 here`.

    `hidden`, `intermediate`: widths of the model's largest repeated linear layer, whose product is timed for `auto`.
    Raises InputError for an unknown name. The choice is measured once a process; a run stores it and does not ask
    again.
    """
    import torch

    if name not in NAMES:
        raise InputError(unknown("dtype", name, NAMES))
    if name != "auto":
        return getattr(torch, name), f"{name} as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies bfloat16 natively"
        return torch.float32, "the GPU has no native bfloat16"
    if device.type != "cpu":
        return torch.float32, f"no measurement on {device.type}; float32 is always right"
    gain = measured_gain(hidden, intermediate, torch.get_num_threads())
    where = (
        f"on this CPU with {_threads(torch.get_num_threads())}, measured on {_ROWS}x{hidden} by {hidden}x{intermediate}"
    )
    if gain >= SMALLEST_GAIN:
        return torch.bfloat16, f"bfloat16 is {gain:.1f} times as fast as float32 {where}"
    return torch.float32, f"no fast bfloat16: it runs at {gain:.2f} times the speed of float32 {where}"


@lru_cache
def measured_gain(hidden: int, intermediate: int, num_threads: int) -> float:
    """Time of a float32 product divided by that of the bfloat16 one (above 1: bfloat16 is faster).

    The two formats alternate and the best time of each counts, so that another process on the cores disturbs both
    alike. `num_threads` is part of the cache's key only: the products run under torch's present setting.
    """
    import torch

    def product(dtype: torch.dtype) -> float:
        begin = time.perf_counter()
        torch.nn.functional.linear(rows[dtype], weights[dtype])
        return time.perf_counter() - begin

    # Filled with constants: the probe must not draw from the global random numbers.
    rows = {d: torch.full((_ROWS, hidden), 0.5, dtype=d) for d in (torch.float32, torch.bfloat16)}
    weights = {d: torch.full((intermediate, hidden), 0.25, dtype=d) for d in (torch.float32, torch.bfloat16)}
    best = {d: float("inf") for d in rows}
    with torch.no_grad():
        end = time.perf_counter() + _SECONDS
        for dtype in rows:  # the first call builds the kernel; a hopelessly slow format ends the probe here
            best[dtype] = product(dtype)
        while time.perf_counter() < end:
            for dtype in rows:
                best[dtype] = min(best[dtype], product(dtype))
    return best[torch.float32] / best[torch.bfloat16]


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"
