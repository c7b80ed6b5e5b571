"""Sampling from a vLLM server: token ids in, token ids and log-probabilities out, with the adapter that trains here.

Knows: vLLM's completions by token ids, its extra fields, its adapters that are loaded while it runs. Patience, limits,
bill and memory are those of `endpoint`. Does not know: how the server was started; it needs the same base weights.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16

Prompts are encoded here and answers decoded here, so that training and sampling share every token. An adapter is known
to the server by the hash of its weights: answers of other weights are never mixed up, neither in the server's cache of
prefixes nor in the journal. Log-probabilities are the server's own, in its dtype and by its kernels: for an exact ratio
score the answers again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from optative.core.errors import InputError
from optative.core.ids import content_hash, file_hash
from optative.generators.language.adapters import WEIGHTS_FILE, save_adapter
from optative.generators.language.endpoint import Answer, EndpointModel, Fault
from optative.generators.language.model import LanguageModel
from optative.generators.language.sample import SamplingSettings, decode, fit_prompts
from optative.generators.language.tokens import Text, Truncation, TruncationCounts
from optative.generators.options import VllmOptions

LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"


class VllmModel(EndpointModel):
    """Samples like `sample.sample`, from a vLLM server. Use it as a context manager, or `close` it.

    `lm`: the model that the server runs, for its tokenizer, template, end tokens and context length. Other arguments
    are those of `EndpointModel`.
    """

    path = "/completions"
    optional = ()  # without seeds or log-probabilities the answers would mean something else

    def __init__(self, options: VllmOptions, lm: LanguageModel, **more: Any) -> None:
        super().__init__(options, **more)
        self.lm, self.logprobs_mode = lm, options.logprobs

    def sample(
        self,
        prompts: Sequence[Text],
        n: int,
        settings: SamplingSettings,
        *,
        seed: int,
        keys: Sequence[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        truncation: Truncation | None = None,
        counts: TruncationCounts | None = None,
    ) -> list[list[Answer]]:
        """`n` completions for each prompt, with ids and log-probabilities.

        `logps` or `sampling_logps` is empty where the server reports only the other one and the settings make them
        differ. Random numbers are the server's, seeded by (seed, key of the prompt). Raises InputError before any work
        when a prompt and its completion do not fit into the model's context, and as `EndpointModel.sample` does.
        """
        fitted = fit_prompts(self.lm, prompts, settings.max_new_tokens, truncation=truncation, counts=counts, keys=keys)
        asked = [(list(ids), limit) for ids, limit in fitted]
        names = list(keys) if keys is not None else [content_hash(ids) for ids, _ in asked]
        return super().sample(asked, n, settings, seed=seed, keys=names, progress=progress)  # type: ignore[arg-type]

    def use_adapter(self, folder: str | Path) -> str:
        """Let the server sample with the adapter of `lm` as it is now; returns its name there.

        `folder`: where adapters are laid, on a disk that the server reads under the same path. The one before is
        unloaded and removed. Raises InputError when the server refuses, with its words.
        """
        folder = Path(folder).resolve()
        save_adapter(self.lm, folder / "new")
        name = f"optative-{file_hash(folder / 'new' / WEIGHTS_FILE)[:16]}"
        if name == self.name:
            shutil.rmtree(folder / "new")
            return name
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "new").rename(folder / name)
        self._tell(LOAD, {"lora_name": name, "lora_path": str(folder / name)}, settled="already")
        before, self.name = self.name, name
        if before != self.options.model:
            self._tell(UNLOAD, {"lora_name": before}, settled="not be found")
            shutil.rmtree(folder / before, ignore_errors=True)
        return name

    def _tell(self, path: str, body: dict[str, Any], settled: str) -> None:
        """A request about adapters. settled: words of a refusal which say that there is nothing left to do."""
        self._stopping.clear()
        address = self._address.removesuffix(self.path) + path
        response = self._patiently(lambda: self._post(address, body))
        if response.status_code != 200 and settled not in (said := self._said(response)):
            raise InputError(
                f"the endpoint {self.url}: {path} of {body['lora_name']}: status {response.status_code}: {said}",
                hint="Start the server with --enable-lora, a --max-lora-rank that is large enough, and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on a disk that it shares with this process.",
            )

    def _content(self, prompt: tuple[list[int], int]) -> dict[str, Any]:
        ids, limit = prompt
        return {"prompt": ids, "max_tokens": limit}

    def _body(self, content: dict[str, Any], n: int, settings: SamplingSettings, seed: int) -> dict[str, Any]:
        return {
            "model": self.name,
            **content,
            "n": n,
            "seed": seed,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or -1,
            # What is not said would be taken from the model's generation config.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop": list(settings.stop),
            "stop_token_ids": list(self.lm.eos_ids),
            "logprobs": 0,  # of the chosen tokens alone
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # for servers before 0.10.2, which know no return_token_ids
        }

    def _record(self, choice: dict[str, Any], stop: tuple[str, ...]) -> dict[str, Any]:
        if choice.get("finish_reason") not in ("stop", "length"):
            raise Fault(f"an answer that ended by {choice.get('finish_reason')!r}")
        reported = choice["logprobs"]
        logps = [float(logp) for logp in reported["token_logprobs"]]
        ids = choice.get("token_ids")
        if ids is None:
            ids = [int(token.removeprefix("token_id:")) for token in reported["tokens"]]
        if not ids or len(ids) != len(logps):
            raise Fault(f"{len(ids)} tokens with {len(logps)} log-probabilities")
        ended: Literal["eos", "stop", "length"] = "length" if choice["finish_reason"] == "length" else "eos"
        if ended == "eos" and isinstance(choice.get("stop_reason"), str):
            ended = "stop"
        text = decode(self.lm.tokenizer, ids)
        if ended == "stop":
            text = text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]
        elif ended == "length":
            text = text.rstrip("\ufffd")  # a character whose last bytes were not reached
        return {"text": text, "finish_reason": ended, "logps": logps, "ids": ids, "num_tokens": len(ids)}

    def _answer(self, record: dict[str, Any], settings: SamplingSettings) -> Answer:
        logps, ids = tuple(record["logps"]), tuple(record["ids"])
        greedy = settings.temperature == 0
        same = settings.temperature == 1 and settings.top_p == 1 and not settings.top_k
        return Answer(
            text=record["text"],
            ids=ids,
            logps=logps if same or self.logprobs_mode == "raw" else (),
            sampling_logps=(0.0,) * len(ids) if greedy else logps if same or self.logprobs_mode == "processed" else (),
            finish_reason=record["finish_reason"],
            num_tokens=len(ids),
        )
