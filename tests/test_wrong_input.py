"""Wrong input of every kind through the command line: one clear error, exit code 2, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from optative.cli.main import main
from optative.core.files import lock
from test_run import spec
from tiny_models import save_tiny_model

PAIR = {"prompt": "p", "chosen": "yes", "rejected": "no"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(PAIR) + '\n{"prompt": "p", "chosen": \n' + json.dumps(PAIR), "f.jsonl:2: "),
        (json.dumps({"prompt": "p", "chosen": "y", "rejcted": "n"}), "rejected: missing; the nearest is 'rejcted'"),
        (json.dumps({"prompt": "p", "chosen": "y"}), "rejected"),
        ("", "empty"),
        (json.dumps({**PAIR, "chosen": 3}), "chosen"),
        (json.dumps({**PAIR, "rejected": "yes"}), "identical"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "f.jsonl", text)
    assert main(["align", str(path), "--model", str(tiny), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "f.jsonl" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("beta: 0.1", "betta: 0.1", "nearest is 'beta'"), ("seed: 0", "seed: zero", "seed: ")],
)
def test_bad_specs(old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    assert main(["init", str(path)]) == 0
    path.write_text(path.read_text().replace(old, new))
    for verb in ("validate", "run"):
        assert main([verb, str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "s.yaml:" in error


def test_models_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    path = written(tmp_path / "f.jsonl", "".join(json.dumps({**PAIR, "prompt": f"p{i}"}) + "\n" for i in range(30)))
    for model, message in (
        (str(tmp_path / "empty"), "not a model"),
        ("smollm2-135m-instrukt", "smollm2-135m-instruct"),
    ):
        assert main(["align", str(path), "--model", model, "--out", str(tmp_path / "r")]) == 2
        assert message in capsys.readouterr().err


def test_an_endpoint_that_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "http://127.0.0.1:9/v1",
        "--endpoint-model",
        "m",
        "--limit",
        "1",
        "--out",
        str(tmp_path / "e"),
    ]
    assert main(command) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_two_runs_on_one_folder(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "s.yaml", yaml.safe_dump(spec(tiny)))
    with lock(tmp_path / "run" / ".lock", "busy"):
        child = [sys.executable, "-m", "optative", "run", str(path), "--out", str(tmp_path / "run")]
        other = subprocess.run(child, capture_output=True, text=True)
    assert other.returncode == 2
    assert "another process is at work in this run folder" in other.stderr
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_no_space_left_keeps_what_is_written_and_resumes(tiny: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        path = written(tmp_path / "s.yaml", yaml.safe_dump(spec(tiny)))
        child = [sys.executable, "-m", "optative", "run", str(path), "--out", str(small / "run")]
        full = subprocess.run(child, capture_output=True, text=True)
        assert full.returncode == 2, full.stderr
        assert "no space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        assert list((small / "run" / "stages").glob("base-held_out-*.jsonl"))
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        again = subprocess.run(child, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert "Resuming" in again.stderr
    finally:
        subprocess.run(["umount", small], check=True)
