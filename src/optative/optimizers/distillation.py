"""Training a model towards two frozen teachers, an old model and a new one, token by token (`losses.distillation`).

Knows: encoded groups, the teachers' last hidden states, packs. Does not know: tasks, files of a run, adapters' names.
Teachers are asked once: what they know of a token is kept as the hidden state that predicts it, from which their own
heads make logits when a step needs them. A teacher may so be the student as it was. The step engine owns the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optative.core.errors import InputError
from optative.core.files import read_jsonl
from optative.core.ids import content_hash
from optative.generators.language.heads import Head
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import hidden_states
from optative.generators.language.trained import trained_parameters
from optative.optimizers.losses.distillation import Align, compatible, towards_old
from optative.optimizers.losses.reduction import per_token, step_mean
from optative.optimizers.options import Preference
from optative.training.batches import step_plan
from optative.training.engine import MicroResult, train


@dataclass(frozen=True)
class Teacher:
    """`hidden`: of each group the states that predict the tokens of its completions, [N, D], without gradient."""

    head: Head
    hidden: tuple[torch.Tensor, ...]
    vocabulary: str

    def logits(self, chosen: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.head(torch.cat([self.hidden[i] for i in chosen]))


def vocabulary_hash(lm: LanguageModel) -> str:
    """Identity of what the ids of a model's tokens mean."""
    return content_hash(sorted(lm.tokenizer.get_vocab().items()))


@torch.no_grad()
def teacher(lm: LanguageModel, groups: Sequence[Group], *, token_budget: int) -> Teacher:
    """What `lm`, as it is now, knows of the completions of these groups."""
    lm.model.eval()
    hidden: list[torch.Tensor] = [torch.empty(0)] * len(groups)
    for pack in plan(groups, token_budget):
        states_ND, _ = hidden_states(lm, pack)
        sizes = [sum(map(len, group.completion_ids)) for group in pack.groups]
        for i, own_ND in zip(pack.group_indices, states_ND.split(sizes)):
            hidden[i] = own_ND.clone()
    return Teacher(Head(lm), tuple(hidden), vocabulary_hash(lm))


def distil(
    lm: LanguageModel,
    groups: Sequence[Group],
    old: Teacher,
    new: Teacher,
    *,
    align: Align,
    nll_weight: float = 0.0,
    temperature: float = 1.0,
    options: Preference,
    seed: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Train the weights of `lm` that are trained; returns the metrics of each step.

    Which teacher a token learns from is decided anew at every step, from the student as it is then. A completion's loss
    is the mean over its tokens that count, a group's that over its completions, a step's that over its groups.
    `folder`: journal and checkpoints of this training alone. Metrics: `towards_old`, share of tokens that the old model
    taught. Raises InputError when a teacher has another vocabulary, or was asked about other groups.
    """
    for name, one in (("old", old), ("new", new)):
        if one.vocabulary != vocabulary_hash(lm):
            raise InputError(
                "a teacher's tokens mean something else than the student's",
                field=name,
                hint="Distillation compares probabilities of the same tokens; both models need one tokenizer.",
            )
        if len(one.hidden) != len(groups):
            raise InputError("a teacher of other groups", field=name, found=len(one.hidden), expected=f"{len(groups)}")

    def micro_batches(own: Sequence[int]) -> list[tuple[Pack, list[int]]]:
        packs = plan([groups[i] for i in own], options.scoring_budget)
        return [(pack, [own[i] for i in pack.group_indices]) for pack in packs]

    def loss(micro: tuple[Pack, list[int]], num_units: int) -> MicroResult:
        pack, chosen = micro
        hidden_ND, targets_N = hidden_states(lm, pack)
        completions = [ids for group in pack.groups for ids in group.completion_ids]
        sequence_N = torch.repeat_interleave(torch.tensor([len(ids) for ids in completions])).to(lm.device)
        counts_N = torch.tensor(
            [float(flag) for group in pack.groups for flags in group.flags for flag in flags], device=lm.device
        )
        logits_NV, old_NV, new_NV = Head(lm)(hidden_ND), old.logits(chosen), new.logits(chosen)
        mask_N = towards_old(align, logits_NV, old_NV, targets_N, sequence_N)
        loss_N = compatible(
            logits_NV, old_NV, new_NV, targets_N, mask_N, temperature=temperature, nll_weight=nll_weight
        )
        zeros_C = torch.zeros(len(completions), device=lm.device)
        tokens_C = zeros_C.index_add(0, sequence_N, counts_N)
        means_C = per_token(zeros_C.index_add(0, sequence_N, loss_N * counts_N), tokens_C)
        shares_C = torch.tensor(
            [1 / len(group.completion_ids) for group in pack.groups for _ in group.completion_ids], device=lm.device
        )
        taught = float((mask_N * counts_N).sum()), float(counts_N.sum())
        return MicroResult(step_mean(means_C * shares_C, num_units), {"towards_old": taught})

    parameters = trained_parameters(lm)
    key = content_hash([[[g.prompt_ids, g.completion_ids] for g in groups], align, nll_weight, temperature, seed])
    lm.model.train()
    try:
        train(
            parameters,
            step_plan(len(groups), options.units_per_step, options.epochs, seed),
            micro_batches,
            loss,
            options=options,
            key=key,
            journal_path=folder / "metrics.jsonl",
            journal_start=0,
            checkpoints=folder / "checkpoints",
            cost=lambda i: float(groups[i].num_tokens),
        )
    finally:
        lm.model.eval()
    return list(read_jsonl(folder / "metrics.jsonl"))
