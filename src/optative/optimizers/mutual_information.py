"""Training by mutual information: each query is a square of C constitutions and the C answers given under them.

Knows: token ids, packs, the two-sided loss, the bound that training starts from. Does not know: principles, how answers
were drawn or chosen, which weights an iteration starts from. The step engine owns the loop (`training.engine`); a
square is its unit and is never split, because its loss looks at all C x C log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from optative.core import stats
from optative.core.config import Field
from optative.core.errors import InputError
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Ids, Pack
from optative.generators.language.score import score_pack
from optative.generators.language.trained import trained_parameters
from optative.optimizers.losses.mutual_information import accuracies, bounds, per_response, two_sided
from optative.optimizers.losses.reduction import step_mean
from optative.training.batches import step_plan
from optative.training.engine import MicroResult, train
from optative.training.options import StepOptions


class MutualInformation(StepOptions):
    """Two-sided contrastive training on squares; a step's units are queries."""

    length: Literal["mean", "sum"] = Field(
        "mean", description="Log-probability of an answer: mean over its tokens, as released, or their sum, the theory."
    )
    steps: int = Field(0, ge=0, description="Stop after so many steps; 0: at the end of the last epoch.")
    token_budget: int = Field(
        2048, ge=16, description="Tokens of one packed forward; a matter of speed and memory only."
    )


@dataclass(frozen=True, slots=True)
class Square:
    """One query: group j has the prompt with constitution j, and all groups have the same C answers in one order."""

    groups: tuple[Group, ...]

    @property
    def num_tokens(self) -> int:
        return sum(group.num_tokens for group in self.groups)


def square(prompts: Sequence[Ids], answers: Sequence[Ids], end_ids: Collection[int]) -> Square:
    """Answer k belongs to prompt k. A final end token is left out: it would count where an answer was cut off."""
    if len(prompts) != len(answers) or len(answers) < 2:
        raise InputError(
            "a square has one answer for each of its constitutions",
            found=f"{len(prompts)} prompts and {len(answers)} answers",
            expected="two or more, equally many",
        )
    content = tuple(ids[:-1] if ids and ids[-1] in end_ids else ids for ids in answers)
    return Square(tuple(Group(prompt, content) for prompt in prompts))


def pack_squares(squares: Sequence[Square], token_budget: int) -> list[tuple[Square, ...]]:
    """Squares in their order, as many to a pack as there is room for; one above the budget gets a pack of its own."""
    packs: list[list[Square]] = []
    room = 0
    for one in squares:
        if not packs or one.num_tokens > room:
            packs.append([])
            room = token_budget
        packs[-1].append(one)
        room -= one.num_tokens
    return [tuple(pack) for pack in packs]


def log_probabilities(lm: LanguageModel, squares: Sequence[Square]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the tokens of each answer under each constitution, [B, C, C], and the tokens, [B, C]; one forward."""
    width = len(squares[0].groups)
    if any(len(one.groups) != width for one in squares):
        raise InputError("all queries need equally many constitutions", expected=str(width))
    groups = tuple(group for one in squares for group in one.groups)
    found = score_pack(lm, Pack(groups, tuple(range(len(groups)))))
    assert found.logps is not None
    tokens = found.totals(torch.ones_like(found.logps)).view(-1, width, width)
    return found.totals(found.logps).view(-1, width, width), tokens[:, 0]


@torch.no_grad()
def measure(
    lm: LanguageModel, squares: Sequence[Square], token_budget: int = 2048
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_probabilities` of any number of squares, in their order, without gradients and dropout."""
    training = lm.model.training
    lm.model.eval()
    parts = [log_probabilities(lm, pack) for pack in pack_squares(squares, token_budget)]
    lm.model.train(training)
    return torch.cat([sums for sums, _ in parts]), torch.cat([tokens for _, tokens in parts])


def initial_bound(lm: LanguageModel, squares: Sequence[Square], token_budget: int = 2048) -> stats.Estimate:
    """The bound before training, nats a query (sums, mean of both sides).

    Raises InputError, with advice, where it cannot be told from zero: then the answers do not depend on the
    constitutions, and there is nothing that training could make stronger.
    """
    found = stats.mean(bounds(measure(lm, squares, token_budget)[0]).mean_B.tolist()) if squares else None
    if found is None or found.interval.low is None or found.interval.low <= 0:
        what = "no query with different answers" if found is None else f"{found.value:.3f} nats a query"
        raise InputError(
            "answers do not depend on the constitutions, so that training has nothing to make stronger",
            field="the bound on mutual information before training",
            found=f"{what}, of {len(squares)} queries",
            expected="an interval above zero",
            hint="Use a stronger base model, plainer principles with clearer opposites, a prompt with an example of "
            "the format, or more queries.",
        )
    return found


def train_mutual_information(
    lm: LanguageModel,
    squares: Sequence[Square],
    *,
    options: MutualInformation,
    seed: int,
    key: str,
    journal_path: Path,
    checkpoints: Path,
    journal_start: int = 0,
    first_step: int = 0,
    labels: Mapping[str, Any] | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> int:
    """Train the weights of `lm` that are trained, from where they are now, on squares; returns the journal's offset.

    Each iteration of the published method restarts from the base: putting the base's weights back is the caller's
    part. Resumes from the newest checkpoint of `key`. Raises InputError when `steps` asks for more than there are.
    """
    plan = step_plan(len(squares), options.units_per_step, options.epochs, seed)
    if options.steps > len(plan):
        raise InputError(
            "more steps than the epochs hold", field="steps", found=options.steps, expected=f"at most {len(plan)}"
        )
    lm.model.train()
    try:
        return train(
            trained_parameters(lm),
            plan[: options.steps or None],
            lambda own: pack_squares([squares[i] for i in own], options.token_budget),
            lambda pack, num_units: pack_loss(lm, pack, num_units, options),
            options=options,
            key=key,
            journal_path=journal_path,
            journal_start=journal_start,
            checkpoints=checkpoints,
            labels=labels,
            first_step=first_step,
            on_step=on_step,
            cost=lambda i: float(squares[i].num_tokens),
        )
    finally:
        lm.model.eval()


def pack_loss(lm: LanguageModel, pack: Sequence[Square], num_units: int, options: MutualInformation) -> MicroResult:
    """A pack's share of the step's loss, with its graph; bounds (of sums) and accuracies (as trained)."""
    sums_BCC, tokens_BC = log_probabilities(lm, pack)
    logps_BCC = per_response(sums_BCC, tokens_BC, options.length)
    seen, right = bounds(sums_BCC.detach()), accuracies(logps_BCC.detach())
    values = {
        "bound/rows": seen.rows_B,
        "bound/columns": seen.columns_B,
        "accuracies/rows": right.rows_B,
        "accuracies/columns": right.columns_B,
        "answer_tokens": tokens_BC.mean(1),
    }
    measured = {name: (float(value_B.sum()), float(len(value_B))) for name, value_B in values.items()}
    return MicroResult(step_mean(two_sided(logps_BCC), num_units), measured)
