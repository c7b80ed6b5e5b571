"""`optative data inspect`: what a person and a program see of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_makers import assistant, jsonl, user

from optative.cli.main import main
from optative.core.errors import InputError
from optative.data.counts import Counts
from optative.data.inspect import inspect_file, render
from optative.data.readers import read

PAIR = {"prompt": "one two", "chosen": "a b c", "rejected": "d"}
ODD = [
    PAIR,
    {**PAIR, "id": "again"},
    {"prompt": "p", "chosen": "x", "rejected": "x"},
    {"prompt": "p", "chosen": "", "rejected": "x"},
    {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "85%"},
]


def words(prompt: Any, answer: Any) -> int:
    return len((prompt if answer is None else answer).split())


def test_counts_samples_and_everything_odd(tmp_path: Path) -> None:
    report = inspect_file(jsonl(tmp_path / "a.jsonl", *ODD), samples=1)
    assert (report["format"], report["records"]) == ("preference", 5)
    expected = {"duplicates": 1, "ties": 0, "identical": 1, "empty": 1, "skipped": 3, "kept": 2, "bad_value": 1}
    assert expected.items() <= report["counts"].items()
    assert all(type(v) is int for v in report["counts"].values())
    assert report["columns"] == ["prompt", "chosen", "rejected", "id", "margin"]
    assert {(o["kind"], o["line"]) for o in report["odd"]} == {
        ("duplicates", 2),
        ("identical", 3),
        ("empty", 4),
        ("bad_value", 5),
    }
    assert [s["completions"] for s in report["samples"]] == [["a b c", "d"]]
    assert report["token_lengths"] is None
    json.dumps(report, allow_nan=False)


def test_token_lengths_and_the_share_that_is_longer(tmp_path: Path) -> None:
    rows = [{"prompt": "p " * i, "chosen": "c " * 10, "rejected": f"r{i}"} for i in range(1, 101)]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    report = inspect_file(path, count_tokens=words, max_length=60)
    lengths = report["token_lengths"]
    assert lengths["measured"] == 100
    assert lengths["prompt"] == {"p0": 1, "p50": 51, "p90": 91, "p99": 100, "p100": 100}
    assert set(lengths["chosen"].values()) == {10}
    assert set(lengths["rejected"].values()) == {1}
    # longer than 60: prompts above 50 with the chosen answer, above 59 with the rejected one
    assert report["truncated_share"] == (50 + 41) / 200
    assert "longer than 60 tokens: 45.5%" in render(report)


def test_a_prompt_that_the_template_refuses_is_shown_not_fatal(tmp_path: Path) -> None:
    def count(prompt: Any, answer: Any) -> int:
        if prompt == "p2":
            raise InputError("no user turn", field="prompt")
        return 1

    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    report = inspect_file(jsonl(tmp_path / "a.jsonl", *rows), count_tokens=count)
    assert (report["token_lengths"]["measured"], report["counts"]["not_encoded"]) == (2, 1)
    assert "no user turn" in render(report)


def test_max_length_without_a_model_cannot_act(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_length: cannot act without a model"):
        inspect_file(jsonl(tmp_path / "a.jsonl", PAIR), max_length=10)


def test_counts_survive_json(tmp_path: Path) -> None:
    reading = read(jsonl(tmp_path / "a.jsonl", *ODD), on_bad_record="skip")
    list(reading)
    assert Counts.from_json(json.loads(json.dumps(reading.counts.to_json()))) == reading.counts


def test_nothing_in_a_file_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    row = {"prompt": "\x1b[2Jp\u202e", "chosen": "a\x07\n", "rejected": "b"}
    shown = render(inspect_file(jsonl(tmp_path / "a.jsonl", row)))
    assert all(c.isprintable() or c == "\n" for c in shown)


# The command line


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ODD)
    assert main(["data", "inspect", str(path), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["format"], out["records"]) == ("preference", 5)
    assert {"duplicates", "ties", "identical", "empty", "skipped"} <= set(out["counts"])


def test_words_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "a.jsonl", *ODD)
    assert main(["data", "inspect", str(path), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "preference (jsonl)" in out
    assert "5 read, 2 kept, 3 refused" in out
    assert 'line 5: margin: not a number; found "85%"' in out


def test_broken_structure_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "a.jsonl", PAIR, '{"prompt": ')
    assert main(["data", "inspect", str(path), "--json"]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "a.jsonl:2: broken JSON" in seen.err
    assert main(["data", "inspect", str(tmp_path / "b.jsonl")]) == 2
    assert "no such file; the nearest is 'a.jsonl'" in capsys.readouterr().err
    assert main(["data", "inspect", str(jsonl(path, PAIR)), "--max-length", "9"]) == 2
    assert "--max-length: cannot act without --model" in capsys.readouterr().err
    assert main(["data", "inspect", str(path), "--format", "preferense"]) == 2
    assert "the nearest is 'preference'" in capsys.readouterr().err


@pytest.mark.model
def test_tokens_of_the_default_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], default_model_folder: Path
) -> None:
    rows = [{"prompt": [user("Say hi.")], "chosen": [assistant("Hi.")], "rejected": [assistant("No. " * 50)]}]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    model = ["--model", str(default_model_folder), "--max-length", "64"]
    assert main(["data", "inspect", str(path), "--json", *model]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["truncated_share"] == 0.5
    assert report["token_lengths"]["chosen"]["p50"] < 10 < report["token_lengths"]["rejected"]["p50"]
