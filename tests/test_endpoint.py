"""Sampling from an endpoint, against a real HTTP server on the loopback that behaves badly in scripted ways."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from optative.core.errors import InputError
from optative.generators.language.endpoint import EndpointModel
from optative.generators.language.sample import SamplingSettings
from optative.generators.options import EndpointOptions

SETTINGS = SamplingSettings(max_new_tokens=20, temperature=0.7, top_p=0.9)
GREEDY = SamplingSettings(max_new_tokens=20, temperature=0.0)


def choice(text: str, reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": reason, **more}


def answer(*choices: dict[str, Any], prompt: int = 10, completion: int = 5) -> tuple[int, dict[str, str], bytes]:
    body = {"choices": list(choices), "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    return 200, {}, json.dumps(body).encode()


def error(status: int, message: str = "no", **headers: str) -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        {k.replace("_", "-"): v for k, v in headers.items()},
        json.dumps({"error": {"message": message}}).encode(),
    )


def echo(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """A good server: answers with the last message, as often as asked."""
    said = body["messages"][-1]["content"]
    return answer(*[choice(f"{said} {i}") for i in range(body.get("n", 1))])


class Server:
    """Plays `script` (an answer, a function of the request, `cut` or `stall`), then echoes."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.ended = threading.Event()
        guard = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with guard:
                    outer.requests.append(body)
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    outer.paths.append(self.path)
                    play = outer.script.pop(0) if outer.script else echo
                if play == "stall":
                    outer.ended.wait(20)
                    return
                status, headers, content = play(body) if callable(play) else echo(body) if play == "cut" else play
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if play == "cut" else content)
                self.close_connection = True

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def make(server: Server, clock: Clock | None = None, journal: Path | None = None, **options: Any) -> EndpointModel:
    clock = clock or Clock()
    given = EndpointOptions.model_validate({"url": server.url, "model": "m", "concurrency": 1, **options})
    return EndpointModel(given, journal=journal, clock=clock, sleep=clock.sleep)


def test_requests_carry_the_settings_and_answers_come_back_in_order(server: Server) -> None:
    settings = SamplingSettings(max_new_tokens=9, temperature=0.5, top_p=0.8, top_k=7, stop=("###",))
    talk = [{"role": "system", "content": "short"}, {"role": "user", "content": "two"}]
    seen: list[tuple[int, int]] = []
    with make(server, concurrency=3) as model:
        found = model.sample(["one", talk], 2, settings, seed=5, progress=lambda a, b: seen.append((a, b)))
    assert [[a.text for a in row] for row in found] == [["one 0", "one 1"], ["two 0", "two 1"]]
    assert seen == [(2, 4), (4, 4)]
    assert set(server.paths) == {"/v1/chat/completions"}
    by_text = {r["messages"][-1]["content"]: r for r in server.requests}
    assert by_text["one"]["messages"] == [{"role": "user", "content": "one"}]
    assert by_text["two"]["messages"] == talk
    body = by_text["two"]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["top_k"]) == (9, 0.5, 0.8, 7)
    assert (body["stop"], body["n"], body["model"]) == (["###"], 2, "m")
    assert by_text["one"]["seed"] != by_text["two"]["seed"]
    assert "authorization" not in server.headers[0]


def test_the_seed_is_keyed_by_seed_prompt_and_sample(server: Server) -> None:
    with make(server) as model:
        for seed, prompts in ((1, ["a", "b"]), (1, ["b"]), (2, ["a"])):
            model.sample(prompts, 1, SETTINGS, seed=seed)
    a, b, b_again, other = (r["seed"] for r in server.requests)
    assert b == b_again
    assert len({a, b, other}) == 3
    assert all(0 <= s < 2**31 for s in (a, b, other))


def test_finish_reasons_log_probabilities_and_stop_strings(server: Server) -> None:
    logps = {"content": [{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -1.5}]}
    server.script = [
        answer(
            choice("natural", logprobs=logps),
            choice("cut short", "length"),
            choice("ended ", "stop", stop_reason="END"),
            choice("left in END and END more"),
            choice(None, "content_filter"),  # type: ignore[arg-type]
        )
    ]
    settings = SamplingSettings(max_new_tokens=20, temperature=0.7, stop=("more", "END"))
    with make(server) as model:
        (row,) = model.sample(["p"], 5, settings, seed=0)
    assert [(a.text, a.finish_reason) for a in row] == [
        ("natural", "eos"),
        ("cut short", "length"),
        ("ended ", "stop"),
        ("left in ", "stop"),
        ("", "eos"),
    ]
    assert row[0].logps == (-0.5, -1.5)
    assert (row[0].num_tokens, row[1].num_tokens, row[1].logps, row[1].ids) == (2, None, (), ())


@pytest.mark.parametrize(
    "fault",
    [
        error(429, "slow down"),
        error(500),
        error(503),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b"<html>busy</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": null}]}'),
        (200, {}, b"[1, 2]"),
        (200, {}, b"\xff\xfe"),
        (200, {"content-encoding": "gzip"}, b"not gzip"),
        "cut",
        "stall",
    ],
)
def test_passing_faults_are_tried_again(server: Server, fault: Any) -> None:
    server.script = [fault, fault]
    clock = Clock()
    with make(server, clock, timeout_seconds=0.2 if fault == "stall" else 10) as model:
        ((found,),) = model.sample(["hello"], 1, GREEDY, seed=0)
        assert found.text == "hello 0"
        assert (model.usage.requests, model.usage.retries) == (3, 2)
    assert [r == server.requests[0] for r in server.requests] == [True, True, True]
    first, second = clock.slept
    assert 0.25 <= first <= 0.5 <= second <= 1.0, "exponential, with jitter below"


def test_retry_after_is_honoured_in_seconds_and_as_a_date(server: Server) -> None:
    import time

    server.script = [error(429, retry_after="7"), error(503, retry_after=formatdate(time.time() + 30, usegmt=True))]
    clock = Clock()
    with make(server, clock) as model:
        model.sample(["hello"], 1, GREEDY, seed=0)
    assert clock.slept[0] == 7
    assert 25 < clock.slept[1] <= 31
    server.script = [error(429, retry_after="86400")]
    with make(server) as model, pytest.raises(InputError, match="asks to wait 86400 s"):
        model.sample(["hello"], 1, GREEDY, seed=0)


def test_retries_end_with_the_last_reason(server: Server) -> None:
    server.script = [error(500, "first"), error(502, "second"), error(503, "third"), error(500, "never asked")]
    with make(server, retries=2) as model, pytest.raises(InputError) as caught:
        model.sample(["hello"], 1, GREEDY, seed=0)
    assert "3 attempts" in str(caught.value)
    assert "status 503: third" in str(caught.value)
    assert len(server.requests) == 3
    assert caught.value.exit_code == 2


def test_final_refusals_are_not_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    for fault, words in (
        (error(401, "bad key sk-very-secret"), r"status 401: the key in \$A_KEY is not accepted"),
        (error(404), r"status 404: .*no model 'm'"),
        (error(400, "prompt too long for sk-very-secret"), r"status 400: prompt too long for \*\*\*"),
        ((302, {"location": "http://elsewhere"}, b""), "status 302"),
    ):
        server.script = [fault]
        before = len(server.requests)
        with make(server, api_key_env="A_KEY") as model, pytest.raises(InputError, match=words) as caught:
            model.sample(["hello"], 1, GREEDY, seed=0)
        assert "sk-very-secret" not in str(caught.value) + repr(model)
        assert server.url in str(caught.value)
        assert len(server.requests) == before + 1
    assert server.headers[-1]["authorization"] == "Bearer sk-very-secret"
    server.script = [error(401)]
    with pytest.raises(InputError, match=r"status 401: it wants a key"):
        make(server).sample(["hello"], 1, GREEDY, seed=0)


def test_one_refusal_ends_the_waiting_of_the_others(server: Server) -> None:
    """Real waiting, of five minutes, that the refusal cuts short."""
    waiting = threading.Barrier(4)

    def play(body: dict[str, Any]) -> Any:
        waiting.wait(20)
        return error(404) if body["messages"][-1]["content"] == "bad" else error(500, retry_after="300")

    server.script = [play] * 4
    options = EndpointOptions(url=server.url, model="m", concurrency=4)
    with EndpointModel(options) as model, pytest.raises(InputError, match="status 404"):
        model.sample(["a", "b", "bad", "c"], 1, GREEDY, seed=0)
    assert len(server.requests) == 4


def test_an_unreachable_endpoint_is_said_at_once_without_credentials(server: Server) -> None:
    server.close()
    clock = Clock()
    url = server.url.replace("http://", "http://someone:hidden@")
    with make(server, clock, url=url) as model, pytest.raises(InputError) as caught:
        model.sample(["hello"], 1, GREEDY, seed=0)
    assert "unreachable" in str(caught.value)
    assert server.url in str(caught.value)
    assert "hidden" not in str(caught.value) + repr(model)
    assert "someone" not in str(caught.value) + repr(model)
    assert clock.slept == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "nonsense"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="not an address"):
        EndpointModel(EndpointOptions(url=url, model="m"))


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_KEY", " ")
    for name in ("NO_SUCH_KEY", "EMPTY_KEY"):
        with pytest.raises(InputError, match=f"environment variable of the API key is not set.*{name}"):
            EndpointModel(EndpointOptions(url="http://localhost/v1", model="m", api_key_env=name))


def test_the_rate_limit_spaces_requests(server: Server) -> None:
    clock = Clock()
    with make(server, clock, requests_per_minute=30) as model:
        model.sample(["a", "b", "c", "d"], 1, GREEDY, seed=0)
    assert clock.slept == [2.0, 2.0, 2.0]


def test_what_the_endpoint_lacks_is_left_out_and_noted(server: Server) -> None:
    def picky(body: dict[str, Any]) -> Any:
        if "logprobs" in body:
            return error(400, "logprobs is not supported by this model")
        if "seed" in body:
            return error(422, "unknown field: seed")
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "n" in body:
            return error(400, "'n' must be 1")
        return echo(body)

    server.script = [picky] * 20
    with make(server) as model:
        ((one, two, three), _) = model.sample(["a", "b"], 3, SETTINGS, seed=0)
        assert [one.text, two.text, three.text] == ["a 0"] * 3
        assert len(model.notes) == 4
    assert len(server.requests) == 4 + 6
    assert server.requests[-1]["max_completion_tokens"] == 20


def test_an_endpoint_that_ignores_n_is_asked_again_for_the_rest(server: Server) -> None:
    server.script = [lambda body: answer(choice("x"))] * 3
    with make(server) as model:
        (row,) = model.sample(["a"], 3, SETTINGS, seed=0)
        assert model.usage.prompt_tokens == 30
    assert [r.get("n") for r in server.requests] == [3, 2, None]
    assert len({r["seed"] for r in server.requests}) == 3
    assert [a.num_tokens for a in row] == [5, 5, 5]


def test_the_bill(server: Server) -> None:
    server.script = [
        answer(choice("a"), prompt=1000, completion=200),
        (200, {}, json.dumps({"choices": [choice("b")]}).encode()),
    ]
    with make(server, price_per_million_input=2, price_per_million_output=10) as model:
        model.sample(["a", "b"], 1, GREEDY, seed=0)
        assert (model.usage.prompt_tokens, model.usage.completion_tokens, model.usage.unreported) == (1000, 200, 1)
        assert model.cost == pytest.approx(0.002 + 0.002)
    with make(server) as model:
        assert model.cost is None


def test_a_killed_job_does_not_pay_twice(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    journal = tmp_path / "answers.jsonl"
    server.script = [echo, echo, error(404)]
    with make(server, journal=journal, api_key_env="A_KEY") as model, pytest.raises(InputError):
        model.sample(["a", "b", "c"], 2, SETTINGS, seed=0)
    whole = journal.read_bytes()
    assert whole.count(b"\n") == 4
    assert b"secret" not in whole
    journal.write_bytes(whole[:-7])  # killed while the last answer was being written
    with make(server, journal=journal) as model:
        found = model.sample(["a", "b", "c"], 2, SETTINGS, seed=0)
        assert [[a.text for a in row] for row in found] == [["a 0", "a 1"], ["b 0", "b 0"], ["c 0", "c 1"]]
        assert (model.usage.requests, model.usage.remembered) == (2, 3)
        before = len(server.requests)
        assert model.sample(["a", "b", "c"], 2, SETTINGS, seed=0) == found
        assert len(server.requests) == before
        with pytest.raises(InputError, match="another process is using this journal"):
            make(server, journal=journal)
    assert journal.read_bytes().count(b"\n") == 6


def test_other_content_is_asked_anew(server: Server, tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    calls: list[Callable[[EndpointModel], Any]] = [
        lambda m: m.sample(["a"], 1, SETTINGS, seed=0),
        lambda m: m.sample(["b"], 1, SETTINGS, seed=0),
        lambda m: m.sample(["a"], 1, GREEDY, seed=0),
        lambda m: m.sample(["a"], 1, SETTINGS, seed=1),
        lambda m: m.sample(["a"], 1, SETTINGS, seed=0, keys=["other"]),
    ]
    for _ in range(2):
        for call in calls:
            with make(server, journal=journal) as model:
                call(model)
    assert len(server.requests) == len(calls)
    with make(server, journal=journal, model="another") as model:
        calls[0](model)
    assert len(server.requests) == len(calls) + 1


def test_a_foreign_journal_is_refused_by_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"key": "a", "text": "x"}\n{"no": 1}\n')
    with pytest.raises(InputError, match=r"j\.jsonl:2: not a remembered answer"):
        make(server, journal=tmp_path / "j.jsonl")


def test_questions_that_cannot_be_asked(server: Server) -> None:
    with make(server) as model:
        with pytest.raises(InputError, match="greedy completions"):
            model.sample(["a"], 2, GREEDY, seed=0)
        with pytest.raises(InputError, match="no completions asked for"):
            model.sample(["a"], 0, GREEDY, seed=0)
        with pytest.raises(InputError, match="one key for each prompt"):
            model.sample(["a"], 1, GREEDY, seed=0, keys=[])
        assert model.sample([], 1, GREEDY, seed=0) == []
    assert server.requests == []
