"""Tiny random models as Hugging Face folders, for tests that need a model but not a good one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(template: str | None = CHATML) -> Any:
    """Byte-level without merges: 256 bytes and three special tokens (ids 256 to 258); `<|im_end|>` ends a turn."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    wrapped.chat_template = template
    return wrapped


def save_tiny_model(
    folder: str | Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    tie: bool = True,
    template: str | None = CHATML,
    **config: Any,
) -> Path:
    """A random Llama of 2 layers, in float32, with weights large enough that every layer shows in the logits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 259,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": tie,
        "bos_token_id": None,
        "eos_token_id": 258,
        "pad_token_id": 258,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    model.save_pretrained(folder)
    make_tokenizer(template).save_pretrained(folder)
    return Path(folder)
