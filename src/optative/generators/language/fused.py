"""The layers of Llama-like models written out with their backward: the fast path of scoring and training.

A layer keeps for its backward only what cannot be had again cheaply: its input, queries, keys, values, the stream
between its halves, and the two inputs of the gate. Frozen weights get no gradient; an adapter stays in its two factors,
and projections of one input share the products with them. The last layer goes on only with the positions that
something is predicted from. The formulas are those of Llama (arXiv:2302.13971), LoRA (arXiv:2106.09685, eq. 3) and
RMSNorm (arXiv:1910.07467, eq. 4).

Knows: modules of Transformers and of PEFT by their parts, compared with the model's own forward on first use. Does not
know: packs, heads, losses. `why_not_fused` names the reason where a model cannot be taken; it then runs as it is.
Shapes: T tokens, H heads, D head size, R rank, I and O inputs and outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, rms_norm, silu

from optative.generators.language.attention import PackLayout, Settings, backbone_of, run_backbone, why_no_layout
from optative.generators.language.packing import Group, Pack

KEPT_BYTES = 3 << 27  # what the layers of one forward may keep for the backward; beyond it a layer is computed twice
_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
_PROJECTIONS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
_REASONS: WeakKeyDictionary[torch.nn.Module, str | None] = WeakKeyDictionary()
_SETTINGS: WeakKeyDictionary[torch.nn.Module, dict[int, Settings]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Projection:
    """y = x W^T + bias + scale (x A^T) B^T."""

    weight_OI: Tensor
    bias_O: Tensor | None
    a_RI: Tensor | None
    b_OR: Tensor | None
    scale: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: its projections by common input (queries keys values, output, gate up, down) and its norms."""

    projections: tuple[tuple[Projection, ...], ...]
    norms: tuple[Tensor, Tensor]
    eps: float
    head_dim: int
    settings: Settings

    @property
    def tensors(self) -> list[Tensor | None]:
        return [
            *self.norms,
            *(t for group in self.projections for p in group for t in (p.weight_OI, p.bias_O, p.a_RI, p.b_OR)),
        ]


def why_not_fused(base: Any) -> str | None:
    """Why the layers of a model cannot be taken from here, or None. The first call compares them with its forward."""
    reason = why_no_layout(base) or _reason_now(base)
    if reason is not None:
        return reason
    if base not in _REASONS:
        _REASONS[base] = _reason_of_trial(base)
    return _REASONS[base]


def run_fused(base: Any, layout: PackLayout, rows_N: Tensor) -> Tensor:
    """The last hidden states [N, hidden] at some positions of a pack, of a model without `why_not_fused`."""
    backbone = backbone_of(base)
    hidden_TD = backbone.embed_tokens(layout.ids_1T)[0]
    rotary = _rotary(backbone, hidden_TD, layout)
    needed_M, back_N = torch.unique(rows_N, return_inverse=True)
    layers = [_layer(base, i) for i in range(len(backbone.layers))]
    kept = _kept_layers(layers, hidden_TD)
    if backbone.training and getattr(backbone, "gradient_checkpointing", False):
        kept = 0
    for i, layer in enumerate(layers):
        rows = needed_M if i + 1 == len(layers) else None
        # The last layers are kept: their memory is free again first.
        keep = i >= len(layers) - kept
        hidden_TD = _LayerFunction.apply(hidden_TD, layer, layout, rotary, rows, keep, *layer.tensors)
    return backbone.norm(hidden_TD).index_select(0, back_N)


def _rotary(backbone: Any, hidden: Tensor, layout: PackLayout) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, D / 2]; the model repeats them for the second half of a head."""
    cos, sin = backbone.rotary_emb(hidden, position_ids=layout.positions_1T)
    half = cos.shape[-1] // 2
    return cos[0, :, None, :half], sin[0, :, None, :half]


def _kept_layers(layers: Sequence[Layer], hidden_TD: Tensor) -> int:
    qkv, (output,), gate_up, _ = layers[0].projections
    widths = [p.weight_OI.shape[0] for p in (*qkv, output, *gate_up)]
    per_layer = len(hidden_TD) * sum(widths) * hidden_TD.element_size()
    return min(len(layers), max(1, KEPT_BYTES // per_layer))


# -------------------- reading a model


def _layer(base: Any, index: int) -> Layer:
    module = backbone_of(base).layers[index]
    return Layer(
        tuple(
            tuple(_projection(getattr(getattr(module, part), name)) for name in names) for part, names in _PROJECTIONS
        ),
        (module.input_layernorm.weight, module.post_attention_layernorm.weight),
        module.input_layernorm.variance_epsilon,
        module.self_attn.head_dim,
        _SETTINGS[base][index],
    )


def _projection(module: Any) -> Projection:
    if isinstance(module, torch.nn.Linear):
        return Projection(module.weight, module.bias, None, None, 1.0)
    inner = module.base_layer
    if module.merged or module.disable_adapters or not module.active_adapters:
        return Projection(inner.weight, inner.bias, None, None, 1.0)
    (name,) = module.active_adapters
    return Projection(
        inner.weight, inner.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    )


def _reason_now(base: Any) -> str | None:
    """Reasons that may come and go: training, adapters, hooks."""
    backbone = backbone_of(base)
    if not hasattr(backbone, "layers") or not hasattr(backbone, "rotary_emb") or not hasattr(backbone, "embed_tokens"):
        return "its backbone has other parts than Llama's"
    for layer in backbone.layers:
        for part, expected in _PARTS.items():
            module = getattr(layer, part, None) if part else layer
            if module is None or {name for name, _ in module.named_children()} != expected:
                return "its layers have other parts than Llama's"
        if not hasattr(layer.input_layernorm, "variance_epsilon") or not hasattr(layer.self_attn, "head_dim"):
            return "its layers have other parts than Llama's"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "hooks are attached to its layers"
        if not isinstance(layer.mlp.act_fn, torch.nn.SiLU) and type(layer.mlp.act_fn).__name__ != "SiLUActivation":
            return "its activation is not SiLU"
        if layer.training and getattr(layer.self_attn, "attention_dropout", 0):
            return "its attention has dropout in training"
        for part, names in _PROJECTIONS:
            for name in names:
                reason = _projection_reason(getattr(getattr(layer, part), name))
                if reason is not None:
                    return reason
    return None


def _projection_reason(module: Any) -> str | None:
    if type(module) is torch.nn.Linear:
        return None
    from peft.tuners.lora.layer import Linear as LoraLinear

    if not isinstance(module, LoraLinear) or type(module.base_layer) is not torch.nn.Linear:
        return f"a projection is a {type(module).__name__}"
    if module.merged or module.disable_adapters or not module.active_adapters:
        return None
    if len(module.active_adapters) > 1:
        return "several adapters are active"
    name = module.active_adapters[0]
    if name not in module.lora_A:
        return "an adapter is active that some projections lack"
    if name in module.lora_variant or module.fan_in_fan_out or module.lora_B[name].bias is not None:
        return "its adapter is more than two factors"
    if module.training and getattr(module.lora_dropout[name], "p", 0.0):
        return "its adapter has dropout in training"
    return None


@torch.no_grad()
def _reason_of_trial(base: Any) -> str | None:
    """Run the model on a few tokens, and each layer from here on what the model's own layer was given."""
    backbone, embedding = backbone_of(base), base.get_input_embeddings().weight
    prompt, *answers = (tuple(i % len(embedding) for i in ids) for ids in (range(1, 6), range(7, 11), range(3, 6)))
    layout = PackLayout(Pack((Group(prompt, tuple(answers)),), (0,)), embedding.device)
    given: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for layer in backbone.layers
    ]
    training = [m for m in base.modules() if m.training]
    base.eval()
    try:
        result = run_backbone(base, layout, layout.ids_1T, layout.positions_1T)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    _SETTINGS[base] = layout.settings
    rotary = _rotary(backbone, given[0], layout)
    found = [backbone.embed_tokens(layout.ids_1T)[0]]
    found += [_forward(x_1TI[0], _layer(base, i), layout, rotary, None)[0] for i, x_1TI in enumerate(given)]
    found[-1] = backbone.norm(found[-1])
    # Half precision has its own rounding in each product: 0.05 was seen on one token of one layer.
    tolerance = 1e-4 if embedding.dtype == torch.float32 else 0.08
    for own, right in zip(found, [*given, result], strict=True):
        difference_T, size_T = ((own - right[0]).float().norm(dim=-1), right[0].float().norm(dim=-1))
        if bool((difference_T > tolerance * size_T).any()):
            return "its layers compute something else than Llama's"
    return None


# -------------------- a layer with its backward


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        layer: Layer,
        layout: PackLayout,
        rotary: tuple[Tensor, Tensor],
        rows_M: Tensor | None,
        keep: bool,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.layer, ctx.layout, ctx.rotary, ctx.rows_M, ctx.keep = layer, layout, rotary, rows_M, keep
        out, saved = _forward(x_TI, layer, layout, rotary, rows_M)
        ctx.save_for_backward(*((x_TI, *saved) if keep else (x_TI,)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x_TI, *saved = ctx.saved_tensors
        if not ctx.keep:
            _, saved = _forward(x_TI, ctx.layer, ctx.layout, ctx.rotary, ctx.rows_M)
        d_x, d_tensors = _backward(
            grads[0], x_TI, saved, ctx.layer, ctx.layout, ctx.rotary, ctx.rows_M, ctx.needs_input_grad
        )
        return d_x, None, None, None, None, None, *d_tensors


def _forward(
    x_TI: Tensor, layer: Layer, layout: PackLayout, rotary: tuple[Tensor, Tensor], rows_M: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    qkv, output, gate_up, down = layer.projections
    (q, k, v), z_qkv = _project(_norm(x_TI, layer.norms[0], layer.eps), qkv)
    q, k, v = (t.view(len(t), -1, layer.head_dim) for t in (q, k, v))
    q, k = _rotate(q, *rotary), _rotate(k, *rotary)
    o = layout.forward_blocks(_heads(q), _heads(k), _heads(v), layer.settings)[0].transpose(0, 1).flatten(1)
    if rows_M is not None:
        o, x_TI = o[rows_M], x_TI[rows_M]
    (x2,), z_o = _project(o, output, onto=x_TI)
    (g, u), z_gu = _project(_norm(x2, layer.norms[1], layer.eps), gate_up)
    (out,), z_d = _project(silu(g).mul_(u), down, onto=x2)
    return out, [q, k, v, x2, g, u, z_qkv, z_o, z_gu, z_d]


def _backward(
    d_out: Tensor,
    x_TI: Tensor,
    saved: Sequence[Tensor],
    layer: Layer,
    layout: PackLayout,
    rotary: tuple[Tensor, Tensor],
    rows_M: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    q, k, v, x2, g, u, z_qkv, z_o, z_gu, z_d = saved
    cos, sin = rotary
    needs_norm1, needs_norm2 = needs[6], needs[7]
    d_out = d_out.contiguous()

    s = silu(g)
    m = s * u
    d_m, d_down = _project_backward((d_out,), m, z_d, layer.projections[3])
    torch.mul(s, d_m, out=s)  # now the gradient of u
    d_g = torch.ops.aten.silu_backward(d_m.mul_(u), g)
    h2 = _norm(x2, layer.norms[1], layer.eps)
    d_h2, d_gate_up = _project_backward((d_g, s), h2, z_gu, layer.projections[2])
    del d_g, s, m, d_m
    d_x2, d_norm2 = _norm_backward(d_h2, x2, layer.norms[1], layer.eps, needs_norm2)
    d_x2 += d_out

    # The attention's output is had again by its backward, which `o`'s own factors need.
    d_o, _ = _project_backward((d_x2,), None, None, layer.projections[1])
    if rows_M is not None:
        d_o = torch.zeros_like(x_TI[:, :1]).expand(-1, d_o.shape[1]).clone().index_copy_(0, rows_M, d_o)
        d_x2_T = torch.zeros_like(x_TI).index_copy_(0, rows_M, d_x2)
    else:
        d_x2_T = d_x2
    d_o = d_o.view(len(d_o), -1, layer.head_dim)
    o, d_q, d_k, d_v = layout.backward_blocks(_heads(q), _heads(k), _heads(v), _heads(d_o), layer.settings)
    o = o[0].transpose(0, 1).flatten(1)
    if rows_M is not None:
        o = o[rows_M]
    _, d_output = _project_backward((d_x2,), o, z_o, layer.projections[1], needs_input=False)

    d_q, d_k, d_v = (t[0].transpose(0, 1) for t in (d_q, d_k, d_v))
    d_q, d_k = _rotate(d_q, cos, -sin), _rotate(d_k, cos, -sin)
    h1 = _norm(x_TI, layer.norms[0], layer.eps)
    wanted = needs[0] or needs_norm1
    d_h1, d_qkv = _project_backward(
        tuple(t.reshape(len(t), -1) for t in (d_q, d_k, d_v)), h1, z_qkv, layer.projections[0], needs_input=wanted
    )
    d_x: Tensor | None = None
    d_norm1: Tensor | None = None
    if wanted:
        d_x, d_norm1 = _norm_backward(d_h1, x_TI, layer.norms[0], layer.eps, needs_norm1)
        d_x += d_x2_T
    return d_x, [d_norm1, d_norm2, *d_qkv, *d_output, *d_gate_up, *d_down]


def _heads(x_THD: Tensor) -> Tensor:
    return x_THD.transpose(0, 1)[None]


def _norm(x_TI: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x_TI, (x_TI.shape[-1],), weight, eps)


def _norm_backward(
    d_h: Tensor, x_TI: Tensor, weight: Tensor, eps: float, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    norm_T1 = torch.linalg.vector_norm(x_TI, dim=-1, keepdim=True, dtype=torch.float32)
    inverse_T1 = (norm_T1.square_().div_(x_TI.shape[-1]).add_(eps)).rsqrt_()
    x_hat = x_TI * inverse_T1
    d_weight = (d_h * x_hat).sum(0).to(weight.dtype) if needs_weight else None
    d_hat = d_h.float() * weight
    mean_T1 = (d_hat * x_hat).mean(-1, keepdim=True).neg_()
    return d_hat.addcmul_(x_hat, mean_T1).mul_(inverse_T1).to(x_TI.dtype), d_weight


def _rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
    first, second = x_THD[..., :half], x_THD[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def _factors(group: Sequence[Projection], dtype: torch.dtype) -> Tensor | None:
    found = [p.a_RI for p in group if p.a_RI is not None]
    return (torch.cat(found) if len(found) > 1 else found[0]).to(dtype) if found else None


def _project(x_TI: Tensor, group: Sequence[Projection], *, onto: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
    """Outputs of all projections of one input, and the input's products with their first factors, side by side."""
    a = _factors(group, x_TI.dtype)
    z = x_TI.new_empty((len(x_TI), 0)) if a is None else linear(x_TI, a)
    at = 0
    outputs = []
    for p in group:
        if onto is None:
            y = linear(x_TI, p.weight_OI, p.bias_O)
        else:
            y = torch.addmm(onto, x_TI, p.weight_OI.t())
            if p.bias_O is not None:
                y += p.bias_O
        if p.b_OR is not None:
            rank = p.b_OR.shape[1]
            y.addmm_(z[:, at : at + rank], p.b_OR.to(y.dtype).t(), alpha=p.scale)
            at += rank
        outputs.append(y)
    return outputs, z


def _project_backward(
    d_ys: Sequence[Tensor],
    x_TI: Tensor | None,
    z: Tensor | None,
    group: Sequence[Projection],
    *,
    needs_input: bool = True,
) -> tuple[Any, list[Tensor | None]]:
    """Gradients of the input and, where the input is given, of each projection's weight, bias, A and B."""
    dtype = d_ys[0].dtype
    a = _factors(group, dtype)
    ts = [
        torch.mm(d_y, p.b_OR.to(dtype)).mul_(p.scale) for d_y, p in zip(d_ys, group, strict=True) if p.b_OR is not None
    ]
    t = None if not ts else torch.cat(ts, 1) if len(ts) > 1 else ts[0]
    d_x: Tensor | None = None
    if needs_input:
        for d_y, p in zip(d_ys, group, strict=True):
            d_x = torch.mm(d_y, p.weight_OI) if d_x is None else d_x.addmm_(d_y, p.weight_OI)
        if t is not None and a is not None:
            assert d_x is not None
            d_x.addmm_(t, a)
    if x_TI is None:
        return d_x, []
    d_a = torch.mm(t.t(), x_TI) if t is not None and any(_trained(p.a_RI) for p in group) else None
    grads: list[Tensor | None] = []
    at = 0
    for d_y, p in zip(d_ys, group, strict=True):
        grads.append(torch.mm(d_y.t(), x_TI) if p.weight_OI.requires_grad else None)
        grads.append(d_y.sum(0) if _trained(p.bias_O) else None)
        if p.a_RI is None or p.b_OR is None:
            grads += [None, None]
            continue
        rank = len(p.a_RI)
        assert z is not None
        grads.append(d_a[at : at + rank].to(p.a_RI.dtype) if d_a is not None and _trained(p.a_RI) else None)
        found = torch.mm(d_y.t(), z[:, at : at + rank]).mul_(p.scale) if _trained(p.b_OR) else None
        grads.append(None if found is None else found.to(p.b_OR.dtype))
        at += rank
    return d_x, grads


def _trained(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad
