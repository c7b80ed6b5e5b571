"""Sampling: n completions for each prompt, with the log-probability of every token.

A prompt is computed once for its n samples; rows that end leave the batch and waiting ones enter. The random number of
a token is keyed by (seed, key of the prompt, sample, position), and a token is chosen by walking the distribution in
the order of the vocabulary, so that a sample does not depend on what else is in the batch, except where a float's
rounding decides: `Completion.close_calls` counts the tokens for which another batch could have decided otherwise.

The distribution: logits / temperature, then the `top_k` most likely tokens, then the fewest of these whose renormalised
probability reaches `top_p`, then renormalised; among equals the lower id comes first. Temperature 0 is the most likely.

Knows: when a completion ends. Does not know: what is asked, who judges. Text: without end and other special tokens, cut
before the first stop string; ids and log-probabilities go up to the token that ended it, end token or the last token of
a stop string included.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from optative.core.config import Config, Field
from optative.core.errors import InputError
from optative.core.ids import content_hash
from optative.core.rng import uniforms
from optative.generators.language.attention import base_of, why_no_layout
from optative.generators.language.cache import SLACK, CachedRows, PlainRows, Prefix
from optative.generators.language.heads import Head
from optative.generators.language.packing import Group, Ids
from optative.generators.language.tokens import Text, Truncation, TruncationCounts, encode_prompt, start_ids

PREFILL_TOKENS = 2048
CLOSE, CLOSE_GREEDY = 1e-5, 1e-4  # of probability, of logits; in float32
COARSER = 1000  # times that in the half-precision dtypes
BLOCK = 256  # tokens of the vocabulary that are summed together
CANDIDATES = 512  # most likely tokens that are looked at first for top_p
DRAW_ROWS = 8  # rows at a time, so that their weights stay in the processor's cache


class SamplingSettings(Config):
    """How completions are drawn."""

    max_new_tokens: int = Field(256, ge=1, description="Most tokens of a completion, its end token included.")
    temperature: float = Field(1.0, ge=0, description="Divides the logits; 0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Keep the fewest tokens that reach this probability; 1: all.")
    top_k: int = Field(0, ge=0, description="Keep so many of the most likely tokens; 0: all.")
    stop: tuple[str, ...] = Field((), description="Texts that end a completion; they are not part of its text.")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample. `logps`: of each id under the model itself (temperature 1, all tokens). `sampling_logps`: under the
    settings it was drawn with (0 for greedy)."""

    text: str
    ids: Ids
    logps: tuple[float, ...]
    sampling_logps: tuple[float, ...]
    finish_reason: Literal["eos", "stop", "length"]
    close_calls: int = 0


def sample(
    lm: Any,
    prompts: Sequence[Text | Ids],
    n: int,
    settings: SamplingSettings,
    *,
    seed: int,
    keys: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    truncation: Truncation | None = None,
    counts: TruncationCounts | None = None,
    max_rows: int = 96,
    memory_bytes: int = 1 << 30,
    lanes: int | None = None,
) -> list[list[Completion]]:
    """`n` completions for each prompt: a text, a conversation, or ids, which are taken as they are.

    `keys` name the prompts for the random numbers; by default a prompt's own tokens do, so that two equal prompts
    without keys get equal samples. `progress(done, total)` counts completions. At most `max_rows` rows run together,
    fewer when their keys and values would need more than `memory_bytes`. With `truncation` prompts are cut or refused
    as in training, and a completion ends where its training would cut it. `lanes`: batches side by side, each on one
    thread; by default as many as torch has threads on a CPU, where a step is too small for several threads to share
    it well, and one elsewhere. Raises `InputError` before any work when a prompt and its completion do not fit into
    the model's context.
    """
    if n < 1:
        raise InputError("no completions asked for", field="n", found=n, expected="1 or more")
    if n > 1 and settings.temperature == 0:
        raise InputError(
            "greedy completions of a prompt are all the same", field="n", found=n, expected="1 at temperature 0"
        )
    if any(not s for s in settings.stop):
        raise InputError("an empty stop string would end every completion at once", field="stop", found=settings.stop)
    if keys is not None and len(keys) != len(prompts):
        raise InputError("one key for each prompt", field="keys", found=len(keys), expected=str(len(prompts)))
    fitted = fit_prompts(lm, prompts, settings.max_new_tokens, truncation=truncation, counts=counts, keys=keys)
    names = keys if keys is not None else [content_hash(list(ids)) for ids, _ in fitted]
    jobs = [_Job(ids, limit, name) for (ids, limit), name in zip(fitted, names)]
    if lanes is None:
        lanes = torch.get_num_threads() if base_of(lm).get_input_embeddings().weight.device.type == "cpu" else 1
    lanes = max(1, min(lanes, len(jobs)))
    done = _Done(progress, len(jobs) * n)
    runs = [_Run(lm, settings, n, seed, max(1, max_rows // lanes), memory_bytes // lanes, done) for _ in range(lanes)]
    training = [m for m in base_of(lm).modules() if m.training]
    base_of(lm).eval()
    try:
        for bucket in _buckets(jobs, settings.max_new_tokens):
            _side_by_side(runs, [bucket[i::lanes] for i in range(lanes)])
    finally:
        for module in training:
            module.training = True
    return [[job.done[i] for i in range(n)] for job in jobs]


def sampled_groups(lm: Any, prompts: Sequence[Text | Ids], completions: Sequence[Sequence[Completion]]) -> list[Group]:
    """Prompts with their samples as ids, the end token included: what scoring and training take."""
    return [
        Group(_ids_of(lm, prompt), tuple(one.ids for one in own))
        for prompt, own in zip(prompts, completions, strict=True)
    ]


def fit_prompts(
    lm: Any,
    prompts: Sequence[Text | Ids],
    max_new_tokens: int,
    *,
    truncation: Truncation | None,
    counts: TruncationCounts | None,
    keys: Sequence[str] | None,
) -> list[tuple[tuple[int, ...], int]]:
    """The tokens of each prompt and how many new ones it may have; `keys` only name prompts in errors.

    Raises `InputError` when a prompt and its completion do not fit into the model's context.
    """
    fitted = []
    for i, prompt in enumerate(prompts):
        ids, limit = _ids_of(lm, prompt), max_new_tokens
        if truncation is not None:
            ids = truncation.fit_prompt(ids, limit, counts=counts, start=start_ids(lm))
            limit = min(limit, truncation.max_length - len(ids))
        if len(ids) + limit > lm.context_length:
            name = f"prompt {i}" if keys is None else f"prompt {i} ({keys[i]})"
            raise InputError(
                f"{name} and its completion do not fit into the model's context",
                found=f"{len(ids)} + max_new_tokens {limit}",
                expected=f"at most {lm.context_length} tokens",
            )
        fitted.append((ids, limit))
    return fitted


def _ids_of(lm: Any, prompt: Text | Ids) -> Ids:
    if isinstance(prompt, tuple) and prompt and isinstance(prompt[0], int):
        return prompt
    return encode_prompt(lm, cast(Text, prompt))


@dataclass(slots=True)
class _Job:
    ids: Ids
    limit: int  # most new tokens
    key: str
    done: dict[int, Completion] = field(default_factory=dict)


@dataclass(slots=True)
class _Row:
    job: _Job
    sample: int
    uniforms: np.ndarray
    prefix: Prefix
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    sampling_logps: list[float] = field(default_factory=list)
    close_calls: int = 0


def _buckets(jobs: Sequence[_Job], max_new_tokens: int) -> list[list[_Job]]:
    """Jobs of similar length together, the longest first: buffers are as wide as the longest row of a bucket."""
    buckets: dict[int, list[_Job]] = {}
    for job in sorted(jobs, key=lambda j: -len(j.ids)):
        buckets.setdefault(max(9, (len(job.ids) + max_new_tokens).bit_length()), []).append(job)
    return list(buckets.values())


class _Done:
    """Counts completions of all lanes; tells them to stop when one has failed or the person asked for it."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.count = progress, total, 0
        self.lock, self.stop = threading.Lock(), threading.Event()

    def one_more(self) -> None:
        with self.lock:
            self.count += 1
            if self.progress is not None:
                self.progress(self.count, self.total)


def _side_by_side(runs: Sequence[_Run], parts: Sequence[Sequence[_Job]]) -> None:
    """Each run samples its part; with several, each on a thread of its own that computes alone."""
    if len(runs) == 1:
        runs[0].sample(parts[0])
        return
    threads = torch.get_num_threads()

    def lane(run: _Run, part: Sequence[_Job]) -> None:
        torch.set_num_threads(1)  # of this thread
        try:
            run.sample(part)
        except BaseException:
            run.done.stop.set()
            raise

    with ThreadPoolExecutor(len(runs)) as pool:
        futures = [pool.submit(lane, run, part) for run, part in zip(runs, parts) if part]
        try:
            for future in futures:
                future.result()
        finally:
            runs[0].done.stop.set()
            wait(futures)
            runs[0].done.stop.clear()
            torch.set_num_threads(threads)


class _Run:
    """The loop: admit, step, choose, retire."""

    def __init__(
        self,
        lm: Any,
        settings: SamplingSettings,
        n: int,
        seed: int,
        max_rows: int,
        memory_bytes: int,
        done: _Done,
    ) -> None:
        self.lm, self.settings, self.n, self.seed = lm, settings, n, seed
        self.max_rows, self.memory_bytes = max_rows, memory_bytes
        self.done = done
        self.base, self.head = base_of(lm), Head(lm)
        self.device = self.base.get_input_embeddings().weight.device
        self.eos_ids = frozenset(lm.eos_ids)
        dtype = next(self.base.parameters()).dtype
        self.close = CLOSE_GREEDY if settings.temperature == 0 else CLOSE
        if dtype in (torch.bfloat16, torch.float16):
            self.close *= COARSER
        self.special_ids = frozenset(lm.tokenizer.all_special_ids)
        self.stop_width = max((len(s.encode()) for s in settings.stop), default=0) + 4

    @torch.no_grad()
    def sample(self, jobs: Sequence[_Job]) -> None:
        longest = max(len(j.ids) for j in jobs)
        if why_no_layout(self.base) is None:
            max_rows = min(self.max_rows, self._rows_in_memory(longest), len(jobs) * self.n)
            rows: Any = CachedRows(self.base, max_rows, longest, self.settings.max_new_tokens, self.device)
        else:
            max_rows = min(self.max_rows, len(jobs) * self.n)
            rows = PlainRows(self.base, self.device)
        waiting, ready, active = deque(jobs), deque[_Row](), list[_Row]()
        few = max(1, max_rows // 8)
        while (waiting or ready or active) and not self.done.stop.is_set():
            free = max_rows - len(active)
            if (waiting or ready) and (free >= few or not active):
                while waiting and len(ready) < free:
                    ready.extend(self._prefill(rows, waiting, free - len(ready)))
                entering = [ready.popleft() for _ in range(min(free, len(ready)))]
                if entering:
                    rows.enter([row.prefix for row in entering])
                    active += entering
            if not active:
                continue
            hidden = rows.step([r.ids[-1] for r in active], [len(r.job.ids) + len(r.ids) - 1 for r in active])
            going = self._choose(active, hidden)
            if len(going) < len(active):
                active = [active[r] for r in rows.leave(going)]

    def _rows_in_memory(self, longest_prompt: int) -> int:
        config = self.base.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = longest_prompt + self.settings.max_new_tokens + SLACK
        itemsize = next(self.base.parameters()).element_size()
        return max(1, self.memory_bytes // (2 * config.num_hidden_layers * heads * size * width * itemsize))

    def _prefill(self, rows: Any, waiting: deque[_Job], wanted: int) -> list[_Row]:
        """Compute the next prompts, enough for `wanted` rows, and choose the first token of each of their samples."""
        jobs = [waiting.popleft()]
        num_tokens = len(jobs[0].ids)
        while waiting and len(jobs) * self.n < wanted and num_tokens + len(waiting[0].ids) <= PREFILL_TOKENS:
            jobs.append(waiting.popleft())
            num_tokens += len(jobs[-1].ids)
        hidden, prefixes = rows.prefill([j.ids for j in jobs])
        started = [
            _Row(job, i, uniforms(job.limit, self.seed, "sample", job.key, i), prefix)
            for job, prefix in zip(jobs, prefixes)
            for i in range(self.n)
        ]
        owner = torch.arange(len(jobs), device=hidden.device).repeat_interleave(self.n)
        return [started[r] for r in self._choose(started, hidden, owner)]

    def _choose(self, rows: Sequence[_Row], hidden: Tensor, owner: Tensor | None = None) -> list[int]:
        """Choose the next token of each row; ends rows and returns which go on. `owner`: each row's hidden state."""
        logits = self.head(hidden)
        numbers = torch.tensor([r.uniforms[len(r.ids)] for r in rows], dtype=torch.float64, device=logits.device)
        drawn = draw(logits if owner is None else logits[owner], numbers, self.settings)
        columns = (drawn.tokens, drawn.logps, drawn.sampling_logps, drawn.margins)
        going = []
        for i, (row, token, logp, sampling_logp, margin) in enumerate(zip(rows, *(c.tolist() for c in columns))):
            row.ids.append(token)
            row.logps.append(logp)
            row.sampling_logps.append(sampling_logp)
            row.close_calls += margin < self.close
            if not self._finish(row):
                going.append(i)
        return going

    def _finish(self, row: _Row) -> bool:
        reason: Literal["eos", "stop", "length"]
        text = None
        if row.ids[-1] in self.eos_ids:
            reason, text = "eos", self._text(row.ids[:-1])
        elif self.settings.stop and self._near_stop(row.ids) and (found := self._stop(row.ids)) is not None:
            reason, text = "stop", found
        elif len(row.ids) == row.job.limit:
            # A character whose last bytes were not reached is not part of the text.
            reason, text = "length", self._text(row.ids).rstrip("\ufffd")
        else:
            return False
        row.job.done[row.sample] = Completion(
            text, tuple(row.ids), tuple(row.logps), tuple(row.sampling_logps), reason, row.close_calls
        )
        self.done.one_more()
        return True

    def _text(self, ids: Sequence[int]) -> str:
        return decode(self.lm.tokenizer, ids)

    def _near_stop(self, ids: Sequence[int]) -> bool:
        """Whether the last tokens hold a stop string: each token that shows gives at least a byte."""
        shown: list[int] = []
        for token in reversed(ids):
            if token not in self.special_ids:
                shown.append(token)
                if len(shown) == self.stop_width:
                    break
        text = self._text(shown[::-1])
        return any(s in text for s in self.settings.stop) or len(shown) < self.stop_width

    def _stop(self, ids: Sequence[int]) -> str | None:
        text = self._text(ids)
        places = [at for s in self.settings.stop if (at := text.find(s)) >= 0]
        return text[: min(places)] if places else None


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of ids, special tokens left out and spaces as they are."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Chosen tokens [B], their log-probability under the model and under the settings, and how far the choice was from
    another one: in probability, or for greedy the distance of the two best logits."""

    tokens: Tensor
    logps: Tensor
    sampling_logps: Tensor
    margins: Tensor


def draw(logits_BV: Tensor, uniforms_B: Tensor, settings: SamplingSettings) -> Drawn:
    """Choose a token for each row of float32 logits, by its number in [0, 1): the first one, in the order of the
    vocabulary, whose cumulative probability exceeds the number.

    Cumulative sums are taken over blocks of the vocabulary and then inside the block, in float64.
    """
    if settings.temperature == 0:
        two = logits_BV.topk(min(2, logits_BV.shape[-1]), dim=-1).values
        tokens_B = logits_BV.argmax(-1)
        logps_B = logits_BV.gather(-1, tokens_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
        return Drawn(tokens_B, logps_B, torch.zeros_like(logps_B), (two[:, 0] - two[:, -1]).double())
    drawn = [
        _draw(logits_BV[i : i + DRAW_ROWS], uniforms_B[i : i + DRAW_ROWS], settings)
        for i in range(0, len(logits_BV), DRAW_ROWS)
    ]
    return Drawn(*(torch.cat(parts) for parts in zip(*drawn)))


def _draw(logits_BV: Tensor, uniforms_B: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scaled_BV = logits_BV if settings.temperature == 1 else logits_BV / settings.temperature
    scaled_BV = _filtered(scaled_BV, settings)
    top_B1 = scaled_BV.amax(-1, keepdim=True)
    weights_BV = (scaled_BV - top_B1).exp_()
    vocabulary = weights_BV.shape[-1]
    whole = vocabulary // BLOCK * BLOCK
    sums_BK = weights_BV[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1).double()
    if whole < vocabulary:
        sums_BK = torch.cat([sums_BK, weights_BV[:, whole:].sum(-1, keepdim=True).double()], dim=-1)
    blocks_BK = sums_BK.cumsum(-1)
    total_B1 = blocks_BK[:, -1:].contiguous()
    aim_B1 = uniforms_B[:, None] * total_B1
    block_B1 = _first_beyond(blocks_BK, aim_B1, total_B1)
    before_B1 = blocks_BK.gather(-1, block_B1) - sums_BK.gather(-1, block_B1)
    index_BJ = block_B1 * BLOCK + torch.arange(min(BLOCK, vocabulary), device=logits_BV.device)
    inside_BJ = weights_BV.gather(-1, index_BJ.clamp(max=vocabulary - 1)).double()
    inside_BJ = before_B1 + inside_BJ.masked_fill(index_BJ >= vocabulary, 0.0).cumsum(-1)
    place_B1 = _first_beyond(inside_BJ, aim_B1, inside_BJ[:, -1:].contiguous())
    tokens_B1 = index_BJ.gather(-1, place_B1)
    upper_B1 = inside_BJ.gather(-1, place_B1)
    margins_B1 = torch.minimum(upper_B1 - aim_B1, aim_B1 - (upper_B1 - weights_BV.gather(-1, tokens_B1)))
    sampling_B1 = (scaled_BV.gather(-1, tokens_B1) - top_B1).double() - total_B1.log()
    if scaled_BV is logits_BV:
        logps_B1 = sampling_B1
    else:
        logps_B1 = logits_BV.gather(-1, tokens_B1) - logits_BV.logsumexp(-1, keepdim=True)
    return tokens_B1[:, 0], logps_B1[:, 0].float(), sampling_B1[:, 0].float(), (margins_B1 / total_B1)[:, 0]


def _first_beyond(cumulative_BK: Tensor, aim_B1: Tensor, total_B1: Tensor) -> Tensor:
    """The first place whose cumulative sum exceeds the aim; where rounding leaves none, the last with any weight."""
    found_B1 = torch.searchsorted(cumulative_BK, aim_B1, right=True)
    return torch.minimum(found_B1, torch.searchsorted(cumulative_BK, total_B1))


def _filtered(logits_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits with -inf for the tokens that `top_k` and `top_p` leave out. Only as many are sorted as are needed."""
    vocabulary = logits_BV.shape[-1]
    top_k = settings.top_k if 0 < settings.top_k < vocabulary else vocabulary
    if top_k == vocabulary and settings.top_p == 1:
        return logits_BV
    candidates = top_k if top_k < vocabulary else min(CANDIDATES, vocabulary)
    values_BC = logits_BV.topk(candidates, dim=-1).values
    num_kept_B1 = torch.full((len(logits_BV), 1), candidates, device=logits_BV.device)
    if settings.top_p < 1:
        total_B1 = (values_BC if top_k < vocabulary else logits_BV).logsumexp(-1, keepdim=True)
        while True:
            reached_BC = (values_BC - total_B1).exp().cumsum(-1, dtype=torch.float64)
            if candidates == top_k or bool((reached_BC[:, -1] >= settings.top_p).all()):
                break
            candidates = min(8 * candidates, vocabulary)
            values_BC = logits_BV.topk(candidates, dim=-1).values
        # The token that reaches top_p is kept, so one more than the places before it.
        num_kept_B1 = (1 + (reached_BC < settings.top_p).sum(-1, keepdim=True)).clamp(max=candidates)
    least_B1 = values_BC.gather(-1, num_kept_B1 - 1)
    above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    room_B1 = num_kept_B1 - above_BV.sum(-1, keepdim=True)
    if bool((equal_BV.sum(-1, keepdim=True) > room_B1).any()):
        equal_BV &= equal_BV.cumsum(-1) <= room_B1
    return torch.where(above_BV | equal_BV, logits_BV, float("-inf"))
