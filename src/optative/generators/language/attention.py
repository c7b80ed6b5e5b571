"""Attention over packed sequences, inside any Transformers model that takes its attention from the library's table.

A model is switched once to the function registered here. Without a `layout` among the keyword arguments of its forward
it computes what `sdpa` computes. With one, the layout decides what each token sees: `PackLayout` for groups that share
a prompt, `cache.RowLayout` for one new token a row. Passing the layout as an argument, and not as global state, keeps
it right under gradient checkpointing, which runs the forward again later.

Knows: blocks of queries and keys, sliding windows, soft-capped scores. Does not know: tokens, heads of the model.
Refuses (`LayoutUnsupported`) what it does not know: attention sinks, position biases, chunked or recurrent layers.
Shapes: T tokens of the pack, L queries and S keys of a block, H heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from optative.core.errors import OptativeError
from optative.generators.language.packing import Group, Pack

NAME = "optative"
TILE = 96  # queries that go together in the attention's backward: the fastest of 32, 64, 96, 128 on one core
Settings = tuple[float, int | None, float | None, float]  # scale, window, cap, dropout
_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}
_REASONS: WeakKeyDictionary[torch.nn.Module, str | None] = WeakKeyDictionary()


class LayoutUnsupported(OptativeError):
    """The model computes something that a layout does not describe."""


def base_of(model: Any) -> Any:
    """The Transformers module inside a `LanguageModel` or a PEFT wrapper."""
    module: Any = model if isinstance(model, torch.nn.Module) else model.model
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def backbone_of(base: Any) -> Any:
    """The part that gives hidden states: the causal language model without its head."""
    return getattr(base, base.base_model_prefix)


def why_no_layout(base: Any) -> str | None:
    """Why the model cannot take layouts, or None. The first call switches its attention and tries it on two tokens."""
    if base not in _REASONS:
        _REASONS[base] = _static_reason(base)
        if _REASONS[base] is None:
            _register()
            base.set_attn_implementation(NAME)
            _REASONS[base] = _reason_of_trial(base)
    return _REASONS[base]


def run_backbone(base: Any, layout: Any, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Hidden states [B, T, hidden] under a layout, of a model without `why_no_layout`."""
    calls = layout.calls
    # A mask of four dimensions is handed through as it is, so the model builds none of its own.
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids_BT.device)
    out = backbone_of(base)(
        input_ids=ids_BT, attention_mask=mask, position_ids=positions_BT, use_cache=False, layout=layout
    )
    if layout.calls - calls != base.config.get_text_config().num_hidden_layers:
        raise LayoutUnsupported("some of its layers do not attend through the library's table")
    return out.last_hidden_state


def _reason_of_trial(base: Any) -> str | None:
    layout = PackLayout(Pack((Group((0,), ((0,),)),), (0,)), base.get_input_embeddings().weight.device)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            run_backbone(base, layout, layout.ids_1T, layout.positions_1T)
    except LayoutUnsupported as error:
        return str(error)
    return None


def _static_reason(base: Any) -> str | None:
    config = base.config.get_text_config()
    if not getattr(base, "_supports_attention_backend", False):
        return "its attention does not go through the library's table"
    if getattr(base, "_is_stateful", False):
        return "it carries a recurrent state"
    if "position_ids" not in inspect.signature(backbone_of(base).forward).parameters:
        return "it takes no positions"
    other = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        return f"it has layers of type {', '.join(sorted(other))}"
    if getattr(config, "is_causal", True) is False:
        return "its attention is not causal"
    return None


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    AttentionInterface.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        if kwargs.get("softcap") is not None:
            return _capped(query, key, value, attention_mask, scaling, kwargs["softcap"]).transpose(1, 2), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    for name in ("s_aux", "position_bias", "sinks"):
        if kwargs.get(name) is not None:
            raise LayoutUnsupported(f"its attention uses {name}")
    window = kwargs.get("sliding_window")
    types = getattr(module.config, "layer_types", None)
    if types and types[module.layer_idx] == "sliding_attention" and window is None:
        raise LayoutUnsupported("it does not say how wide its sliding windows are")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layout.calls += 1
    out = layout.attend(module.layer_idx, query, key, value, scale, window, kwargs.get("softcap"), dropout)
    return out.transpose(1, 2).contiguous(), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float | None,
    dropout: float,
) -> Tensor:
    """Attention of [B, H, L, D] queries on [B, h, S, D] keys, h dividing H; `mask` is boolean, True is seen."""
    if cap is not None:
        if causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return _capped(query, key, value, mask, scale, cap)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, cap: float) -> Tensor:
    """Attention with scores squashed to (-cap, cap) before the softmax (Gemma 2, arXiv:2408.00118)."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = cap * torch.tanh(query @ key.transpose(-1, -2) * scale / cap)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril(key.shape[2] - query.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


class PackLayout:
    """Groups side by side in one row of T tokens: [prompt, completion 1, completion 2, ...] and the next group.

    A completion sees its prompt and itself; groups do not see one another; positions of each completion continue from
    its prompt. `keep`: collect every layer's keys and values, for a cache.
    """

    def __init__(self, pack: Pack, device: Any, *, keep: bool = False) -> None:
        self.calls = 0
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None
        self.settings: dict[int, Settings] = {}  # what the model's own forward asked for, by layer
        ids: list[int] = []
        positions: list[int] = []
        self.blocks: list[tuple[int, int, int, int]] = []  # prompt start, prompt end, queries start, queries end
        self.prompt_ends: list[int] = []
        self.completion_starts: list[list[int]] = []
        for group in pack.groups:
            start, length = len(ids), len(group.prompt_ids)
            ids += group.prompt_ids
            positions += range(length)
            self.prompt_ends.append(start + length)
            self.completion_starts.append([])
            for i, completion in enumerate(group.completion_ids):
                at = len(ids)
                self.completion_starts[-1].append(at)
                ids += completion
                positions += range(length, length + len(completion))
                # The first completion goes with its prompt, as one plain causal block.
                self.blocks.append((start, start, start, len(ids)) if i == 0 else (start, start + length, at, len(ids)))
            if not group.completion_ids:
                self.blocks.append((start, start, start, len(ids)))
        self.ids_1T = torch.tensor([ids], device=device)
        self.positions_1T = torch.tensor([positions], device=device)
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
        dropout: float,
    ) -> Tensor:
        if self.kept is not None:
            self.kept.append((key, value))
        settings = (scale, window, cap, dropout)
        self.settings[layer] = settings
        if dropout:
            return torch.cat([self._block(q, k, v, settings) for q, k, v in self._parts(query, key, value)], dim=2)
        return _Blocks.apply(query, key, value, self, settings)

    def forward_blocks(self, query: Tensor, key: Tensor, value: Tensor, settings: Settings) -> Tensor:
        """Attention of the whole pack, [1, H, T, D]; nothing is kept for a backward."""
        with torch.no_grad():
            out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]).transpose(1, 2)
            for (_, _, q0, q1), (q, k, v) in zip(self.blocks, self._parts(query, key, value)):
                out[:, :, q0:q1] = self._block(q, k, v, settings)
        return out

    def backward_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, d_out: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The attention once more, and its gradients by queries, keys and values."""
        out, d_query, d_key, d_value = (torch.zeros_like(t) for t in (d_out, query, key, value))
        for (p0, p1, q0, q1), (q, k, v) in zip(self.blocks, self._parts(query, key, value)):
            o, d_q, d_k, d_v = self._block_backward(q, k, v, d_out[:, :, q0:q1], settings)
            out[:, :, q0:q1], d_query[:, :, q0:q1] = o, d_q
            for total, part in ((d_key, d_k), (d_value, d_v)):
                if p1 > p0:
                    total[:, :, p0:p1] += part[:, :, : p1 - p0]
                total[:, :, q0:q1] += part[:, :, p1 - p0 :]
        return out, d_query, d_key, d_value

    def _parts(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for p0, p1, q0, q1 in self.blocks:
            yield query[:, :, q0:q1], _rows(key, p0, p1, q0, q1), _rows(value, p0, p1, q0, q1)

    def _block(self, query: Tensor, key: Tensor, value: Tensor, settings: Settings) -> Tensor:
        scale, window, cap, dropout = settings
        num_queries, num_keys = query.shape[2], key.shape[2]
        windowed = window is not None and window < num_keys
        causal = num_queries == num_keys and not windowed
        mask = None
        if not causal and (windowed or num_queries > 1):
            mask = self._mask(num_queries, num_keys, window if windowed else None, query.device)
        return attend(query, key, value, mask, causal, scale, cap, dropout)

    def _block_backward(self, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, settings: Settings) -> tuple[Tensor, ...]:
        scale, window, cap, _ = settings
        # Processors run the library's backward of attention slowly, of half precision twice as slowly.
        if q.device.type == "cpu" and cap is None and (window is None or window >= k.shape[2]):
            return tuple(t[None] for t in _causal_backward(q[0], k[0], v[0], d_out[0], scale))
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        with torch.enable_grad():
            out = self._block(q, k, v, settings)
        return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)

    def _mask(self, num_queries: int, num_keys: int, window: int | None, device: Any) -> Tensor:
        found = self._masks.get((num_queries, num_keys, window))
        if found is None:
            distance = (
                torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
                - torch.arange(num_keys, device=device)[None]
            )
            found = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            self._masks[num_queries, num_keys, window] = found
        return found


def _causal_backward(
    q_HLD: Tensor, k_hSD: Tensor, v_hSD: Tensor, d_out_HLD: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of the last L of S tokens, and its gradients by queries, keys and values, as plain matrix products.

    Queries go in tiles that see only the keys up to their end, and the heads of one key are one product. The formulas
    are those of FlashAttention (arXiv:2205.14135, appendix B.2).
    """
    groups, tokens, size = len(k_hSD), q_HLD.shape[1], q_HLD.shape[2]
    offset = k_hSD.shape[1] - tokens
    out, d_q = torch.empty_like(d_out_HLD), torch.empty_like(q_HLD)
    d_k, d_v = (torch.zeros(t.shape, dtype=t.dtype) for t in (k_hSD, v_hSD))
    for start in range(0, tokens, TILE):
        end = min(start + TILE, tokens)
        rows, seen = end - start, offset + end
        k, v = k_hSD[:, :seen], v_hSD[:, :seen]
        q = (q_HLD[:, start:end] * scale).reshape(groups, -1, size)
        d_o = d_out_HLD[:, start:end].reshape(groups, -1, v.shape[2])
        scores = torch.bmm(q, k.transpose(1, 2))
        hidden = torch.full((rows, rows), -torch.inf, dtype=scores.dtype).triu_(1)
        scores.view(groups, -1, rows, seen)[..., seen - rows :].add_(hidden)
        p = scores.softmax(-1)
        o = torch.bmm(p, v)
        d_v[:, :seen] += torch.bmm(p.transpose(1, 2), d_o)
        shift = (d_o * o).sum(-1, keepdim=True, dtype=torch.float32).neg_().to(p.dtype)
        d_scores = torch.baddbmm(shift, d_o, v.transpose(1, 2)).mul_(p)
        d_k[:, :seen] += torch.bmm(d_scores.transpose(1, 2), q)
        out[:, start:end] = o.view(len(q_HLD), rows, -1)
        d_q[:, start:end] = torch.bmm(d_scores, k).mul_(scale).view(len(q_HLD), rows, -1)
    return out, d_q, d_k, d_v


class _Blocks(torch.autograd.Function):
    """Block attention that keeps only its inputs: each block is computed again in the backward.

    Plain autograd would keep a copy of the prompt's keys for every completion and add a full-size zero tensor for
    every slice.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, settings: Settings) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.settings = layout, settings
        return layout.forward_blocks(query, key, value, settings)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _, *found = ctx.layout.backward_blocks(*ctx.saved_tensors, grads[0], ctx.settings)
        return *found, None, None


def _rows(x: Tensor, p0: int, p1: int, q0: int, q1: int) -> Tensor:
    return torch.cat([x[:, :, p0:p1], x[:, :, q0:q1]], dim=2) if p1 > p0 else x[:, :, q0:q1]
