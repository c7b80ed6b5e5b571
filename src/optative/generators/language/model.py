"""A loaded language model with everything that scoring, sampling and training need to know about it.

Knows: which facts belong to a model. Does not know: where it came from (`load`), how it is adapted (`adapters`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from optative.generators.language.template import ChatTemplate


@dataclass
class LanguageModel:
    """A causal language model, its tokenizer and its chat template.

    `model` is a Transformers module, or PEFT's wrapper of one after `adapters.add_lora`. `name` says what it is without
    saying where it lies: a hub id, the name of a built-in model, or a folder's last name. `fingerprint` is the SHA-256
    of the base's weights and of the settings that move its numbers; adapters are not part of it. `hub_id` is set only
    for a model that came from the hub. `notes` are sentences that a report about this model has to carry. `source`
    loads it again on this machine and may be a local path: it never goes into a file that travels.
    """

    model: Any
    tokenizer: Any
    template: ChatTemplate
    name: str
    fingerprint: str
    dtype: torch.dtype
    dtype_reason: str
    device: torch.device
    eos_ids: tuple[int, ...]
    pad_id: int
    context_length: int
    hub_id: str | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
