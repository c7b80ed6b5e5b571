"""Tiny language models of several families, and one whose every next token is known, as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from optative.generators.language.template import ChatTemplate
from tiny_models import CHATML, make_tokenizer

VOCABULARY = 97
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_GPT = {"vocab_size": VOCABULARY, "n_positions": 128, "bos_token_id": 2, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SHAPE),
    "qwen2": ("Qwen2", _SHAPE),
    "gpt2": ("GPT2", {**_GPT, "n_embd": 32, "n_layer": 2, "n_head": 4}),  # learned positions
    "mistral": ("Mistral", {**_SHAPE, "sliding_window": 8}),
    "gemma2": (
        "Gemma2",
        {
            **_SHAPE,
            "head_dim": 8,
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "granite": ("Granite", {**_SHAPE, "logits_scaling": 3.0}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # no positions
    "mamba": ("Mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}


def family(name: str, *, seed: int = 0) -> Any:
    """A random model in float32 and evaluation mode, with weights large enough that every part shows in the logits."""
    import transformers

    prefix, settings = FAMILIES[name]
    suffix = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, prefix + suffix)(getattr(transformers, prefix + "Config")(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def chain(successors: Mapping[int, int], vocabulary: int, *, context: int = 128) -> Any:
    """A Llama that always continues token a with successors[a]: layers add nothing, the head is a table."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=vocabulary + vocabulary % 2,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(vocabulary, vocabulary + vocabulary % 2))
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, following in successors.items():
            model.lm_head.weight[following, token] = 5.0
    return model.eval()


def wrap(
    model: Any, tokenizer: Any = None, *, eos_ids: tuple[int, ...] | None = None, template: str | None = CHATML
) -> Any:
    """What the engine needs of a `LanguageModel`."""
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    config = getattr(model, "config", None)
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, "test", {"eos_token": tokenizer.eos_token or ""}),
        eos_ids=(tokenizer.eos_token_id,) if eos_ids is None else eos_ids,
        context_length=getattr(config, "max_position_embeddings", None) or 128,
    )
