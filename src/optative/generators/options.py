"""Options of the generators: what produces the answers.

Knows: names, defaults, limits. Does not know: torch, models (the functions are imported when they are looked up).
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from optative.core.config import Config, Field, Table


class LoraOptions(Config):
    """A low-rank adapter (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A, with B = 0 at the start."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Linear layers to adapt: all but the output head, or a list of names such as [q_proj, v_proj].",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input while training.")

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not targets:
            raise ValueError("an empty list adapts nothing; name the layers, or use all-linear")
        return targets


class LanguageModelOptions(Config):
    """A language model whose weights are here, so that it can be trained."""

    model: str = Field(
        "smollm2-135m-instruct", min_length=1, description="A built-in model, a Hugging Face folder, or a hub id."
    )
    adapter: str | None = Field(None, description="Folder of a PEFT adapter to start from; it is also the reference.")
    template: str | None = Field(
        None, description="Chat template in place of the model's own: a named one ('plain') or a Jinja file."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the frozen weights; auto measures whether bfloat16 is fast here. Adapters stay float32."
    )
    lora: LoraOptions = Field(LoraOptions(), description="The adapter that is trained.")
    max_length: int = Field(1024, ge=2, description="Most tokens of a prompt and its answer together.")
    on_long_prompt: Literal["error", "truncate_left"] = Field(
        "error", description="What to do when a prompt leaves no room: stop, or cut its beginning (counted and shown)."
    )


class Tiny(Config):
    """A small language model that is made on the spot, of Llama's architecture (`language.tiny`)."""

    layers: int = Field(4, ge=1, description="Number of layers.")
    hidden: int = Field(192, ge=4, description="Width of the layers; the inner one is 8/3 of it, as in Llama.")
    heads: int = Field(4, ge=1, description="Heads of the attention; each has an even width.")
    vocabulary: int = Field(2048, ge=259, description="Tokens: 256 bytes, three special ones, and merges.")
    context: int = Field(256, ge=2, description="Most tokens of a document.")

    @model_validator(mode="after")
    def _even_heads(self) -> Tiny:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of 2 x heads = {2 * self.heads}, found {self.hidden}")
        return self


class EndpointOptions(Config):
    """A model behind an OpenAI-compatible endpoint: it can be sampled and judged, not trained."""

    url: str = Field(..., min_length=1, description="Base address, such as http://localhost:8000/v1.")
    model: str = Field(..., min_length=1, description="Name of the model at the endpoint.")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the key. The key itself is never written anywhere."
    )
    requests_per_minute: float | None = Field(
        None, gt=0, description="Most requests started in a minute; none: no limit."
    )
    timeout_seconds: float = Field(120.0, gt=0, description="Longest wait for one answer.")
    retries: int = Field(
        5, ge=0, description="Further attempts after a passing fault (429, 5xx, timeout, broken answer)."
    )
    concurrency: int = Field(4, ge=1, description="Requests under way at one time.")
    price_per_million_input: float | None = Field(None, ge=0, description="Price of a million prompt tokens.")
    price_per_million_output: float | None = Field(None, ge=0, description="Price of a million completion tokens.")


class VllmOptions(EndpointOptions):
    """A vLLM server that samples, by token ids, for a model that is trained here."""

    logprobs: Literal["raw", "processed"] = Field(
        "raw", description="The server's --logprobs-mode: of the model itself (its default), or under the settings."
    )


GENERATORS: Table = {
    "language_model": (LanguageModelOptions, "optative.generators.language.load:open_language_model"),
    "endpoint": (EndpointOptions, "optative.generators.language.endpoint:EndpointModel"),
}
