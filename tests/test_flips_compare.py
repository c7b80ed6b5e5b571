"""`optative compare`: what a new result (A) breaks and repairs of an old one (B), and who wins; case 28."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optative.cli.main import main
from optative.core.errors import InputError, InputErrors
from optative.core.rng import stream
from optative.evaluation.compare import compare
from test_compare import run_folder, sample, write
from test_flips_anatomy import GOLD, NEW_ANSWERS, OLD_ANSWERS


def answered(answers: list[str], **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": i, "score": int(a == g), "answer": a, "kind": "xy"[i % 2], "num_tokens": i + 1, **more}
        for i, (a, g) in enumerate(zip(answers, GOLD))
    ]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "a.jsonl", answered(NEW_ANSWERS)), write(tmp_path / "b.jsonl", answered(OLD_ANSWERS))


def test_anatomy_goes_from_b_to_a(files: tuple[Path, Path]) -> None:
    found = compare(*files)
    flips = found["flips"]["all"]
    names = ["both_right", "positive_flip", "negative_flip", "both_wrong_same", "both_wrong_different"]
    assert [flips[name] for name in names] == [3, 0, 1, 2, 4]
    (row,) = found["metrics"]
    assert (row["only_b"], row["only_a"]) == (flips["negative_flip"], flips["positive_flip"])
    assert row["difference"] == pytest.approx(flips["pfr"]["value"] - flips["nfr"]["value"])
    assert flips["nfr_mc"]["value"] == 0.5
    assert flips["noise_floor"] is None
    assert {kind: (part["n"], part["nfr"]["value"]) for kind, part in flips["by_kind"].items()} == {
        "x": (5, 0.2),
        "y": (5, 0.0),
    }
    assert [part["length_b"] for part in flips["by_length"]] == [[1, 3], [4, 6], [7, 8], [9, 10]]
    assert [part["nfr"]["value"] for part in flips["by_length"]] == [pytest.approx(1 / 3), 0, 0, 0]
    assert found["win_rate"] is None
    json.dumps(found, allow_nan=False)


def test_a_repeat_of_b_is_the_noise_floor(files: tuple[Path, Path], tmp_path: Path) -> None:
    still = compare(*files, repeat=files[1])["flips"]["all"]["noise_floor"]
    assert (still["nfr"]["value"], still["nfr_mc"]["value"], still["n"]) == (0, 0, 10)
    shaken = list(OLD_ANSWERS)
    shaken[0] = "z"
    noisy = compare(*files, repeat=write(tmp_path / "r.jsonl", answered(shaken)))
    assert noisy["flips"]["all"]["noise_floor"]["nfr"]["value"] == 0.1
    assert [w["code"] for w in noisy["warnings"]] == ["flips_are_noise"]
    with pytest.raises(InputError, match="share no item"):
        compare(*files, repeat=write(tmp_path / "o.jsonl", [{"id": "other", "score": 1}]))
    with pytest.raises(InputError, match="no repeat"):
        compare(*files, repeat=write(tmp_path / "s.jsonl", [sample(1, [True])]))


def test_plain_scores_without_answers_still_compare(tmp_path: Path) -> None:
    rows = [{"id": i, "score": s} for i, s in enumerate([1, 0, 1, 0])]
    other = [{"id": i, "score": s} for i, s in enumerate([1, 1, 0, 0])]
    flips = compare(write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", other))["flips"]["all"]
    assert flips["nfr_mc"] is None
    assert (flips["by_kind"], flips["by_length"]) == ({}, [])
    assert (flips["nfr"]["value"], flips["backward_trust"]["value"]) == (0.25, 0.5)


def test_judged_answers_by_instruction_and_a_judge_that_contradicts_itself(tmp_path: Path) -> None:
    new = [sample(i, [i % 2 == 0, True], completion=f"new {i}") for i in range(8)]
    old = [sample(i, [True, i > 3]) for i in range(8)]
    new[5]["completion"] = old[5]["completion"]  # the same text: right in B, wrong in A
    found = compare(run_folder(tmp_path / "a", new), run_folder(tmp_path / "b", old))
    flips = found["flips"]["held_out"]
    assert {kind: (part["nfr"]["value"], part["pfr"]["value"]) for kind, part in flips["by_kind"].items()} == {
        "a": (0.5, 0.0),
        "b": (0.0, 0.5),
    }
    assert flips["judged_differently"] == 1
    assert [w["code"] for w in found["warnings"]] == ["judged_differently"]
    assert flips["nfr_mc"]["value"] >= flips["nfr"]["value"]


def graded(n: int, longer: float, taste: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of a judge that likes long answers, and nothing else."""
    rng = stream("graded", n)
    a_tokens, b_tokens = (rng.integers(50, 150, n) + longer).astype(int), rng.integers(50, 150, n)
    a, b = (taste * t / 50 + rng.normal(0, 1, n) for t in (a_tokens, b_tokens))
    rows = [[{"id": i, "score": float(s), "num_tokens": int(t)} for i, (s, t) in enumerate(zip(*side))]
            for side in ((a, a_tokens), (b, b_tokens))]  # fmt: skip
    return rows[0], rows[1]


def test_graded_scores_flip_outside_the_dead_zone_and_length_is_controlled(tmp_path: Path) -> None:
    a, b = graded(600, longer=20, taste=2.0)
    files = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
    found = compare(*files, dead_zone=0.5)
    flips, wins = found["flips"]["all"], found["win_rate"]
    moves = [x["score"] - y["score"] for x, y in zip(a, b)]
    assert flips["nfr"]["value"] == pytest.approx(sum(m < -0.5 for m in moves) / 600)
    assert flips["dead_zone"] == 0.5
    assert wins["by"] == "scores"
    assert wins["rate"] == pytest.approx(sum(m > 0 for m in moves) / 600)
    assert wins["rate"] > 0.6
    assert wins["length_controlled"]["interval"][0] < 0.5 < wins["length_controlled"]["interval"][1]
    assert wins["length_controlled"]["length_effect"] > 1
    back = compare(files[1], files[0])["win_rate"]
    assert wins["rate"] + back["rate"] == pytest.approx(1)
    assert back["length_controlled"]["rate"] + wins["length_controlled"]["rate"] == pytest.approx(1, abs=1e-5)


def orders() -> list[dict[str, Any]]:
    """Case 28: 6 items A in both orders, 1 item B in both, 3 where the first answer shown wins twice."""
    winners = [("a", "a")] * 6 + [("b", "b")] + [("a", "b")] * 3
    return [
        {"id": i, "first": first, "winner": won}
        for i, both in enumerate(winners)
        for first, won in zip("ab", both)
    ]  # fmt: skip


def test_case_28_both_orders_are_one_item(files: tuple[Path, Path], tmp_path: Path) -> None:
    wins = compare(*files, verdicts=write(tmp_path / "v.jsonl", orders()))["win_rate"]
    assert (wins["n"], wins["wins"], wins["losses"], wins["ties"]) == (10, 6, 1, 3)
    assert (wins["rate"], wins["p"]) == (0.75, 0.125)
    assert wins["orders"]["consistent"] == 7
    assert (wins["orders"]["first_shown_wins"], wins["orders"]["verdicts"]) == (13, 20)
    assert wins["length_controlled"] is not None
    always_first = [{"id": i, "first": f, "winner": f} for i in range(10) for f in "ab"]
    found = compare(*files, verdicts=write(tmp_path / "w.jsonl", always_first))
    assert (found["win_rate"]["rate"], found["win_rate"]["orders"]["consistent"]) == (0.5, 0)
    assert "orders_of_the_judge" in [w["code"] for w in found["warnings"]]
    lacking = compare(*files, verdicts=write(tmp_path / "x.jsonl", orders()[1:]))
    assert (lacking["win_rate"]["n"], lacking["win_rate"]["unjudged"]) == (9, 1)
    assert any("0" in w["message"] and "one order" in w["message"] for w in lacking["warnings"])


def test_verdicts_without_orders_ties_and_none(files: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"id": i, "winner": w} for i, w in enumerate(["a", "a", "b", "tie", None])] + [{"id": 99, "winner": "a"}]
    found = compare(*files, verdicts=write(tmp_path / "v.jsonl", rows))
    wins = found["win_rate"]
    assert (wins["rate"], wins["n"], wins["missing"], wins["unjudged"], wins["unknown"]) == (2.5 / 4, 4, 1, 5, 1)
    assert [w["code"] for w in found["warnings"]] == ["unknown_verdicts"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": 1, "winner": "A"}], r"v\.jsonl:1: winner: not a verdict; found 'A', expected a, b, tie, null"),
        ([{"id": 1}], "winner: is absent"),
        ([{"id": 1, "winner": "a", "first": "left"}], "first: not a verdict"),
        ([{"id": 1, "winner": "a"}, {"id": 1, "winner": "b"}], "1 was judged twice"),
        ([{"id": 1, "winner": "a", "first": "a"}] * 2, "item 1 was judged twice with a first"),
        ([{"id": 1, "winner": "a", "first": "a"}, {"id": 2, "winner": "a"}], "some do not"),
        ([{"id": "zz", "winner": "a"}], "no verdict is about an item"),
        ([], "is empty"),
    ],
)
def test_wrong_verdicts(rows: list[dict[str, Any]], says: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        compare(*files, verdicts=write(tmp_path / "v.jsonl", rows))


def test_wrong_options_and_lengths(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="yes or no"):
        compare(*files, dead_zone=0.1)
    with pytest.raises(InputErrors, match="num_tokens: not a length; found -1"):
        compare(files[0], write(tmp_path / "c.jsonl", [{"id": 1, "score": 1, "num_tokens": -1}]))
    with pytest.raises(InputError, match="no such file"):
        compare(*files, verdicts=tmp_path / "none.jsonl")


def test_the_command_shows_flips_and_wins(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = write(tmp_path / "v.jsonl", orders())
    command = ["compare", *map(str, files), "--repeat", str(files[1]), "--verdicts", str(verdicts)]
    assert main(command) == 0
    text = capsys.readouterr().out
    for shown in (
        "right, then wrong", "kept of what was right", "0.750", "3 both right, 0 repaired, 1 broken",
        "2 the same, 4 another answer", "length of B's answer 1 to 3", "Win rate of A by verdicts: 0.750",
        "agrees with itself on 7 of 10 items", "length controlled",
    ):  # fmt: skip
        assert shown in text, shown
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flips"]["all"]["negative_flip"] == 1
    a, b = graded(40, longer=0, taste=0.0)
    both = [str(write(tmp_path / name, rows)) for name, rows in (("g.jsonl", a), ("h.jsonl", b))]
    assert main(["compare", *both, "--dead-zone", "0.1"]) == 0
    assert "fell" in capsys.readouterr().out
