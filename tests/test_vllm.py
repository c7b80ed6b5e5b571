"""Sampling from a vLLM server, against a recorded conversation played on the loopback.

The answers have the shape that vLLM's `/v1/completions` documents (CompletionResponse with its extra fields), written
down for the ids of a tiny tokenizer, since the engine itself needs a GPU.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from optative.core.errors import InputError
from optative.generators.language.adapters import add_lora, load_weights, lora_parameters
from optative.generators.language.load import load_language_model
from optative.generators.language.sample import SamplingSettings
from optative.generators.language.tokens import Truncation, encode_prompt
from optative.generators.language.vllm import VllmModel
from optative.generators.options import LoraOptions, VllmOptions
from tiny_models import save_tiny_model

END = 258  # <|im_end|>
PLAIN = SamplingSettings(max_new_tokens=12)
COOLER = SamplingSettings(max_new_tokens=12, temperature=0.5, top_k=9)


class Server:
    """Plays its answers in order and keeps what was asked."""

    def __init__(self) -> None:
        self.script: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((self.path, body))
                status, answer = outer.script.pop(0)
                content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def lm(tiny: Path) -> Any:
    return load_language_model(str(tiny), dtype="float32")


def ids_of(lm: Any, text: str, *more: int) -> list[int]:
    return [*lm.tokenizer(text, add_special_tokens=False)["input_ids"], *more]


def choice(index: int, ids: list[int], logps: list[float], reason: str = "stop", **more: Any) -> dict[str, Any]:
    tokens = [f"token_id:{i}" for i in ids]
    return {
        "index": index,
        "text": "as the server would decode it",
        "logprobs": {
            "text_offset": [11 * k for k in range(len(ids))],
            "token_logprobs": logps,
            "tokens": tokens,
            "top_logprobs": [{token: logp} for token, logp in zip(tokens, logps)],
        },
        "finish_reason": reason,
        "stop_reason": None,
        "token_ids": ids,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        **more,
    }


def completion(*choices: dict[str, Any], prompt_tokens: int = 4) -> tuple[int, dict[str, Any]]:
    used = sum(len(c.get("token_ids") or c["logprobs"]["tokens"]) for c in choices)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": used, "total_tokens": prompt_tokens + used}
    return 200, {
        "id": "cmpl-2f1c5a",
        "object": "text_completion",
        "created": 1764000000,
        "model": "tiny",
        "choices": list(choices),
        "system_fingerprint": None,
        "usage": {**usage, "prompt_tokens_details": None},
        "kv_transfer_params": None,
    }


def make(server: Server, lm: Any, **options: Any) -> VllmModel:
    given = VllmOptions.model_validate({"url": server.url, "model": "tiny", "concurrency": 1, "retries": 1, **options})
    return VllmModel(given, lm, sleep=lambda seconds: None)


def test_ids_go_in_and_ids_with_log_probabilities_come_out(server: Server, lm: Any) -> None:
    hello, cut = ids_of(lm, "Hello", END), ids_of(lm, "an answer th")
    server.script = [completion(choice(0, hello, [-0.5] * 6), choice(1, cut, [-1.0] * 12, "length"))]
    talk = [{"role": "user", "content": "Say hello."}]
    with make(server, lm) as model:
        ((first, second),) = model.sample([talk], 2, PLAIN, seed=3)
    ((path, body),) = server.asked
    assert path == "/v1/completions"
    assert body["prompt"] == list(encode_prompt(lm, talk))
    assert (body["model"], body["n"], body["max_tokens"], body["temperature"]) == ("tiny", 2, 12, 1.0)
    assert (body["top_p"], body["top_k"], body["stop"], body["stop_token_ids"]) == (1.0, -1, [], [END])
    assert (body["min_p"], body["repetition_penalty"]) == (0.0, 1.0), "or the model's own defaults would act"
    assert (body["logprobs"], body["return_token_ids"], body["return_tokens_as_token_ids"]) == (0, True, True)
    assert 0 <= body["seed"] < 2**31
    assert (first.text, first.ids, first.finish_reason) == ("Hello", tuple(hello), "eos")
    assert (second.text, second.ids, second.finish_reason) == ("an answer th", tuple(cut), "length")
    assert first.logps == first.sampling_logps == (-0.5,) * 6
    assert (model.usage.prompt_tokens, model.usage.completion_tokens) == (4, 18)


def test_an_older_server_names_ids_in_its_tokens(server: Server, lm: Any) -> None:
    old = choice(0, ids_of(lm, "Hi", END), [-0.1, -0.2, -0.3])
    del old["token_ids"], old["prompt_token_ids"]
    server.script = [completion(old)]
    with make(server, lm) as model:
        ((found,),) = model.sample(["Say hi."], 1, PLAIN, seed=0)
    assert (found.ids, found.text) == (tuple(ids_of(lm, "Hi", END)), "Hi")


@pytest.mark.parametrize(
    ("mode", "settings", "has_logps", "sampling"),
    [
        ("raw", PLAIN, True, (-0.1, -0.2)),
        ("processed", PLAIN, True, (-0.1, -0.2)),
        ("raw", COOLER, True, ()),
        ("processed", COOLER, False, (-0.1, -0.2)),
        ("raw", SamplingSettings(max_new_tokens=12, temperature=0), True, (0.0, 0.0)),
    ],
)
def test_log_probabilities_are_called_what_they_are(
    server: Server, lm: Any, mode: str, settings: SamplingSettings, has_logps: bool, sampling: tuple[float, ...]
) -> None:
    server.script = [completion(choice(0, [65, END], [-0.1, -0.2]))]
    with make(server, lm, logprobs=mode) as model:
        ((found,),) = model.sample(["p"], 1, settings, seed=0)
    assert found.logps == ((-0.1, -0.2) if has_logps else ())
    assert found.sampling_logps == sampling


def test_stop_strings_and_limits(server: Server, lm: Any) -> None:
    ids = ids_of(lm, "one END")
    server.script = [completion(choice(0, ids, [-0.1] * len(ids), stop_reason="END"))]
    settings = SamplingSettings(max_new_tokens=60, stop=("END",))
    rule = Truncation(max_length=40)
    with make(server, lm) as model:
        ((found,),) = model.sample(["0123456789"], 1, settings, seed=0, truncation=rule)
        assert (found.text, found.ids, found.finish_reason) == ("one ", tuple(ids), "stop")
        assert (server.asked[0][1]["max_tokens"], server.asked[0][1]["stop"]) == (30, ["END"])
        with pytest.raises(InputError, match="do not fit into the model's context"):
            model.sample(["x" * 250], 1, PLAIN, seed=0)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        (503, {"error": {"message": "busy", "code": 503}}),
        completion(choice(0, [65, END], [-0.1])),
        completion(choice(0, [65], [-0.1], "abort")),
        completion({**choice(0, [65], [-0.1]), "logprobs": None}),
    ],
)
def test_a_broken_answer_is_asked_for_again(server: Server, lm: Any, fault: Any) -> None:
    server.script = [fault, completion(choice(0, [65, END], [-0.1, -0.2]))]
    with make(server, lm) as model:
        ((found,),) = model.sample(["p"], 1, PLAIN, seed=0)
    assert (found.text, found.ids) == ("b", (65, END))
    assert server.asked[0] == server.asked[1]


def test_a_server_without_log_probabilities_is_refused(server: Server, lm: Any) -> None:
    server.script = [(400, {"error": {"message": "logprobs is not supported", "type": "BadRequestError", "code": 400}})]
    with make(server, lm) as model, pytest.raises(InputError, match="status 400: logprobs is not supported"):
        model.sample(["p"], 1, PLAIN, seed=0)


def test_the_adapter_that_trains_is_loaded_by_its_content(server: Server, lm: Any, tmp_path: Path) -> None:
    import torch

    add_lora(lm, LoraOptions(rank=2), seed=0)
    loaded = "Success: LoRA adapter 'x' added successfully."
    server.script = [
        (200, loaded),
        completion(choice(0, [65, END], [-0.1, -0.2])),
        (200, loaded),
        (200, "Success: LoRA adapter 'x' removed successfully."),
        completion(choice(0, [66, END], [-0.1, -0.2])),
    ]
    with make(server, lm) as model:
        first = model.use_adapter(tmp_path)
        assert model.use_adapter(tmp_path) == first, "the same weights are not sent again"
        identity = model.fingerprint
        model.sample(["p"], 1, PLAIN, seed=0)
        with torch.no_grad():
            for parameter in lora_parameters(lm).values():
                parameter.add_(0.5)
        second = model.use_adapter(tmp_path)
        assert model.fingerprint != identity
        model.sample(["p"], 1, PLAIN, seed=0)
    paths = [path.removeprefix("/v1/") for path, _ in server.asked]
    assert paths == ["load_lora_adapter", "completions", "load_lora_adapter", "unload_lora_adapter", "completions"]
    load, asked, again, unload, asked_again = (body for _, body in server.asked)
    assert load == {"lora_name": first, "lora_path": str(tmp_path / first)}
    assert (again["lora_name"], unload, asked["model"]) == (second, {"lora_name": first}, first)
    assert (asked_again["model"], second != first) == (second, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [second]
    before = [parameter.detach().clone() for parameter in lora_parameters(lm).values()]
    load_weights(lm, tmp_path / second / "adapter_model.safetensors")
    assert all(torch.equal(old, new) for old, new in zip(before, lora_parameters(lm).values()))


def test_a_refused_adapter_says_how_to_start_the_server(server: Server, lm: Any, tmp_path: Path) -> None:
    add_lora(lm, LoraOptions(rank=2), seed=0)
    message = "LoRA rank 2 is greater than max_lora_rank 1."
    server.script = [(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})]
    with make(server, lm) as model:
        with pytest.raises(InputError, match="max_lora_rank 1") as caught:
            model.use_adapter(tmp_path)
        assert "--enable-lora" in str(caught.value)
        assert model.name == "tiny", "what is sampled has not changed"


def test_answers_are_remembered_with_their_ids(server: Server, lm: Any, tmp_path: Path) -> None:
    server.script = [completion(choice(0, [65, END], [-0.1, -0.2]))]
    given = VllmOptions(url=server.url, model="tiny")
    found = []
    for _ in range(2):
        with VllmModel(given, lm, journal=tmp_path / "answers.jsonl") as model:
            found.append(model.sample(["p"], 1, PLAIN, seed=0))
    assert found[0] == found[1]
    assert found[0][0][0].ids == (65, END)
    assert len(server.asked) == 1
