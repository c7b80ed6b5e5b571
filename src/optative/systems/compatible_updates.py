"""53. Compatible updates: a new model that keeps what the old one could (MUSCLE; Echterhoff et al., arXiv:2407.09435).

Own code here: the arms, and two small networks on handwritten digits (part C of the study). Shared: the loss
(`optimizers.losses.distillation`), flips (`evaluation.flips`), which option is taken (`evaluation.choices`), cells and
pairing (`runs.study`). An update is compared with the old model `M_v1` item by item: NFR is the share of items that
`M_v1` had right and the update has wrong. It can be lowered by being `M_v1`, so that PFR and accuracy stand beside it,
and so does an arm that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.config import Field
from optative.systems.record import AnyCriterion, Bound, Criterion, StudyOptions, System, command

if TYPE_CHECKING:
    import numpy as np
    import torch

    from optative.optimizers.losses.distillation import Align
    from optative.runs.study import Measured

VERSION = 1  # raised when a change of code moves the cells' numbers
DIGITS, CHOICES, TEXTS = "digits", "choices", "texts"
OLD, NEW, LONGER, MUSCLE = "M_v1", "M_v2", "longer M_v2", "MUSCLE"
RATIO, UPPER, ITSELF = "NFR over M_v2's", "upper end of NFR minus M_v2's", "NFR against itself"
GAIN, GAIN_S = "accuracy minus M_v2's", "similarity minus M_v2's"


@dataclass(frozen=True)
class Method:
    """What M_v2 is trained on further. Without `align` the new data alone."""

    align: Align | None
    nll_weight: float = 0.0


METHODS: dict[str, Method] = {
    LONGER: Method(None),
    "distilling M_v1": Method("always"),
    MUSCLE: Method("student_wrong"),
    "MUSCLE + CE": Method("student_wrong", 1.0),
    "towards M_v1 where it is right": Method("old_right"),
    "towards M_v1 where likelier, a token + CE": Method("likelier_token", 1.0),
}


def arm(part: str, method: str) -> str:
    return f"{part}: {method}"


def _criteria() -> tuple[AnyCriterion, ...]:
    """The card's accept lines of parts A (choices), B (texts) and C (digits)."""

    def bound(metric: str, part: str, direction: Any, limit: float) -> Bound:
        return Bound(metric=metric, arm=arm(part, MUSCLE), direction=direction, limit=limit, seeds=3)

    def lower(metric: str, baseline: str) -> Criterion:
        own, other = arm(CHOICES, MUSCLE), arm(CHOICES, baseline)
        return Criterion(metric=metric, arm=own, baseline=other, smallest_effect=1e-9, direction="lower", seeds=3)

    return (
        bound(RATIO, CHOICES, "at_most", 0.85),
        bound(UPPER, CHOICES, "at_most", 0.0),
        bound(GAIN, CHOICES, "at_least", -0.005),
        lower("NFR", LONGER),
        lower("NFR_mc", NEW),
        bound(RATIO, TEXTS, "at_most", 0.90),
        bound(GAIN_S, TEXTS, "at_least", 0.0),
        bound(RATIO, DIGITS, "at_most", 0.85),
    )


SYSTEM = System(
    criteria=_criteria(),
    differs="So far two small networks on handwritten digits, where an item is one token, several updates pooled in a "
    "seed because one has too few flips to tell. Language models are not run yet: their criteria stay open.",
)


class Study(StudyOptions):
    updates: int = Field(4, ge=1, description="Digits: updates in a seed, each with its own split and networks.")
    units: tuple[int, int] = Field((8, 12), description="Digits: hidden units of the old and of the new network.")
    steps: int = Field(300, ge=1, description="Digits: full-batch steps of each network, and of each further training.")
    learning_rate: float = Field(0.01, gt=0, description="Digits: of Adam.")


FULL = Study(seeds=(0, 1, 2), updates=30)


def run(study: Study, folder: Path) -> dict[str, Any]:
    from optative.runs.study import Arm, Metric
    from optative.runs.study import study as run_study

    own = study.model_dump(mode="json", exclude={"seeds"})
    methods = (OLD, NEW, *METHODS)
    arms = {
        arm(DIGITS, method): Arm(
            options={"method": method, **own}, baseline=None if method == NEW else arm(DIGITS, NEW), panel=DIGITS
        )
        for method in methods
    }
    metrics = {
        name: Metric("same_rule_held_out", (0.0, 1.0))
        for name in ("accuracy", "NFR", "PFR", "NFR_mc", "backward trust")
    }
    metrics |= {name: Metric("same_rule_held_out") for name in (RATIO, UPPER, GAIN, ITSELF, "p of NFR's change")}
    return run_study(
        folder,
        name="muscle-compatibility",
        title="Updates that keep what the old model could",
        command=command(53, study, FULL),
        version=VERSION,
        arms=arms,
        seeds=study.seeds,
        metrics=metrics,
        cell=digits,
        criteria=SYSTEM.hash,
        notes=(SYSTEM.differs,),
    )


def compared(
    old_N: np.ndarray,
    new_N: np.ndarray,
    own_N: np.ndarray,
    again_N: np.ndarray,
    truth_N: np.ndarray,
    clusters: list[Any],
) -> Measured:
    """An update's choices against those of M_v1 (`old`), beside those of M_v2 (`new`) and its own of another time."""
    from optative.evaluation.flips import anatomy, change_of_negative_flips
    from optative.runs.study import Measured

    was, now, is_ = (choices_N == truth_N for choices_N in (old_N, new_N, own_N))
    found = anatomy(was, is_, same=old_N == own_N, clusters=clusters)
    change = change_of_negative_flips(was, now, is_, clusters=clusters)
    items = {"accuracy": is_, "NFR": was & ~is_, "PFR": ~was & is_, "NFR_mc": ~is_ & (old_N != own_N)}
    assert all(abs(items[name].mean() - found[name.lower()]["value"]) < 1e-9 for name in ("NFR", "PFR", "NFR_mc"))
    values: dict[str, Any] = {
        **items,
        "backward trust": found["backward_trust"]["value"],
        UPPER: change["interval"][1],
        GAIN: change["accuracy_difference"],
        "p of NFR's change": change["p"],
        ITSELF: (is_ & (again_N != truth_N)).mean(),
    }
    if change["relative"] is not None:  # else M_v2 lost nothing, and there is nothing to lower
        values[RATIO] = 1 + change["relative"]
    return Measured(values, dict.fromkeys(items, clusters))


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
