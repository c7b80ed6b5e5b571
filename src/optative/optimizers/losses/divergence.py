"""The score of a log-ratio under an f-divergence from the reference, and an exponential without overflow.

Knows: log-ratios log(pi / pi_ref). Does not know: pairs, losses.
Source: Wang et al. 2023, arXiv:2309.16240, table 1. The score is f'(pi / pi_ref) minus f'(1): a difference of two
scores does not change, and of scores per token none is left over where answers differ in length.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

LARGEST = 30.0  # nats; the square of what exp gives there, and 1e4 nats beyond, is still a float32


def scores(logratios_B: torch.Tensor, divergence: str, divergence_alpha: float) -> torch.Tensor:
    """f'(exp(logratios_B)) - f'(1), of the same shape; c stands for the log-ratio.

    reverse_kl: c, plain DPO. forward_kl: 1 - exp(-c). js_divergence: log(2 sigmoid(c)). alpha_divergence, with alpha
    between 0 (reverse KL) and 1 (forward KL): (1 - exp(-alpha c)) / alpha. TRL writes (exp((a - 1) c) - 1) / (a - 1),
    which is the same with a = 1 - alpha. Where the exponent is above `LARGEST`, see `bounded_expm1`.

    >>> scores(torch.tensor([0.0, 2.0]), "reverse_kl", 0.5)
    tensor([0., 2.])
    """
    if divergence == "reverse_kl":
        return logratios_B
    if divergence == "forward_kl":
        return -bounded_expm1(-logratios_B)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(logratios_B)
    if divergence == "alpha_divergence":
        return -bounded_expm1(-divergence_alpha * logratios_B) / divergence_alpha
    raise ValueError(f"unknown divergence {divergence!r}")


def bounded_expm1(x: torch.Tensor) -> torch.Tensor:
    """exp(x) - 1 up to x = `LARGEST`, beyond it the tangent there: still rising, with a gradient that is finite.

    >>> bounded_expm1(torch.tensor([0.0, 1e4])).isfinite().all().item()
    True
    """
    excess = (x - LARGEST).clamp(min=0)
    near = x - excess
    return torch.expm1(near) + torch.exp(near.detach()) * excess
