"""Statistics of next-token distributions, a chunk of positions at a time, so that no full table of logits ever exists.

Each statistic of a position depends on the hidden state of that position alone. With a frozen head its gradient is
therefore one vector, taken while the chunk's logits are at hand; the backward only scales these vectors and never
computes a logit again. A head that is trained itself goes through checkpointing instead.

Knows: heads, logit scales and caps, softmax in float32. Does not know: what the positions are.
Shapes: N positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optative.core.errors import InputError, unknown
from optative.generators.language.attention import backbone_of, base_of

CHUNK_ELEMENTS = 1 << 23  # logits of one chunk: 32 MB in float32
TILE = 4096  # rows of the head that go together where only log-probabilities are asked for
_CHECKED: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class Head:
    """From hidden states to float32 logits, as the model's own forward computes them.

    Scales and caps that the model's config names are applied. On first use of a model its own logits are compared with
    these ones; a model that does anything else between the last hidden state and its logits is refused.
    """

    def __init__(self, model: Any) -> None:
        base = base_of(model)
        config = base.config.get_text_config()
        self.linear = base.get_output_embeddings()
        if self.linear is None:
            raise InputError(f"{type(base).__name__} has no output head, so it is no language model")
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.vocab_size = int(self.linear.weight.shape[0])
        module = model if isinstance(model, torch.nn.Module) else model.model
        if module not in _CHECKED:
            self._check(module, base)
            _CHECKED[module] = True

    def __call__(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        logits_NV = self.linear(hidden_ND).float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.cap:
            logits_NV = self.cap * torch.tanh(logits_NV / self.cap)
        return logits_NV if temperature == 1.0 else logits_NV / temperature

    @property
    def is_plain(self) -> bool:
        """Whether logits are nothing but products with a matrix, times a number."""
        return type(self.linear) is torch.nn.Linear and self.linear.bias is None and not self.cap

    @property
    def is_trained(self) -> bool:
        return any(p.requires_grad for p in self.linear.parameters())

    @torch.no_grad()
    def _check(self, model: Any, base: Any) -> None:
        device = self.linear.weight.device
        ids = torch.arange(3, device=device)[None] % self.vocab_size
        mask = torch.ones_like(ids)
        training = [m for m in model.modules() if m.training]
        model.eval()
        try:
            theirs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
            hidden = backbone_of(base)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            ours = self(hidden)
        finally:
            for module in training:
                module.training = True
        tolerance = 1e-4 if self.linear.weight.dtype == torch.float32 else 0.05
        if ours.shape != theirs.shape or float((ours - theirs).abs().max()) > tolerance * max(
            1.0, float(theirs.abs().max())
        ):
            raise InputError(
                f"{type(base).__name__} computes its logits in a way that scoring does not know",
                hint="Prompt-tuning adapters and unusual output heads are not supported.",
            )


def statistics(
    head: Head,
    hidden_ND: Tensor,
    targets_N: Tensor,
    outputs: Sequence[str],
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, ...]:
    """Float32 [N] tensors, one for each name in `outputs`, differentiable in the hidden states and in a trained head.

    With p the softmax of logits / temperature and y the target: `logps` log p(y); `entropy` of p, in nats; `sum_p2`
    sum of squared probabilities; `log1m` log(1 - p(y)), exact also where p(y) rounds to 1.
    """
    for name in outputs:
        if name not in STATISTICS:
            raise InputError(unknown("output", name, STATISTICS), field="outputs")

    if tuple(outputs) == ("logps",) and head.is_plain:
        return (_Logps.apply(hidden_ND, head.linear.weight, targets_N, head.scale / temperature),)

    def compute(hidden: Tensor, rows: slice) -> tuple[Tensor, ...]:
        logits_NV = head(hidden, temperature)
        lse_N = logits_NV.logsumexp(-1)
        return tuple(STATISTICS[name](logits_NV, lse_N, targets_N[rows]) for name in outputs)

    return _in_chunks(head, hidden_ND, compute, len(outputs))


def divergence(
    head: Head,
    hidden_ND: Tensor,
    teacher: Head,
    teacher_hidden_ND: Tensor,
    *,
    temperature: float = 1.0,
    teacher_mode: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Tensor:
    """KL(student || teacher) of every position over the full vocabulary, float32 [N], in nats; the teacher is constant.

    `teacher_mode` surrounds each use of the teacher's head, for an adapter that is switched off there.
    """

    def compute(hidden: Tensor, rows: slice) -> tuple[Tensor, ...]:
        with torch.no_grad():
            if teacher_mode is None:
                other_NV = teacher(teacher_hidden_ND[rows], temperature)
            else:
                with teacher_mode():
                    other_NV = teacher(teacher_hidden_ND[rows], temperature)
            other_NV = other_NV.log_softmax(-1)
        own_NV = head(hidden, temperature).log_softmax(-1)
        return ((own_NV.exp() * (own_NV - other_NV)).sum(-1),)

    return _in_chunks(head, hidden_ND, compute, 1)[0]


def _logps(logits_NV: Tensor, lse_N: Tensor, targets_N: Tensor) -> Tensor:
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - lse_N


def _entropy(logits_NV: Tensor, lse_N: Tensor, targets_N: Tensor) -> Tensor:
    return lse_N - ((logits_NV - lse_N[:, None]).exp() * logits_NV).sum(-1)


def _sum_p2(logits_NV: Tensor, lse_N: Tensor, targets_N: Tensor) -> Tensor:
    return ((2 * logits_NV).logsumexp(-1) - 2 * lse_N).exp()


def _log1m(logits_NV: Tensor, lse_N: Tensor, targets_N: Tensor) -> Tensor:
    return logits_NV.scatter(-1, targets_N[:, None], -math.inf).logsumexp(-1) - lse_N


STATISTICS = {"logps": _logps, "entropy": _entropy, "sum_p2": _sum_p2, "log1m": _log1m}

Compute = Callable[[Tensor, slice], tuple[Tensor, ...]]


def _in_chunks(head: Head, hidden_ND: Tensor, compute: Compute, num_outputs: int) -> tuple[Tensor, ...]:
    size = max(1, CHUNK_ELEMENTS // head.vocab_size)
    rows = [slice(i, i + size) for i in range(0, len(hidden_ND), size)]
    if not torch.is_grad_enabled() or not (hidden_ND.requires_grad or head.is_trained):
        with torch.no_grad():
            parts = [compute(hidden_ND[r], r) for r in rows]
    elif head.is_trained:
        from torch.utils.checkpoint import checkpoint

        parts = [checkpoint(compute, hidden_ND[r], r, use_reentrant=False) for r in rows]
    else:
        return _FrozenHead.apply(hidden_ND, compute, rows, num_outputs)
    return tuple(torch.cat([p[k] for p in parts]) for k in range(num_outputs))


class _Logps(torch.autograd.Function):
    """Log-probabilities through a plain head, a tile of the vocabulary at a time, with running maxima and sums.

    With a frozen head the mean embedding under the softmax is summed up beside them (as FlashAttention does with
    values, arXiv:2205.14135), and the gradient by the hidden state is the target's embedding less this mean. A trained
    head computes its logits again in the backward.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        size = (len(hidden_ND), 1)
        largest_N1 = torch.full(size, -math.inf, device=hidden_ND.device)
        total_N1 = torch.zeros(size, device=hidden_ND.device)
        own_N1 = torch.empty(size, device=hidden_ND.device)
        mean_ND = torch.zeros(hidden_ND.shape, device=hidden_ND.device) if needs_hidden and not needs_weight else None
        for start, tile_CD, at_N1, inside_N1 in _tiles(weight_VD, targets_N):
            logits_NC = _logits(hidden_ND, tile_CD, scale)
            own_N1 = torch.where(inside_N1, logits_NC.gather(1, at_N1), own_N1) if start else logits_NC.gather(1, at_N1)
            before_N1, largest_N1 = largest_N1, torch.maximum(largest_N1, logits_NC.amax(1, keepdim=True))
            shrink_N1 = (before_N1 - largest_N1).exp_()
            p_NC = logits_NC.sub_(largest_N1).exp_()
            total_N1.mul_(shrink_N1).add_(p_NC.sum(1, keepdim=True))
            if mean_ND is not None:
                mean_ND.mul_(shrink_N1)
                if hidden_ND.dtype == torch.float32:
                    mean_ND.addmm_(p_NC, tile_CD)
                else:
                    mean_ND += p_NC.to(hidden_ND.dtype) @ tile_CD
        lse_N1 = largest_N1 + total_N1.log_()
        ctx.scale, ctx.frozen = scale, mean_ND is not None
        if mean_ND is not None:
            slope_ND = (weight_VD[targets_N] - mean_ND.div_((lse_N1 - largest_N1).exp_())).mul_(scale)
            ctx.save_for_backward(slope_ND.to(hidden_ND.dtype))
        elif needs_weight:
            ctx.save_for_backward(hidden_ND, weight_VD, targets_N, lse_N1)
        return (own_N1 - lse_N1)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        d_logps_N1 = grads[0][:, None]
        if ctx.frozen:
            (slope_ND,) = ctx.saved_tensors
            return (slope_ND * d_logps_N1).to(slope_ND.dtype), None, None, None
        hidden_ND, weight_VD, targets_N, lse_N1 = ctx.saved_tensors
        factor_N1 = d_logps_N1 * ctx.scale
        d_hidden_ND = torch.zeros(hidden_ND.shape, device=hidden_ND.device)
        d_weight_VD = torch.empty_like(weight_VD)
        for start, tile_CD, at_N1, inside_N1 in _tiles(weight_VD, targets_N):
            d_logits_NC = _logits(hidden_ND, tile_CD, ctx.scale).sub_(lse_N1).exp_().mul_(-factor_N1)
            d_logits_NC.scatter_add_(1, at_N1, torch.where(inside_N1, factor_N1, 0.0))
            d_logits_NC = d_logits_NC.to(hidden_ND.dtype)
            d_hidden_ND += d_logits_NC @ tile_CD
            d_weight_VD[start : start + len(tile_CD)] = d_logits_NC.t() @ hidden_ND
        return d_hidden_ND.to(hidden_ND.dtype), d_weight_VD, None, None


def _tiles(weight_VD: Tensor, targets_N: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Start and rows of each tile of the vocabulary, where each target lies in it, and whether it does."""
    for start in range(0, len(weight_VD), TILE):
        tile_CD = weight_VD[start : start + TILE]
        at_N1 = targets_N[:, None] - start
        yield start, tile_CD, at_N1.clamp(0, len(tile_CD) - 1), (at_N1 >= 0) & (at_N1 < len(tile_CD))


def _logits(hidden_ND: Tensor, tile_CD: Tensor, scale: float) -> Tensor:
    logits_NC = torch.mm(hidden_ND, tile_CD.t()).float()
    return logits_NC if scale == 1.0 else logits_NC.mul_(scale)


class _FrozenHead(torch.autograd.Function):
    """Statistics with, for each, its gradient by the hidden state: one [N, D] tensor and no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, compute: Compute, rows: list[slice], num_outputs: int
    ) -> tuple[Tensor, ...]:
        values: list[list[Tensor]] = [[] for _ in range(num_outputs)]
        slopes = [torch.empty_like(hidden_ND) for _ in range(num_outputs)]
        for r in rows:
            hidden = hidden_ND[r].detach().requires_grad_()
            with torch.enable_grad():
                found = compute(hidden, r)
            for k, value in enumerate(found):
                (slopes[k][r],) = torch.autograd.grad(
                    value, hidden, torch.ones_like(value), retain_graph=k + 1 < num_outputs
                )
                values[k].append(value.detach())
        ctx.save_for_backward(*slopes)
        return tuple(torch.cat(v) for v in values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total: Any = sum(g[:, None] * slope for g, slope in zip(grads, ctx.saved_tensors))
        return total.to(ctx.saved_tensors[0].dtype), None, None, None
