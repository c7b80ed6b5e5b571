"""`optative evaluate` and `compare`: a local model and an endpoint, own prompts and the public file, no run needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from optative.cli.main import main
from optative.objectives.instructions.compose import generate
from optative.objectives.instructions.ifeval import write_ifeval
from tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048)


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_local_model_on_own_prompts(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (tiny, "--limit", 12, "--max-new-tokens", 8, "--dtype", "float32", "--out", tmp_path / "a")
    found = evaluate(capsys, *asked)
    figures = {(m["name"], m["split"]): m for m in found["metrics"]}
    figure = figures["prompt_accuracy", "held_out"]
    rows = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").open()]
    own = [row for row in rows if row["split"] == "held_out"]
    assert figure["n"] == len(own) == 12
    assert figure["base"] == sum(row["followed"] for row in own) / 12
    assert figure["steered"] is None
    assert figure["independence"] == "same_rule_held_out"  # nobody knows what this model was trained on
    assert figures["prompt_accuracy_loose", "held_out"]["base"] >= figure["base"]
    assert evaluate(capsys, *asked) == found  # from the cache

    evaluate(capsys, *asked[:-1], tmp_path / "b")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    differences = [m["difference"] for m in compared["metrics"] if m["name"] == "prompt_accuracy"]
    assert differences
    assert set(differences) == {0.0}


def test_the_public_file_is_scored_by_the_published_rule(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = [p for p in generate("held_out", 50) if all(i.kind in PUBLIC for i in p.instructions)][:6]
    write_ifeval(tmp_path / "input_data.jsonl", public)
    asked = (tiny, "--ifeval", tmp_path / "input_data.jsonl", "--max-new-tokens", 8, "--out", tmp_path / "e")
    found = evaluate(capsys, *asked)
    assert found["mode"] == "published"
    assert {m["split"] for m in found["metrics"]} == {"ifeval"}
    assert {m["n"] for m in found["metrics"] if m["name"] == "prompt_accuracy"} == {6}


PUBLIC = {
    "keywords:existence",
    "keywords:frequency",
    "length_constraints:number_words",
    "detectable_format:title",
    "detectable_format:json_format",
    "change_case:english_lowercase",
    "startend:quotation",
}


class Chat(BaseHTTPRequestHandler):
    """A small OpenAI-compatible server that answers in lower case."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"all quiet, said the river to {body['model']}."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 7}
        answer = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()


def test_an_endpoint(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, server, "--endpoint-model", "m1", "--limit", 10, "--out", tmp_path / "e")
    rows = [json.loads(line) for line in (tmp_path / "e" / "samples.jsonl").open()]
    assert {row["completion"] for row in rows} == {"all quiet, said the river to m1."}
    assert {row["num_tokens"] for row in rows} == {7}
    assert any(m["name"] == "prompt_accuracy" and m["n"] == 10 for m in found["metrics"])
    assert main(["evaluate", server, "--limit", "1"]) == 2
    assert "--endpoint-model" in capsys.readouterr().err
