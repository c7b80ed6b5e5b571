"""Log-probabilities, and other statistics, of given completions: one forward for a pack of groups.

A prompt is computed once for all its completions, nothing is padded, logits exist only where a completion's token is
predicted. Models that cannot take the packed layout are run plainly, one padded row for each completion, with the same
result. Numbers do not depend on how groups are packed, beyond rounding.

Knows: packs and positions. Does not know: losses, references, which adapter is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optative.core.errors import InputError
from optative.generators.language import heads
from optative.generators.language.attention import (
    PackLayout,
    backbone_of,
    base_of,
    run_backbone,
    why_no_layout,
)
from optative.generators.language.controls import active
from optative.generators.language.fused import run_fused, why_not_fused
from optative.generators.language.heads import Head
from optative.generators.language.packing import Group, Pack, plan


@dataclass(frozen=True, slots=True)
class PackScores:
    """Statistics of all completion tokens of a pack, in the order of its groups and their completions.

    Tensors are float32 [N]; those not asked for are None. Completion i has the tokens offsets[i]:offsets[i + 1].
    `mask_N` is False where a token carries no loss.
    """

    offsets: tuple[int, ...]
    mask_N: Tensor
    logps: Tensor | None = None
    entropy: Tensor | None = None
    sum_p2: Tensor | None = None
    log1m: Tensor | None = None

    @property
    def owner_N(self) -> Tensor:
        """The completion that each token belongs to."""
        lengths_C = torch.tensor(self.offsets, device=self.mask_N.device).diff()
        return torch.repeat_interleave(torch.arange(len(lengths_C), device=lengths_C.device), lengths_C)

    def totals(self, values_N: Tensor) -> Tensor:
        """The sum of some values over the tokens of each completion, [C]."""
        return values_N.new_zeros(len(self.offsets) - 1).index_add(0, self.owner_N, values_N)


@dataclass(frozen=True, slots=True)
class Scores:
    """Statistics of the tokens of one completion, float32 [T]; those not asked for are None."""

    logps: np.ndarray | None = None
    entropy: np.ndarray | None = None
    sum_p2: np.ndarray | None = None
    log1m: np.ndarray | None = None


def score_pack(
    model: Any, pack: Pack, outputs: Sequence[str] = ("logps",), *, temperature: float = 1.0, packed: bool = True
) -> PackScores:
    """One differentiable forward. `model`: a `LanguageModel` or its module. `outputs`: see `heads.statistics`.

    `packed=False` takes the plain path. Raises `InputError` for sequences beyond the model's context.
    """
    hidden_ND, targets_N = hidden_states(model, pack, packed=packed)
    values = heads.statistics(Head(model), hidden_ND, targets_N, outputs, temperature=temperature)
    lengths = [len(c) for g in pack.groups for c in g.completion_ids]
    mask = [flag for g in pack.groups for flags in g.flags for flag in flags]
    return PackScores(
        tuple(np.cumsum([0, *lengths]).tolist()),
        torch.tensor(mask, dtype=torch.bool, device=hidden_ND.device),
        **dict(zip(outputs, values)),
    )


def score(
    model: Any,
    groups: Sequence[Group],
    *,
    outputs: Sequence[str] = ("logps",),
    temperature: float = 1.0,
    token_budget: int = 2048,
    packed: bool = True,
) -> list[list[Scores]]:
    """Statistics without gradients: for each group, for each of its completions."""

    def one(pack: Pack) -> list[Scores]:
        found = score_pack(model, pack, outputs, temperature=temperature, packed=packed)
        arrays = {name: getattr(found, name).cpu().numpy() for name in outputs}
        return [
            Scores(**{name: a[start:end] for name, a in arrays.items()})
            for start, end in zip(found.offsets, found.offsets[1:])
        ]

    return _over_packs(groups, token_budget, one)


def summed(model: Any, groups: Sequence[Group], *, token_budget: int = 2048) -> list[list[float]]:
    """For each group the log-probability of each completion, summed over the tokens that carry loss, in nats."""
    found = score(model, groups, token_budget=token_budget)
    return [
        [float(np.asarray(s.logps, float)[list(flags)].sum()) for s, flags in zip(scores, g.flags)]
        for g, scores in zip(groups, found)
    ]


def kl_pack(
    student: Any,
    teacher: Any,
    pack: Pack,
    *,
    temperature: float = 1.0,
    teacher_mode: Callable[[], AbstractContextManager[Any]] | None = None,
    packed: bool = True,
) -> Tensor:
    """KL(student || teacher) at every completion token, exact over the vocabulary, float32 [N], in nats.

    Differentiable in the student. `teacher_mode` makes the teacher out of its model, such as
    `lambda: adapter_off(lm)` with `student` and `teacher` the same.
    """
    with torch.no_grad():
        if teacher_mode is None:
            teacher_hidden_ND, _ = hidden_states(teacher, pack, packed=packed)
        else:
            with teacher_mode():
                teacher_hidden_ND, _ = hidden_states(teacher, pack, packed=packed)
    hidden_ND, _ = hidden_states(student, pack, packed=packed)
    own, other = Head(student), Head(teacher)
    if own.vocab_size != other.vocab_size:
        raise InputError(
            "student and teacher have different vocabularies", found=own.vocab_size, expected=str(other.vocab_size)
        )
    return heads.divergence(
        own, hidden_ND, other, teacher_hidden_ND, temperature=temperature, teacher_mode=teacher_mode
    )


def divergence(
    lm: Any, groups: Sequence[Group], *, token_budget: int = 1024, temperature: float = 1.0
) -> list[list[np.ndarray]]:
    """KL of the model as it is from its base (adapter off), per token, for each group and each of its completions."""
    from optative.generators.language.adapters import adapter_off

    def one(pack: Pack) -> list[np.ndarray]:
        with torch.no_grad():
            kl_N = kl_pack(lm, lm, pack, temperature=temperature, teacher_mode=lambda: adapter_off(lm)).cpu().numpy()
        ends = np.cumsum([len(c) for g in pack.groups for c in g.completion_ids])
        return np.split(kl_N, ends[:-1])

    return _over_packs(groups, token_budget, one)


def hidden_states(model: Any, pack: Pack, *, packed: bool = True) -> tuple[Tensor, Tensor]:
    """The last hidden state that predicts each completion token, [N, D], and these tokens, [N]."""
    base = base_of(model)
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(g.prompt_ids) + max(map(len, g.completion_ids), default=0) for g in pack.groups), default=0)
    if limit is not None and longest > limit:
        raise InputError(
            "a prompt and its completion are longer than the model's context",
            found=longest,
            expected=f"at most {limit} tokens",
        )
    device = base.get_input_embeddings().weight.device
    targets = [t for g in pack.groups for c in g.completion_ids for t in c]
    targets_N = torch.tensor(targets, device=device)
    with active(base, pack.control):
        if packed and why_no_layout(base) is None:
            return _packed(base, pack, device), targets_N
        return _padded(base, pack, device), targets_N


def _packed(base: Any, pack: Pack, device: Any) -> Tensor:
    layout = PackLayout(pack, device)
    index: list[int] = []
    for group, end, starts in zip(pack.groups, layout.prompt_ends, layout.completion_starts):
        for ids, start in zip(group.completion_ids, starts):
            index += [end - 1, *range(start, start + len(ids) - 1)]
    rows_N = torch.tensor(index, device=device)
    if why_not_fused(base) is None:
        return run_fused(base, layout, rows_N)
    return run_backbone(base, layout, layout.ids_1T, layout.positions_1T)[0].index_select(0, rows_N)


def _padded(base: Any, pack: Pack, device: Any) -> Tensor:
    rows = [(g.prompt_ids, c) for g in pack.groups for c in g.completion_ids]
    width = max(len(p) + len(c) for p, c in rows)
    ids_BT = torch.zeros((len(rows), width), dtype=torch.long, device=device)
    mask_BT = torch.zeros_like(ids_BT)
    index: list[int] = []
    for b, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids_BT[b, :length] = torch.tensor(prompt + completion, device=device)
        mask_BT[b, :length] = 1
        index += range(b * width + len(prompt) - 1, b * width + length - 1)
    hidden = backbone_of(base)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, torch.tensor(index, device=device))


def _over_packs(groups: Sequence[Group], token_budget: int, one: Callable[[Pack], list[Any]]) -> list[list[Any]]:
    result: list[list[Any]] = [[] for _ in groups]
    for pack in plan(groups, token_budget):
        with torch.no_grad():
            flat = iter(one(pack))
        for group, i in zip(pack.groups, pack.group_indices):
            result[i] = [next(flat) for _ in group.completion_ids]
    return result
