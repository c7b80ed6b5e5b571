"""Result files and their comparison; case 23."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optative.cli.main import main
from optative.core.errors import InputError, InputErrors
from optative.evaluation.compare import compare
from optative.evaluation.results import read_results

A = [{"id": f"q{i}", "score": int(i <= 6)} for i in range(1, 11)]
B = [{"id": f"q{i}", "score": int(i <= 3)} for i in range(10, 0, -1)]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows), "utf-8"
    )
    return path


def sample(i: Any, followed: list[bool], **more: Any) -> dict[str, Any]:
    checks = [{"kind": k, "params": {}, "followed": f, "decided": True} for k, f in zip(("a", "b"), followed)]
    return {
        "stage": "evaluation",
        "split": "held_out",
        "model": "steered",
        "id": i,
        "prompt": f"prompt {i}",
        "completion": f"word{i} more\u2028words",
        "sample": 0,
        "num_tokens": 5,
        "checks": checks,
        "followed": all(followed),
        "mode": "strict",
        **more,
    }


def run_folder(path: Path, rows: list[Any], **manifest: Any) -> Path:
    write(path / "samples.jsonl", rows)
    (path / "manifest.json").write_text(json.dumps({"name": path.name, **manifest}))
    return path


# Case 23: another order, a repeated id.


def test_pairs_by_id_and_not_by_position(tmp_path: Path) -> None:
    found = compare(write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B))
    (row,) = found["metrics"]
    assert (row["a"], row["b"], row["n"]) == (0.6, 0.3, 10)
    assert row["difference"] == pytest.approx(0.3)
    assert (row["only_a"], row["only_b"], row["p"]) == (3, 0, 0.25)
    assert row["interval"][0] < 0 < 0.3 < row["interval"][1]
    back = compare(tmp_path / "b.jsonl", tmp_path / "a.jsonl")["metrics"][0]
    assert back["difference"] == pytest.approx(-0.3)
    assert (back["only_a"], back["only_b"], back["p"]) == (0, 3, 0.25)
    assert back["interval"] == pytest.approx([-row["interval"][1], -row["interval"][0]])


def test_repeated_id_with_another_score_is_refused(tmp_path: Path) -> None:
    c = write(tmp_path / "c.jsonl", [*B, {"id": "q6", "score": 1}])
    with pytest.raises(
        InputError, match=r"c\.jsonl:11: id: q6 was first seen in line 5; the scores differ \(0 and 1\)"
    ):
        compare(write(tmp_path / "a.jsonl", A), c)


def test_repeated_id_with_the_same_score_counts_once(tmp_path: Path) -> None:
    c = write(tmp_path / "c.jsonl", [*B, {"id": "q6", "score": 0}])
    found = compare(write(tmp_path / "a.jsonl", A), c)
    assert (found["n"], found["metrics"][0]["p"]) == (10, 0.25)
    assert [w["code"] for w in found["warnings"]] == ["repeated_rows"]


def test_missing_ids_are_listed_and_left_out_of_both_means(tmp_path: Path) -> None:
    found = compare(write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", [r for r in B if r["id"] != "q10"]))
    (row,) = found["metrics"]
    assert (row["n"], found["missing"]["only_a"], found["missing"]["only_b"]) == (9, ["q10"], [])
    assert (row["a"], row["b"]) == pytest.approx((6 / 9, 3 / 9))
    assert "q10 only in A; none only in B" in found["warnings"][0]["message"]


def test_number_and_text_are_the_same_id(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [{"id": 1, "score": 1}, {"id": 2, "score": 0.5}])
    two = write(tmp_path / "two.jsonl", [{"id": "2", "score": 0.5}, {"id": "1", "score": 1}])
    assert compare(one, two)["n"] == 2
    both = write(tmp_path / "both.jsonl", [{"id": 1, "score": 1}, {"id": "1", "score": 0}])
    with pytest.raises(InputError, match="1 was first seen in line 1"):
        read_results(both)


def test_shared_files_of_the_case(shared: Path) -> None:
    a, b, c = (shared / "cases" / f"23-ids-order-duplicates.{x}.jsonl" for x in "abc")
    row = compare(a, b)["metrics"][0]
    assert (row["only_a"], row["only_b"], row["p"]) == (3, 0, 0.25)
    with pytest.raises(InputError, match="line 5"):
        compare(a, c)


# Reading.


def test_all_faults_of_a_file_show_at_once(tmp_path: Path) -> None:
    rows = [
        "{",
        '{"id": "a"}',
        '{"id": 1.5, "score": 1}',
        '{"id": "b", "score": "85%"}',
        '{"id": "c", "score": NaN}',
        "[1]",
    ]
    path = write(tmp_path / "bad.jsonl", ['{"id": "x", "score": 1}', *rows, '{"id": true, "score": 1}'])
    path.write_bytes(path.read_bytes() + b'{"id": "\xff", "score": 1}\n')
    with pytest.raises(InputErrors) as caught:
        read_results(path)
    assert [(e.line, e.field) for e in caught.value.errors] == [
        (2, None),
        (3, "score"),
        (4, "id"),
        (5, "score"),
        (6, "score"),
        (7, None),
        (8, "id"),
        (9, None),
    ]


def test_byte_order_mark_blank_lines_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes('\ufeff{"id": "a\u2028b", "score": true}\r\n\r\n{"id": "c", "score": null}'.encode())
    found = read_results(path)
    assert [(r["id"], r["score"]) for r in found.rows] == [("a\u2028b", 1.0)]
    assert found.unscored == ("c",)


@pytest.mark.parametrize(
    ("rows", "message"), [([], "is empty"), ([sample(1, [True], stage="round-1")], "no answers of an evaluation")]
)
def test_files_without_anything_to_compare(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_results(write(tmp_path / "x.jsonl", rows))


def test_paths_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_results(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no samples\.jsonl"):
        read_results(tmp_path)


def test_nothing_in_common_or_of_another_kind(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", A)
    with pytest.raises(InputError, match="no id in common"):
        compare(a, write(tmp_path / "b.jsonl", [{"id": "z", "score": 1}]))
    with pytest.raises(InputError, match="judged answers"):
        compare(a, write(tmp_path / "s.jsonl", [sample(1, [True])]))


# Runs.


def test_run_folders_compare_their_steered_models(tmp_path: Path) -> None:
    rows = [sample(i, [i % 2 == 0, True]) for i in range(20)]
    rows += [sample(i, [False, False], model="base") for i in range(20)]
    rows += [sample(i, [False, False], stage="round-1", model="policy") for i in range(20)]
    other = [sample(i, [i % 4 == 0, i != 4], completion=f"another {i}") for i in reversed(range(20))]
    base = {"name": "m", "fingerprint": "f", "template_hash": "t"}
    a = run_folder(tmp_path / "a", rows, base_model=base, trained_kinds=["a"])
    b = run_folder(tmp_path / "b", other, base_model=base, trained_kinds=["a"])
    found = compare(a, b)
    prompt = next(m for m in found["metrics"] if m["name"] == "prompt_accuracy")
    assert (prompt["a"], prompt["b"], prompt["n"]) == (0.5, 0.2, 20)
    assert (prompt["only_a"], prompt["only_b"], prompt["both"], prompt["neither"]) == (6, 0, 4, 10)
    assert prompt["p"] == pytest.approx(2 / 64)
    assert prompt["independence"] == "same_rule_held_out"
    kinds = {r["kind"]: r for r in found["by_kind"]}
    assert (kinds["b"]["only_a"], kinds["b"]["only_b"], kinds["b"]["independence"]) == (1, 0, "independent")
    assert (found["a"]["model"], found["warnings"]) == ("steered", [])
    json.dumps(found, allow_nan=False)


def test_doubtful_comparisons_warn(tmp_path: Path) -> None:
    rows = [sample(i, [True, i > 5]) for i in range(12)]
    changed = [{**r, "mode": "published", "model": "base"} for r in rows]
    changed[3] = {**changed[3], "prompt": "another question"}
    changed[4] = {**changed[4], "prompt": [{"role": "user", "content": "prompt 4"}]}
    a = run_folder(tmp_path / "a", rows, base_model={"fingerprint": "1", "template_hash": "x"})
    b = run_folder(tmp_path / "b", changed, base_model={"fingerprint": "2", "template_hash": "y"})
    found = compare(a, b)
    assert [w["code"] for w in found["warnings"]] == [
        "held_out_sets_differ",
        "modes_differ",
        "template_hash_differs",
        "fingerprint_differs",
    ]
    assert found["missing"]["other_prompt"] == ["3"]
    assert found["n"] == 11
    with pytest.raises(InputError, match="other prompts"):
        compare(a, run_folder(tmp_path / "c", [{**r, "prompt": "else"} for r in rows]))


def test_faults_of_judged_answers(tmp_path: Path) -> None:
    rows = [
        sample(1, [True]),
        {**sample(2, [True]), "followed": "yes"},
        {**sample(3, [True]), "checks": [{"kind": "a"}]},
    ]
    absent = sample(4, [True])
    del absent["completion"]
    with pytest.raises(InputErrors) as caught:
        read_results(write(tmp_path / "s.jsonl", [*rows, absent]))
    assert [(e.line, e.field) for e in caught.value.errors] == [(2, "followed"), (3, "checks[0]"), (4, "completion")]


# Command line.


def test_command_prints_a_table_or_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B)
    assert main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    for shown in ("10 items in common", "0.600", "0.300", "+0.300", "-0.087 to +0.587", "0.2500"):
        assert shown in text
    assert main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare(a, b)))


def test_command_ends_with_2_on_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", A)
    assert main(["compare", str(a), str(tmp_path / "absent.jsonl")]) == 2
    assert main(["compare", str(a), str(a), "--level", "95"]) == 2
    captured = capsys.readouterr()
    assert "absent.jsonl: no such file" in captured.err
    assert "level" in captured.err
    assert captured.out == ""
