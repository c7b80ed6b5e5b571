"""The degree of a preference, learnt beside it: versions of each answer are told apart while the model is aligned.

SPO (Li et al. 2024, arXiv:2409.17791): a head on the language model's own states says which grade of an answer it
reads, and its loss, times gamma, is added to any loss on preferences. Gradients go through the language model, which is
the point. Degraded versions are read only: no loss on preferences or on tokens sees them, and no reference scores them.

Knows: versions as token ids, heads, the weight of the loss. Does not know: how versions are made (`feedback.grades`),
formulas of preferences; the trainer is that of all losses (`preference`). Letters: C versions, D hidden size, J logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import model_validator

from optative.core.config import Config, Field
from optative.core.errors import InputError
from optative.core.rng import seed_from, stream
from optative.generators.language.attention import base_of
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import hidden_states
from optative.optimizers.fit import fit
from optative.optimizers.losses.degree import by_class, in_order, most_likely
from optative.optimizers.options import Preference
from optative.optimizers.preference import Beside
from optative.optimizers.units import Units
from optative.training.batches import step_plan
from optative.training.engine import MicroResult, train
from optative.training.options import StepOptions

ROLES = ("chosen", "rejected")
WARM_UP_UNITS = 512  # whose versions the heads learn on first


class Degree(Config):
    """What is told apart, and how much it counts."""

    grades: int = Field(3, ge=2, le=6, description="Grades of an answer, the answer itself included.")
    gamma: float = Field(0.1, gt=0, description="Weight beside the loss on preferences; 0.01 to 1 are usual.")
    roles: Literal["both", "chosen", "rejected"] = Field("both", description="Whose versions are told apart.")
    shared_head: bool = Field(False, description="One head for chosen and rejected answers, in place of one each.")
    pool: Literal["mean", "last"] = Field(
        "mean", description="What a head reads: the mean of the last layer's states over the answer, or the last one."
    )
    ordinal: bool = Field(False, description="Grades in their order (K - 1 borders), in place of K classes.")
    detach: bool = Field(False, description="A control: the language model gets no gradient of this loss.")
    versions: Literal["one", "all"] = Field(
        "one",
        description="Of each answer in a step: itself and one version drawn at random, weighted so that the mean is "
        "that of all; or all of them.",
    )
    warm_up: int = Field(100, ge=0, description="Steps in which the heads alone learn first; they start random.")
    warm_up_rate: float = Field(1e-2, gt=0, description="Learning rate of these.")
    most_perplexity: float = Field(
        0.0, ge=0, description="Stop when held-out chosen answers are so many times as perplexing as first; 0: never."
    )

    @model_validator(mode="after")
    def _acts(self) -> Degree:
        if self.shared_head and self.roles != "both":
            raise ValueError(f"shared_head cannot act: versions of {self.roles} answers alone have one head anyway")
        if self.most_perplexity and self.most_perplexity <= 1:
            raise ValueError("most_perplexity of 1 or less stops at once; 1.2 allows a fifth more")
        return self


class Collapsed(InputError):
    """The loss on degrees bends the states that also have to write."""


@dataclass(frozen=True, slots=True)
class Graded:
    """Versions of a unit's answers under its prompt. roles: 0 of the chosen one, 1 of the rejected; grades: from 0."""

    group: Group
    roles: tuple[int, ...]
    grades: tuple[int, ...]

    def only(self, places: Sequence[int]) -> Graded:
        group = Group(
            self.group.prompt_ids, tuple(self.group.completion_ids[i] for i in places), control=self.group.control
        )
        return Graded(group, tuple(self.roles[i] for i in places), tuple(self.grades[i] for i in places))


class Heads(torch.nn.Module):
    """One linear layer for each role, or one for both."""

    def __init__(self, hidden: int, degree: Degree, seed: int) -> None:
        super().__init__()
        self.ordinal = degree.ordinal
        self.grades = degree.grades
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(seed, "degree heads"))
            number = len(ROLES) if degree.roles == "both" and not degree.shared_head else 1
            width = degree.grades - degree.ordinal
            self.linear = torch.nn.ModuleList(torch.nn.Linear(hidden, width) for _ in range(number))

    def forward(self, features_CD: torch.Tensor, roles_C: torch.Tensor) -> torch.Tensor:
        """Logits, [C, J]."""
        if len(self.linear) == 1:
            return self.linear[0](features_CD)
        every_RCJ = torch.stack([head(features_CD) for head in self.linear])
        return every_RCJ[roles_C, torch.arange(len(roles_C), device=roles_C.device)]

    def losses(self, logits_CJ: torch.Tensor, grades_C: torch.Tensor) -> torch.Tensor:
        return (in_order if self.ordinal else by_class)(logits_CJ, grades_C)


def heads_for(lm: LanguageModel, degree: Degree, seed: int) -> Heads:
    """Fresh heads for the states of a model, on its device."""
    return Heads(base_of(lm).get_input_embeddings().weight.shape[1], degree, seed).to(lm.device)


def pooled(lm: LanguageModel, pack: Pack, pool: Literal["mean", "last"]) -> torch.Tensor:
    """What the last layer says of each completion, [C, D], differentiable.

    The state that predicts a token has read those before it. So the first of a completion has read the prompt alone and
    is left out of the mean, unless it is all there is; the last has read all words and predicts the end.
    """
    hidden_ND, _ = hidden_states(lm, pack)
    lengths_C = torch.tensor([len(ids) for group in pack.groups for ids in group.completion_ids], device=lm.device)
    ends_C = lengths_C.cumsum(0)
    if pool == "last":
        return hidden_ND[ends_C - 1].float()
    owner_N = torch.repeat_interleave(torch.arange(len(lengths_C), device=lm.device), lengths_C)
    weights_N = torch.ones(len(hidden_ND), device=lm.device)
    weights_N[(ends_C - lengths_C)[lengths_C > 1]] = 0
    sums_CD = torch.zeros((len(lengths_C), hidden_ND.shape[1]), device=lm.device)
    sums_CD = sums_CD.index_add(0, owner_N, hidden_ND.float() * weights_N[:, None])
    return sums_CD / (lengths_C - 1).clamp(min=1)[:, None]


@torch.no_grad()
def features(
    lm: LanguageModel, groups: Sequence[Group], pool: Literal["mean", "last"], *, token_budget: int = 2048
) -> list[torch.Tensor]:
    """`pooled` of any number of groups, [C, D] for each, without gradients and dropout."""
    training, found = lm.model.training, dict[int, torch.Tensor]()
    lm.model.eval()
    for pack in plan(groups, token_budget):
        parts = pooled(lm, pack, pool).split([len(group.completion_ids) for group in pack.groups])
        found |= dict(zip(pack.group_indices, parts))
    lm.model.train(training)
    return [found[i] for i in range(len(groups))]


def fit_heads(
    heads: Heads, graded: Sequence[Graded], features: Sequence[torch.Tensor], *, steps: int, rate: float, seed: int
) -> None:
    """Train heads alone on states that stay as they are, 32 units a step."""
    options = StepOptions(
        learning_rate=rate,
        schedule="linear",
        warmup_ratio=0.0,
        units_per_step=min(32, len(graded)),
        epochs=math.ceil(steps / (len(graded) // min(32, len(graded)))),
        checkpoint_every=steps,
    )

    def loss(own: Sequence[int], num_units: int) -> MicroResult:
        logits_CJ, grades_C = _read(heads, [graded[i] for i in own], torch.cat([features[i] for i in own]))
        values_C = heads.losses(logits_CJ, grades_C)
        parts = values_C.split([len(graded[i].grades) for i in own])
        return MicroResult(torch.stack([part.mean() for part in parts]).sum() / num_units)

    with TemporaryDirectory() as folder:
        train(
            dict(heads.named_parameters()),
            step_plan(len(graded), options.units_per_step, options.epochs, seed)[:steps],
            lambda own: [own],
            loss,
            options=options,
            key=f"heads-{seed}",
            journal_path=Path(folder) / "metrics.jsonl",
            journal_start=0,
            checkpoints=Path(folder) / "checkpoints",
        )


def degree_loss(lm: LanguageModel, graded: Sequence[Graded | None], heads: Heads, degree: Degree) -> Beside:
    """gamma (L_deg(chosen) + L_deg(rejected)) of each unit, L_deg being the mean over an answer's grades.

    graded: for each unit its versions, None where too little could be taken away: it is then aligned only. Which
    version is drawn depends on the step's random numbers and the unit, not on how units are packed.
    """

    def loss(units: Sequence[int], num_units: int) -> MicroResult:
        own = [(i, one) for i in units if (one := graded[i]) is not None]
        if not own:
            return MicroResult(torch.zeros((), device=lm.device))
        drawn = [one if degree.versions == "all" else one.only(_draw(one, i)) for i, one in own]
        groups = tuple(one.group for one in drawn)
        features_CD = pooled(lm, Pack(groups, tuple(range(len(groups)))), degree.pool)
        logits_CJ, grades_C = _read(heads, drawn, features_CD.detach() if degree.detach else features_CD)
        values_C, share = heads.losses(logits_CJ, grades_C), 1 / degree.grades
        weights_C = torch.full_like(values_C, share)
        if degree.versions == "one":
            weights_C[grades_C > 0] = 1 - share
        right = (most_likely(logits_CJ.detach(), ordinal=degree.ordinal) == grades_C).float()
        answers = sum(len(set(one.roles)) for one in drawn)
        measured = {
            "degree/loss": (float((weights_C * values_C.detach()).sum()), float(answers)),
            "degree/accuracies": (float((weights_C * right).sum()), float(answers)),
        }
        return MicroResult(degree.gamma * (weights_C * values_C).sum() / num_units, measured)

    return Beside({f"degree.{name}": p for name, p in heads.named_parameters()}, loss)


def fit_with_degree(
    lm: LanguageModel,
    units: Units,
    graded: Sequence[Graded | None],
    *,
    loss: str,
    options: Preference,
    degree: Degree,
    seed: int,
    folder: Path,
    held_out: Units = (),
) -> tuple[Heads, list[dict[str, Any]]]:
    """Train on units with a loss by its name and, beside it, on the versions of their answers; heads and metrics.

    Nothing else changes between losses. held_out: pairs, measured as the options say; `degree.most_perplexity` watches
    their chosen answers, and raises `Collapsed`. Raises InputError where no answer has versions, or where it could not
    watch.
    """
    known = [one for one in graded if one is not None]
    if len(graded) != len(units) or not known:
        found = f"{len(known)} of {len(units)} units"
        raise InputError("no answer has versions to tell apart", field="graded", found=found)
    if degree.most_perplexity and not held_out:
        raise InputError("cannot act without held-out pairs", field="most_perplexity", found=degree.most_perplexity)
    heads = heads_for(lm, degree, seed)
    if degree.warm_up:
        some = known[:WARM_UP_UNITS]
        states = features(lm, [one.group for one in some], degree.pool)
        fit_heads(heads, some, states, steps=degree.warm_up, rate=degree.warm_up_rate, seed=seed)
    lines = fit(
        lm,
        units,
        loss=loss,
        options=options,
        seed=seed,
        folder=folder,
        beside=degree_loss(lm, graded, heads, degree),
        held_out=held_out,
        on_held_out=_watch(held_out, degree) if degree.most_perplexity else None,
    )
    return heads, lines


@torch.no_grad()
def told(heads: Heads, graded: Sequence[Graded], features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits of all versions, in their order, [C, J]."""
    return _read(heads, graded, torch.cat(list(features)))[0]


def perplexity_of_chosen(units: Units, sums: Sequence[Sequence[float]]) -> float:
    """Of the first answers of pairs, from the summed log-probabilities of their completions."""
    nats = -sum(own[0] for own in sums)
    return math.exp(nats / sum(unit.counted[0] for unit in units))


def _watch(units: Units, degree: Degree) -> Callable[[int, list[list[float]]], None]:
    first: list[float] = []

    def see(step: int, sums: list[list[float]]) -> None:
        now = perplexity_of_chosen(units, sums)
        first.append(now)
        if now > degree.most_perplexity * first[0]:
            raise Collapsed(
                f"after {step} steps held-out chosen answers are {now / first[0]:.2f} times as perplexing as first",
                field="gamma",
                found=degree.gamma,
                expected=f"at most {degree.most_perplexity} times",
                hint="Lower gamma or the learning rate; the loss on preferences alone raises it too.",
            )

    return see


def _draw(one: Graded, unit: int) -> list[int]:
    """Of each role the answer itself and one of its other versions."""
    rng, found = stream(torch.initial_seed(), "version", unit), list[int]()
    for role in sorted(set(one.roles)):
        places = [i for i, own in enumerate(one.roles) if own == role]
        found += [i for i in places if one.grades[i] == 0]
        found.append(int(rng.choice([i for i in places if one.grades[i] > 0])))
    return found


def _read(heads: Heads, graded: Sequence[Graded], features_CD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    device = features_CD.device
    roles_C = torch.tensor([role for one in graded for role in one.roles], device=device)
    grades_C = torch.tensor([grade for one in graded for grade in one.grades], device=device)
    return heads(features_CD, roles_C), grades_C
