"""Updates of small networks that read handwritten digits: part C of system 53, where an item is one token.

Knows: the pictures, the networks, how they are trained. Does not know: arms, criteria. One update has too few flips to
tell 15 % of them, so that several, each with its own split and networks, are pooled in a seed.

Letters: U updates side by side, N pictures of one, M = U x N, D pixels, V digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from optative.systems.compatible_updates import LONGER, METHODS, NEW, OLD, Method, compared

if TYPE_CHECKING:
    import numpy as np
    import torch

    from optative.runs.study import Measured


def digits(options: Mapping[str, Any], seed: int) -> Measured:
    """Choices of several updates on their test halves, pooled; a picture that is in several of these is one cluster."""
    import torch

    from optative.evaluation.choices import take

    method, numbers = options["method"], {name: value for name, value in options.items() if name != "method"}
    x_UND, y_M, test_UND, truth_M, pictures_M = halves(seed, options["updates"])
    old, new = versions(seed, **{**numbers, "units": tuple(options["units"])})
    own = {OLD: old, NEW: new}.get(method)
    if own is None:
        loss = further(METHODS[method], logits(old, x_UND), logits(new, x_UND), y_M)
        own = fit(new, x_UND, loss, options["steps"], options["learning_rate"])
    old_M, new_M, own_M = (take(logits(weights, test_UND).numpy()) for weights in (old, new, own))
    again_U1V = [logits(own, one_U1D).view(len(own[0]), -1) for one_U1D in test_UND.split(1, dim=1)]
    again_M = take(torch.stack(again_U1V, 1).flatten(0, 1).numpy())  # in batches of another size
    return compared(old_M, new_M, own_M, again_M, truth_M, pictures_M.tolist())


def halves(seed: int, updates: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Of each update: pictures to learn, [U, N, D], and their digits, [M] with M = U x N; pictures of the test, their
    digits, and which pictures they are.

    A picture has 4 x 4 pixels of 0 to 1, so coarse that not all can be told apart.
    """
    import numpy as np
    import torch

    from optative.core.rng import stream

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        from optative.core.errors import missing_extra

        raise missing_extra("scikit-learn", "systems") from None
    found = load_digits()
    pictures_ND = torch.tensor(found.images / 16).view(-1, 4, 2, 4, 2).mean((2, 4)).float().flatten(1)
    size = len(pictures_ND)
    orders_UN = np.stack([stream(seed, "digits", update).permutation(size) for update in range(updates)])
    train_UN, test_UN = orders_UN[:, : size // 2], orders_UN[:, size // 2 :]
    learnt_M, truth_M = (found.target[part.ravel()] for part in (train_UN, test_UN))
    return pictures_ND[train_UN], torch.tensor(learnt_M), pictures_ND[test_UN], truth_M, test_UN.ravel()


@lru_cache(maxsize=1)  # the arms of a seed come one after the other
def versions(
    seed: int, updates: int, units: tuple[int, int], steps: int, learning_rate: float
) -> tuple[list[torch.Tensor], ...]:
    """M_v1 and M_v2."""
    x_UND, y_M, *_ = halves(seed, updates)
    loss = further(METHODS[LONGER], x_UND, x_UND, y_M)
    starts = (networks(x_UND.shape, hidden, seed, version) for version, hidden in enumerate(units))
    return tuple(fit(start, x_UND, loss, steps, learning_rate) for start in starts)


def networks(shape_UND: tuple[int, ...], hidden: int, seed: int, version: int) -> list[torch.Tensor]:
    """Weights and biases of one network an update, of two layers, drawn as torch draws those of its linear layers."""
    import torch

    from optative.core.rng import stream

    found = []
    for layer, (inputs, outputs) in enumerate(((shape_UND[2], hidden), (hidden, 10))):
        drawn = stream(seed, "network", version, layer).uniform(-1, 1, (shape_UND[0], inputs + 1, outputs))
        found += torch.tensor(drawn * inputs**-0.5, dtype=torch.float32).split((inputs, 1), dim=1)
    return found


def logits(weights: list[torch.Tensor], x_UND: torch.Tensor) -> torch.Tensor:
    """Of all updates, one under the other: [M, V] with M = U x N."""
    first, bias, second, last = weights
    return (((x_UND @ first + bias).relu() @ second) + last).flatten(0, 1)


def further(method: Method, old_MV: torch.Tensor, new_MV: torch.Tensor, targets_M: torch.Tensor) -> Any:
    """The loss of a method as a function of the student's logits; the mask is made anew at each call."""
    import torch
    from torch.nn.functional import cross_entropy

    from optative.optimizers.losses.distillation import compatible, towards_old

    align, each_M = method.align, torch.arange(len(targets_M))  # an item is a sequence of one token

    def loss(logits_MV: torch.Tensor) -> torch.Tensor:
        if align is None:
            return cross_entropy(logits_MV, targets_M, reduction="none")
        mask_M = towards_old(align, logits_MV, old_MV, targets_M, each_M)
        return compatible(logits_MV, old_MV, new_MV, targets_M, mask_M, nll_weight=method.nll_weight)

    return loss


def fit(
    start: list[torch.Tensor], x_UND: torch.Tensor, loss: Any, steps: int, learning_rate: float
) -> list[torch.Tensor]:
    """The weights after all steps; the updates share nothing, because Adam moves each number by its own gradient."""
    import torch

    weights = [part.clone().requires_grad_() for part in start]
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss(logits(weights, x_UND)).sum() / x_UND.shape[1]).backward()
        optimizer.step()
    return [part.detach() for part in weights]
