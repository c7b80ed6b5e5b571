"""A model behind an OpenAI-compatible endpoint: sampling by chat completions, with patience, a bill and a memory.

Knows: HTTP, retries, rate limits, tokens used and their price, answers already paid for. Does not know: weights; what
an endpoint answers cannot be rescored or trained here.

The API key is read from an environment variable by name; it is in no message, journal or representation. An answer is
remembered by the content of its request, so that a job that was killed does not pay for it twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx

from optative.core.errors import InputError
from optative.core.files import Journal, lock
from optative.core.ids import content_hash
from optative.core.rng import seed_from
from optative.generators.language.sample import Completion, SamplingSettings
from optative.generators.language.tokens import Text
from optative.generators.options import EndpointOptions

FIRST_DELAY, LONGEST_DELAY, LONGEST_WAIT = 0.5, 60.0, 600.0
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Completion):
    """A completion of an endpoint: `ids` is empty, `logps` is empty where the endpoint offers none.

    `num_tokens`: as counted by the endpoint; None where it counts several answers together or not at all.
    """

    num_tokens: int | None = None


@dataclass
class Usage:
    """What was asked and what it used. Tokens are those of answered requests; `unreported` ones came without counts."""

    requests: int = 0
    retries: int = 0
    remembered: int = 0
    unreported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Fault(Exception):
    """A fault that may pass: wait and try again."""

    reason: str
    wait: float = 0.0


@dataclass
class _Traffic:
    """When the next request may start: the rate limit, and pauses that the server asked for."""

    spacing: float
    clock: Callable[[], float]
    next_start: float = 0.0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def seconds_to_wait(self) -> float:
        """Take the next slot and say how long it is until then."""
        with self.guard:
            now = self.clock()
            start = max(now, self.next_start)
            self.next_start = start + self.spacing
            return start - now

    def pause(self, seconds: float) -> None:
        with self.guard:
            self.next_start = max(self.next_start, self.clock() + seconds)


class EndpointModel:
    """Samples like `sample.sample`, from an endpoint. Use it as a context manager, or `close` it.

    `journal`: file that remembers answers; one process at a time. `clock` and `sleep` (seconds) can be replaced, so
    that tests do not wait. Raises InputError for an address that is none and for a key that is not set.
    """

    path = "/chat/completions"
    # What a server may refuse without the answers meaning something else; it is left out from then on, and noted.
    optional: tuple[str, ...] = ("logprobs", "seed")

    def __init__(
        self,
        options: EndpointOptions,
        *,
        journal: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.options, self.usage, self.notes = options, Usage(), list[str]()
        self._address, self.url = _addresses(options.url, self.path)
        self.name = options.model
        self._stopping = threading.Event()
        self._sleep = sleep or self._stopping.wait
        self._traffic = _Traffic(60.0 / options.requests_per_minute if options.requests_per_minute else 0.0, clock)
        self._guard = threading.Lock()
        self._left_out: set[str] = set()
        self._answered = False
        self._key = _api_key(options.api_key_env)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=options.concurrency)
        self._client = httpx.Client(headers=headers, timeout=options.timeout_seconds, limits=limits)
        self._open = contextlib.ExitStack()
        self._open.callback(self._client.close)
        self._known: dict[str, dict[str, Any]] = {}
        self._journal: Journal | None = None
        if journal is not None:
            path = Path(journal)
            busy = "another process is using this journal of answers"
            self._open.enter_context(lock(path.with_name(path.name + ".lock"), busy))
            self._known, offset = _read_journal(path)
            self._journal = self._open.enter_context(Journal(path, offset))

    def __repr__(self) -> str:
        return f"EndpointModel({self.name!r} at {self.url})"

    def __enter__(self) -> EndpointModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    @property
    def fingerprint(self) -> str:
        """Identity of the endpoint: address and model name; what runs behind them is not known."""
        return content_hash({"url": self.url, "model": self.name})

    @property
    def cost(self) -> float | None:
        """Price of the tokens used so far, in the currency of the options; None without prices."""
        prices = self.options.price_per_million_input, self.options.price_per_million_output
        if prices == (None, None):
            return None
        used = self.usage.prompt_tokens, self.usage.completion_tokens
        return sum((price or 0.0) * tokens for price, tokens in zip(prices, used, strict=True)) / 1e6

    def sample(
        self,
        prompts: Sequence[Text],
        n: int,
        settings: SamplingSettings,
        *,
        seed: int,
        keys: Sequence[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Answer]]:
        """`n` answers for each prompt; a plain text is sent as the user's message.

        The seed is sent; whether the endpoint heeds it is its own affair. `logps` are what the endpoint reports, for
        most servers those of the model itself before temperature and top-p. Raises InputError (address, reason) when
        the endpoint cannot be reached, refuses, or gives no usable answer within the retries; answers so far stay
        remembered.
        """
        if n < 1:
            raise InputError("no completions asked for", field="n", found=n, expected="1 or more")
        if n > 1 and settings.temperature == 0:
            raise InputError(
                "greedy completions of a prompt are all the same", field="n", found=n, expected="1 at temperature 0"
            )
        if keys is not None and len(keys) != len(prompts):
            raise InputError("one key for each prompt", field="keys", found=len(keys), expected=str(len(prompts)))
        names = list(keys) if keys is not None else [content_hash(prompt) for prompt in prompts]
        self._stopping.clear()
        done = 0
        results: list[list[Answer]] = [[] for _ in prompts]
        pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="endpoint")
        try:
            futures = {
                pool.submit(self._answers, prompt, name, n, settings, seed): i
                for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))
            }
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                done += n
                if progress is not None:
                    progress(done, n * len(prompts))
        finally:
            self._stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return results

    def _answers(self, prompt: Text, name: str, n: int, settings: SamplingSettings, seed: int) -> list[Answer]:
        """All `n` answers to one prompt: from the journal, then by as few requests as the endpoint allows."""
        content = self._content(prompt)
        asked = {
            "url": self.url,
            "model": self.name,
            **content,
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "prompt": name,
        }
        rows = {i: content_hash({**asked, "sample": i}) for i in range(n)}
        with self._guard:
            found = {i: self._known[row] for i, row in rows.items() if row in self._known}
            self.usage.remembered += len(found)
        while missing := [i for i in rows if i not in found]:
            number = 1 if "n" in self._left_out else len(missing)
            body = self._body(content, number, settings, seed_from(seed, name, missing[0]) % 2**31)
            records = self._patiently(partial(self._attempt, body, settings.stop))
            for i, record in zip(missing, records, strict=False):
                found[i] = record
                if self._journal is not None:
                    with self._guard:
                        self._known[rows[i]] = record
                        self._journal.append({"key": rows[i], **record})
        return [self._answer(found[i], settings) for i in rows]

    def _content(self, prompt: Any) -> dict[str, Any]:
        """The part of a request that says what is asked."""
        return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)}

    def _body(self, content: dict[str, Any], n: int, settings: SamplingSettings, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            **content,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed,
            "logprobs": True,
        }
        if n > 1:
            body["n"] = n
        if settings.stop:
            body["stop"] = list(settings.stop)
        if settings.top_k:  # not OpenAI's own; servers that lack it answer 400, and that is shown
            body["top_k"] = settings.top_k
        if "max_tokens" in self._left_out:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return {key: value for key, value in body.items() if key not in self._left_out}

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """One request with all its attempts."""
        reason = ""
        for number in range(self.options.retries + 1):
            try:
                return attempt()
            except Fault as fault:
                reason = fault.reason
                if number < self.options.retries:
                    delay = min(LONGEST_DELAY, FIRST_DELAY * 2**number) * random.uniform(0.5, 1.0)
                    with self._guard:
                        self.usage.retries += 1
                    self._wait(max(delay, fault.wait))
        raise self._error(f"no usable answer in {self.options.retries + 1} attempts; the last: {reason}")

    def _attempt(self, body: dict[str, Any], stop: tuple[str, ...]) -> list[dict[str, Any]]:
        """The choices of one attempt."""
        response = self._post(self._address, body)
        if response.status_code != 200:
            return self._refused(response, body, stop)
        try:
            content = response.json()
            records = [self._record(choice, stop) for choice in content["choices"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Fault(f"not the JSON of a completion ({type(error).__name__}: {error})") from None
        if not records:
            raise Fault("an answer without choices")
        self._count(content.get("usage"), records)
        return records

    def _post(self, address: str, body: dict[str, Any]) -> httpx.Response:
        """The answer to one request, be it a refusal; a fault that may pass is a `Fault`."""
        self._wait(self._traffic.seconds_to_wait())
        with self._guard:
            self.usage.requests += 1
        try:
            response = self._client.post(address, json=body)
        except httpx.TimeoutException:
            raise Fault(f"no answer within {self.options.timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            if self._answered:
                raise Fault(f"connection lost: {error}") from None
            raise self._error(f"unreachable: {error}") from None
        except httpx.RequestError as error:
            raise Fault(f"broken answer: {error or type(error).__name__}") from None
        if response.status_code in PASSING:
            wait = _retry_after(response.headers.get("retry-after"))
            if wait > LONGEST_WAIT:
                raise self._error(f"asks to wait {wait:.0f} s (status {response.status_code}); try again later")
            if response.status_code in (429, 503):
                self._traffic.pause(wait)
            raise Fault(f"status {response.status_code}: {self._said(response)}", wait)
        return response

    def _refused(self, response: httpx.Response, body: dict[str, Any], stop: tuple[str, ...]) -> list[dict[str, Any]]:
        """A refusal is final, an InputError, unless it names a parameter that can be left out."""
        status, said = response.status_code, self._said(response)
        if status in (401, 403):
            name = self.options.api_key_env
            how = f"the key in ${name} is not accepted" if name else "it wants a key; name its variable as api_key_env"
            raise self._error(f"status {status}: {how}")
        if status == 404:
            raise self._error(f"status 404: no {self.path} at this address, or no model {self.name!r}")
        if status in (400, 422):
            lacking = next((key for key in self.optional if key in body and key in said), None)
            if lacking is None and "max_tokens" in body and "max_completion_tokens" in said:
                lacking = "max_tokens"
            if lacking is None and "n" in body and re.search(r"[`'\"]n[`'\"]", said):
                lacking = "n"
            if lacking is not None:
                with self._guard:
                    if lacking not in self._left_out:
                        self._left_out.add(lacking)
                        self.notes.append(f"{self.url} does not take {lacking}: left out")
                again = {key: value for key, value in body.items() if key != lacking}
                if lacking == "max_tokens":
                    again["max_completion_tokens"] = body["max_tokens"]
                return self._attempt(again, stop)
        raise self._error(f"status {status}: {said}")

    def _count(self, usage: Any, records: list[dict[str, Any]]) -> None:
        with self._guard:
            self._answered = True
            counts = usage if isinstance(usage, dict) else {}
            prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
            if not isinstance(prompt, int) or not isinstance(completion, int):
                self.usage.unreported += 1
                return
            self.usage.prompt_tokens += prompt
            self.usage.completion_tokens += completion
        if len(records) == 1:
            records[0]["num_tokens"] = completion

    def _record(self, choice: dict[str, Any], stop: tuple[str, ...]) -> dict[str, Any]:
        """What is kept of a choice. Stop strings that the server left in, or did not heed, end the text here."""
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is not text")
        reason = choice.get("finish_reason")
        ended: Literal["eos", "stop", "length"] = "length" if reason == "length" else "eos"
        if ended == "eos" and isinstance(choice.get("stop_reason"), str):  # vLLM names the stop string here
            ended = "stop"
        at = min((text.find(s) for s in stop if s in text), default=None)
        if at is not None:
            text, ended = text[:at], "stop"
        tokens = (choice.get("logprobs") or {}).get("content")
        logps = [float(token["logprob"]) for token in tokens] if tokens else None
        num_tokens = len(logps) if logps is not None else None
        return {"text": text, "finish_reason": ended, "logps": logps, "num_tokens": num_tokens}

    def _answer(self, record: dict[str, Any], settings: SamplingSettings) -> Answer:
        return Answer(
            text=record["text"],
            ids=(),
            logps=tuple(record["logps"] or ()),
            sampling_logps=(),
            finish_reason=record["finish_reason"],
            num_tokens=record["num_tokens"],
        )

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._sleep(seconds)
        if self._stopping.is_set():
            raise self._error("stopped, because another request failed")

    def _said(self, response: httpx.Response) -> str:
        """The server's own words, short, without the key."""
        text = response.text
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(text)["error"]
            text = error if isinstance(error, str) else str(error["message"])
        text = " ".join(text.split())[:300] or response.reason_phrase
        return text.replace(self._key, "***") if self._key else text

    def _error(self, reason: str) -> InputError:
        return InputError(f"the endpoint {self.url}: {reason}")


def _addresses(given: str, path: str) -> tuple[str, str]:
    """The address to post to, and the one to show: without credentials and query."""
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL as error:
        raise InputError(f"not an address: {error}", field="endpoint.url") from None
    if url.scheme not in ("http", "https") or not url.host:
        shown = url.copy_with(username=None, password=None, query=None) if url.host else given
        raise InputError("not an address", field="endpoint.url", found=str(shown), expected="http://... or https://...")
    path = url.path.rstrip("/").removesuffix(path) + path
    shown = f"{url.scheme}://{url.netloc.decode()}{url.path.rstrip('/')}"
    return str(url.copy_with(path=path)), shown


def _api_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError("the environment variable of the API key is not set", field="endpoint.api_key_env", found=name)
    if not key.isascii() or not key.isprintable():
        raise InputError(
            "the API key has characters that no header can carry", field="endpoint.api_key_env", found=name
        )
    return key


def _retry_after(given: str | None) -> float:
    """Seconds, from a number of seconds or an HTTP date; 0 when there is none."""
    if given is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(given))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    return 0.0


def _read_journal(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The answers in a journal and the bytes that are whole: a line that a kill cut short is paid for again."""
    known: dict[str, dict[str, Any]] = {}
    offset = 0
    if path.is_file():
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    known[record.pop("key")] = record
                except (ValueError, KeyError, AttributeError):
                    raise InputError("not a remembered answer", file=path, line=number) from None
                offset += len(line)
    return known, offset
