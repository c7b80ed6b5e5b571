"""The public IFEval file: read with nulls, written and read back, all faults at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optative.core.errors import InputError, InputErrors
from optative.objectives.instructions.compose import generate
from optative.objectives.instructions.ifeval import read_ifeval, write_ifeval
from optative.objectives.instructions.kinds import KINDS

GOOD = {
    "key": 1000,
    "prompt": "Name three rivers without commas in at least 30 words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 30}],
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(InputError) as found:
        read_ifeval(path)
    return str(found.value).splitlines()


def test_a_row_as_published(tmp_path: Path) -> None:
    (prompt,) = read_ifeval(write(tmp_path / "a.jsonl", GOOD))
    assert (prompt.id, prompt.prompt, prompt.split) == ("1000", GOOD["prompt"], "ifeval")
    assert [(i.kind, i.params) for i in prompt.instructions] == [
        ("punctuation:no_comma", {}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 30}),
    ]
    assert prompt.instructions[1].wording == "Use at least 30 words."


def test_null_padded_kwargs(tmp_path: Path) -> None:
    padding = dict.fromkeys(("num_words", "relation", "keywords", "num_bullets", "language"))
    row = {**GOOD, "kwargs": [dict(padding), {**padding, "relation": "at least", "num_words": 30.0}]}
    padded = read_ifeval(write(tmp_path / "padded.jsonl", row))
    assert padded == read_ifeval(write(tmp_path / "plain.jsonl", GOOD))


def test_the_same_kind_twice_and_letters_that_are_none(tmp_path: Path) -> None:
    ids = ["keywords:letter_frequency", "keywords:letter_frequency"]
    kwargs = [
        {"letter": "#", "let_frequency": 4, "let_relation": "at least"},
        {"letter": "!", "let_frequency": 6, "let_relation": "less than"},
    ]
    (prompt,) = read_ifeval(write(tmp_path / "a.jsonl", {**GOOD, "instruction_id_list": ids, "kwargs": kwargs}))
    assert [i.params["letter"] for i in prompt.instructions] == ["#", "!"]


def test_byte_order_mark_line_ends_blank_lines_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    other = {**GOOD, "key": 2, "prompt": "One\u2028line."}
    text = "\ufeff" + json.dumps(GOOD) + "\r\n\r\n" + json.dumps(other, ensure_ascii=False)
    path.write_bytes(text.encode())
    assert [p.prompt for p in read_ifeval(path)] == [GOOD["prompt"], "One\u2028line."]


def test_all_faults_show_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        GOOD,
        '{"key": 2, ',
        [1],
        {
            **GOOD,
            "key": 4,
            "instruction_id_list": ["punctuation:no_coma", "detectable_format:title"],
            "kwargs": [{}, {}],
        },
        {**GOOD, "key": 5, "kwargs": [{}]},
        {**GOOD, "key": 6, "kwargs": [{"colour": "red"}, {"relation": "atleast", "num_words": "30"}]},
        {"key": 7, "promt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {**GOOD, "key": 8, "prompt": " ", "kwargs": {}},
        {**GOOD, "key": 9, "instruction_id_list": [["punctuation:no_comma"], 3]},
        {**GOOD, "key": 10, "kwargs": [[], {"relation": "at least", "num_words": 30}]},
        GOOD,
    )
    said = faults(path)
    for expected in (
        ":2: not JSON",
        ":3: wrong type; found [1], expected a JSON object",
        ":4: instruction_id_list[0]: unknown instruction id 'punctuation:no_coma'; the nearest is 'punctuation:no_com",
        ":5: kwargs: wrong number of objects; found 1, expected 2, as in instruction_id_list",
        ":6: kwargs[0].colour: punctuation:no_comma has no parameters",
        ":6: kwargs[1].relation: wrong value; found 'atleast', expected `less than` or `at least`",
        ":6: kwargs[1].num_words: wrong value; found '30', expected a whole number, at least 1",
        ":7: prompt: missing",
        ":7: unknown column 'promt'; the nearest is 'prompt'",
        ":8: prompt: wrong value",
        ":8: kwargs: wrong type",
        ":9: instruction_id_list[0]: unknown instruction id",
        ":9: instruction_id_list[1]: unknown instruction id '3'",
        ":10: kwargs[0]: wrong type; found [], expected an object",
        ":11: key: the same key as on line 1; found '1000'",
    ):
        assert any(line.startswith(f"{path}{expected}") for line in said), expected
    assert not any(line.startswith(f"{path}:1:") for line in said)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert faults(tmp_path / "a.jsonl") == [f"{tmp_path / 'a.jsonl'}: no prompts"]


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read" in faults(tmp_path / "absent.jsonl")[0]


@pytest.mark.parametrize("split", ["held_out", "unseen_kinds", "validation"])
def test_composed_prompts_survive_the_file(tmp_path: Path, split: Any) -> None:
    prompts = generate(split, 64)
    write_ifeval(tmp_path / "a.jsonl", prompts)
    back = read_ifeval(tmp_path / "a.jsonl")
    for before, after in zip(prompts, back, strict=True):
        assert (after.id, after.prompt, after.task, after.split) == (
            before.id,
            before.prompt,
            before.task,
            before.split,
        )
        assert [(i.kind, i.params) for i in after.instructions] == [(i.kind, i.params) for i in before.instructions]
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert all({"key", "prompt", "instruction_id_list", "kwargs"} <= set(row) for row in rows)


def test_errors_are_input_errors_with_their_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**GOOD, "kwargs": [{}, {"relation": "at most", "num_words": 30}]})
    with pytest.raises(InputErrors) as found:
        read_ifeval(path)
    (error,) = found.value.errors
    assert (error.file, error.line, error.field, error.found) == (path, 1, "kwargs[1].relation", "at most")
    assert found.value.exit_code == 2
    assert set(KINDS) >= set(GOOD["instruction_id_list"])  # type: ignore[arg-type]
