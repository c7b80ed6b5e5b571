"""The preference trainer: pairs in, a trained adapter out.

Knows: encoded pairs, packs, the losses on pairs, what is measured at each step. Does not know: where pairs come from,
files of a run, which objective is meant. The step engine owns the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optative.core.ids import content_hash
from optative.generators.language.adapters import lora_parameters
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import score_pack
from optative.optimizers.losses.pairs import dpo, implicit_rewards
from optative.optimizers.losses.reduction import step_mean
from optative.optimizers.losses.supervised import nll
from optative.optimizers.options import DPO
from optative.training.batches import step_plan
from optative.training.engine import MicroResult, train


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One pair as tokens: a group of two completions, the chosen one first. Its masks say which tokens carry loss."""

    id: str
    group: Group
    strength: float = 0.0
    confidence: float = 1.0

    @property
    def key(self) -> str:
        """Identity of what is scored: tokens and masks, not the labels."""
        return content_hash([self.group.prompt_ids, self.group.completion_ids, self.group.masks])


Pairs = Sequence[EncodedPair]  # a list, or something that encodes pairs when they are asked for


@dataclass(frozen=True)
class Micro:
    """One packed forward and the pairs in it (indices into the training pairs, in the pack's order)."""

    pack: Pack
    pairs: tuple[int, ...]


def pack_pairs(pairs: Pairs, units: Sequence[int], token_budget: int) -> list[Micro]:
    """Pack the pairs of one step; the two completions of a pair share their prompt and stay together."""
    packs = plan([pairs[i].group for i in units], token_budget)
    return [Micro(pack, tuple(units[i] for i in pack.group_indices)) for pack in packs]


def windows(pairs: Pairs, token_budget: int, size: int = 256) -> Iterable[Micro]:
    """All pairs in packs, planned a window at a time, so that time and memory grow no faster than they do."""
    for at in range(0, len(pairs), size):
        yield from pack_pairs(pairs, range(at, min(at + size, len(pairs))), token_budget)


def pair_logps(lm: LanguageModel, micro: Micro) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probabilities of the completions of a pack and the number of tokens that count, both [pairs, 2]."""
    scores = score_pack(lm, micro.pack)
    assert scores.logps is not None
    lengths = torch.tensor(scores.offsets).diff().to(scores.logps.device)
    owner_N = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    zeros = torch.zeros(len(lengths), device=scores.logps.device)
    sums = zeros.index_add(0, owner_N, scores.logps * scores.mask_N)
    counts = zeros.index_add(0, owner_N, scores.mask_N.float())
    return sums.reshape(-1, 2), counts.reshape(-1, 2)


def pair_measures(
    logps_B2: torch.Tensor, counts_B2: torch.Tensor, ref_B2: torch.Tensor, *, beta: float
) -> dict[str, tuple[float, float]]:
    """Sums and counts of what the field reports of a batch of pairs (rewards are beta * (log pi - log pi_ref))."""
    rewards_B2 = torch.stack(
        [implicit_rewards(logps_B2[:, side], ref_B2[:, side], beta=beta) for side in (0, 1)], dim=1
    )
    margins_B = rewards_B2[:, 0] - rewards_B2[:, 1]
    n = float(len(margins_B))
    # A margin of exactly zero is no decision: it counts half, so that accuracy at step 0 reads 0.5 and not 0 or 1.
    right = float((margins_B > 0).sum()) + 0.5 * float((margins_B == 0).sum())
    return {
        "rewards/chosen": (float(rewards_B2[:, 0].sum()), n),
        "rewards/rejected": (float(rewards_B2[:, 1].sum()), n),
        "rewards/margins": (float(margins_B.sum()), n),
        "rewards/accuracies": (right, n),
        "logps/chosen": (float(logps_B2[:, 0].sum()), n),
        "logps/rejected": (float(logps_B2[:, 1].sum()), n),
        "nll_loss": (float((-logps_B2[:, 0] / counts_B2[:, 0]).sum()), n),
    }


def train_preferences(
    lm: LanguageModel,
    pairs: Pairs,
    reference: Sequence[tuple[float, float]],
    *,
    options: DPO,
    seed: int,
    key: str,
    journal_path: Path,
    journal_start: int,
    checkpoints: Path,
    labels: dict[str, Any] | None = None,
    first_step: int = 0,
    held_out: tuple[Pairs, Sequence[tuple[float, float]]] | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> int:
    """Train the LoRA weights of `lm` on pairs with DPO; returns the metrics journal's offset.

    reference: summed log-probabilities (chosen, rejected) under the reference, one per pair, in the order of `pairs`.
    held_out: pairs and their reference that no step trains on; measured as `eval_...`.
    """
    steps = step_plan(len(pairs), options.units_per_step, options.epochs, seed)

    def micro_batches(units: Sequence[int]) -> Iterable[Micro]:
        return pack_pairs(pairs, units, options.token_budget)

    def loss(micro: Micro, num_units: int) -> MicroResult:
        logps_B2, counts_B2 = pair_logps(lm, micro)
        ref_B2 = torch.tensor([reference[i] for i in micro.pairs], device=logps_B2.device)
        strength_B = torch.tensor([pairs[i].strength for i in micro.pairs], device=logps_B2.device)
        values_B = dpo(
            logps_B2[:, 0],
            logps_B2[:, 1],
            ref_B2[:, 0],
            ref_B2[:, 1],
            beta=options.beta,
            margin_B=options.margin_per_strength * strength_B,
            confidence_B=torch.tensor([pairs[i].confidence for i in micro.pairs], device=logps_B2.device),
        )
        if options.nll_weight:
            values_B = values_B + options.nll_weight * nll(logps_B2[:, 0], counts_B2[:, 0])
        sums = pair_measures(logps_B2.detach(), counts_B2, ref_B2, beta=options.beta)
        sums["num_tokens"] = (float(micro.pack.num_tokens), 0.0)  # a total, not a mean
        return MicroResult(step_mean(values_B, num_units), sums)

    def evaluate() -> dict[str, float]:
        assert held_out is not None
        return {f"eval_{k}": v for k, v in measure_pairs(lm, *held_out, options=options).items()}

    lm.model.train()
    try:
        return train(
            lora_parameters(lm),
            steps,
            micro_batches,
            loss,
            options=options,
            key=key,
            journal_path=journal_path,
            journal_start=journal_start,
            checkpoints=checkpoints,
            labels=labels,
            first_step=first_step,
            evaluate=evaluate if held_out and held_out[0] else None,
            evaluate_every=options.eval_every or len(steps),
            on_step=on_step,
        )
    finally:
        lm.model.eval()


@torch.no_grad()
def measure_pairs(
    lm: LanguageModel, pairs: Pairs, reference: Sequence[tuple[float, float]], *, options: DPO
) -> dict[str, float]:
    """The field's metrics on pairs, without training on them."""
    training = lm.model.training
    lm.model.eval()
    sums: dict[str, tuple[float, float]] = {}
    total = 0.0
    for micro in windows(pairs, options.token_budget):
        logps_B2, counts_B2 = pair_logps(lm, micro)
        ref_B2 = torch.tensor([reference[i] for i in micro.pairs], device=logps_B2.device)
        total += float(dpo(logps_B2[:, 0], logps_B2[:, 1], ref_B2[:, 0], ref_B2[:, 1], beta=options.beta).sum())
        for name, (value, count) in pair_measures(logps_B2, counts_B2, ref_B2, beta=options.beta).items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + value, old[1] + count)
    lm.model.train(training)
    return {"loss": total / len(pairs), **{k: v / c for k, (v, c) in sums.items()}}
