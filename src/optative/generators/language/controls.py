"""Controls: a few weights for each label, put on one language model, so that the label asked for decides the answer.

Two kinds. Soft prompt (Lester et al. 2021, arXiv:2104.08691): embeddings in front of the prompt. They have token ids of
their own behind the vocabulary, so that scoring, packing and sampling treat them as tokens: positions go on from them,
nothing stands between them and the prompt, and a pack can hold rows of different labels. LoRA: one pair of factors a
label on some projections; a forward has one label, so that a pack holds groups of one label only (`Group.control`).

Knows: the two kinds, which weights belong to which label. Does not know: what a label means, losses, which weights
move (`train_only`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from optative.core.errors import InputError, unknown
from optative.core.rng import stream
from optative.generators.language.attention import backbone_of, base_of
from optative.generators.language.packing import Group, Ids

_CONTROLS = "_optative_controls"  # on the module


@dataclass
class Controls:
    """`weights`: of each label. `prefixes`: ids in front of its prompts, none for LoRA. `active`: label of forwards."""

    weights: dict[str, list[torch.nn.Parameter]]
    prefixes: dict[str, Ids]
    active: str = ""


class PromptedEmbedding(torch.nn.Module):
    """An embedding of V tokens with rows of its own for the ids from V on."""

    def __init__(self, base: torch.nn.Embedding, rows: Sequence[Tensor]) -> None:
        super().__init__()
        self.base = base
        own = (r.detach().clone().to(base.weight.device, torch.float32) for r in rows)
        self.prompts = torch.nn.ParameterList(map(torch.nn.Parameter, own))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, torch.cat([self.base.weight, *self.prompts]))


class ControlledLinear(torch.nn.Module):
    """y = W x + scale B_c A_c x with the factors of the label c that is active; W x when none is."""

    def __init__(self, base: torch.nn.Linear, factors: Sequence[tuple[Tensor, Tensor]], scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a = torch.nn.ParameterList([torch.nn.Parameter(a) for a, _ in factors])
        self.b = torch.nn.ParameterList([torch.nn.Parameter(b) for _, b in factors])
        self.active: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.active is None:
            return y
        return y + self.scale * linear(linear(x, self.a[self.active]), self.b[self.active])


def add_soft_prompts(lm: Any, starts: Mapping[str, Tensor]) -> None:
    """Put a soft prompt for each label on `lm`; `starts`: its first values, [P, hidden]."""
    base = base_of(lm)
    _none_yet(base)
    backbone = backbone_of(base)
    embedding = backbone.embed_tokens
    backbone.embed_tokens = PromptedEmbedding(embedding, list(starts.values()))
    at, prefixes = len(embedding.weight), dict[str, Ids]()
    for label, rows in starts.items():
        prefixes[label] = tuple(range(at, at + len(rows)))
        at += len(rows)
    weights = {label: [own] for label, own in zip(starts, backbone.embed_tokens.prompts)}
    setattr(base, _CONTROLS, Controls(weights, prefixes))


def add_control_loras(
    lm: Any, labels: Sequence[str], *, rank: int, alpha: float, seed: int, targets: Sequence[str] = ("q_proj", "v_proj")
) -> None:
    """Put a LoRA for each label on the projections of the attention that are named; B is zero, A as in `add_lora`."""
    base = base_of(lm)
    _none_yet(base)
    weights: dict[str, list[torch.nn.Parameter]] = {label: [] for label in labels}
    for index, layer in enumerate(backbone_of(base).layers):
        for target in targets:
            inner = getattr(layer.self_attn, target)
            wide, bound = inner.weight.shape, inner.weight.shape[1] ** -0.5
            factors = []
            for label in labels:
                values = stream(seed, "control", label, index, target).uniform(-bound, bound, (rank, wide[1]))
                a = torch.tensor(values, dtype=torch.float32, device=inner.weight.device)
                factors.append((a, a.new_zeros(wide[0], rank)))
            outer = ControlledLinear(inner, factors, alpha / rank)
            setattr(layer.self_attn, target, outer)
            for label, a, b in zip(labels, outer.a, outer.b):
                weights[label] += [a, b]
    setattr(base, _CONTROLS, Controls(weights, dict.fromkeys(labels, ())))


def controls_of(lm: Any) -> Controls:
    """The controls of a model; InputError when it has none."""
    found: Controls | None = getattr(base_of(lm), _CONTROLS, None)
    if found is None:
        raise InputError("the model has no controls", field="control")
    return found


def controlled(lm: Any, label: str, group: Group) -> Group:
    """A group whose answers are meant under a label."""
    controls = controls_of(lm)
    if label not in controls.weights:
        raise InputError(unknown("control", label, controls.weights), field="control")
    prefix = controls.prefixes[label]
    return Group(prefix + group.prompt_ids, group.completion_ids, group.masks, "" if prefix else label)


@contextlib.contextmanager
def active(lm: Any, label: str) -> Iterator[None]:
    """Forwards inside have the LoRA of this label; `""`: none. Soft prompts need no such thing."""
    controls: Controls | None = getattr(base_of(lm), _CONTROLS, None)
    if controls is None and not label:
        yield
        return
    controls = controls_of(lm)
    before = controls.active
    _switch(lm, controls, label)
    try:
        yield
    finally:
        _switch(lm, controls, before)


def _switch(lm: Any, controls: Controls, label: str) -> None:
    controls.active = label
    place = list(controls.weights).index(label) if label else None
    for module in base_of(lm).modules():
        if isinstance(module, ControlledLinear):
            module.active = place


@contextlib.contextmanager
def blended(lm: Any, label: str, shares: Mapping[str, float]) -> Iterator[None]:
    """Inside, the weights of `label` are a weighted sum of those of several labels; shares may lie outside 0 to 1."""
    controls = controls_of(lm)
    own = controls.weights[label]
    before = [weight.detach().clone() for weight in own]
    parts = [[share * weight.detach() for weight in controls.weights[other]] for other, share in shares.items()]
    mixed = [torch.stack(values).sum(0) for values in zip(*parts, strict=True)]
    try:
        with torch.no_grad():
            for weight, value in zip(own, mixed):
                weight.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(own, before):
                weight.copy_(value)


def train_only(lm: Any, *, controls: bool, model: bool) -> None:
    """Which weights move from now on: those of the controls, those of the model, or both."""
    own = {id(weight) for weights in controls_of(lm).weights.values() for weight in weights}
    for parameter in base_of(lm).parameters():
        parameter.requires_grad_(controls if id(parameter) in own else model)


def _none_yet(base: Any) -> None:
    if hasattr(base, _CONTROLS):
        raise RuntimeError("the model already has controls")
