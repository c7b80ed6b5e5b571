"""Studies: pairing, keys, resumption after kill -9, growth, and a page that holds what was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optative.core import stats
from optative.core.errors import InputError
from optative.core.events import Silent
from optative.core.rng import stream
from optative.runs.study import Arm, Measured, Metric, study

ARMS = {
    "plain": Arm(options={"shift": 0.0}),
    "ours": Arm(options={"shift": 0.5}, baseline="plain"),
    "odd": Arm(options={"shift": 0.0, "odd": True}, baseline="plain", panel="other"),
}
METRICS = {"gold": Metric("independent", (-10.0, 10.0)), "cost": Metric("independent")}
CLUSTERS = [f"source {i // 2}" for i in range(20)]


def cell(options: Mapping[str, Any], seed: int) -> Measured:
    items = stream(seed, "items").normal(size=20)
    noise = stream(seed, "noise", options).normal(size=20) * 0.1
    shift = options["shift"] if not options.get("odd") else (-1.0) ** seed
    curve = [float(i) for i in range(15)]
    return Measured({"gold": items + shift + noise, "cost": 3.0 + shift}, {"gold": CLUSTERS}, {"loss": (curve, curve)})


def run(folder: Path, **changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "made-up",
        "title": "A made-up study",
        "command": "optative systems run 7",
        "version": 1,
        "arms": ARMS,
        "seeds": (0, 1, 2),
        "metrics": METRICS,
        "cell": cell,
        "events": Silent(),
    }
    return study(folder, **(given | changed))


def same(found: Mapping[str, Any]) -> Any:
    """What must not depend on when and how often the study was started."""
    cells = [{key: value for key, value in one.items() if key != "seconds"} for one in found["cells"]]
    return cells, found["table"], found["levels"]


def test_differences_are_paired_inside_each_seed_and_over_clusters(tmp_path: Path) -> None:
    found = run(tmp_path / "s")
    row = next(r for r in found["table"] if (r["metric"], r["arm"]) == ("gold", "ours"))
    assert row["baseline"] == "plain"
    for seed, one in enumerate(row["seeds"]):
        base, ours = (np.asarray(cell(ARMS[arm].options, seed).values["gold"]) for arm in ("plain", "ours"))
        wanted = stats.paired_difference(base, ours, clusters=CLUSTERS, bounds=(-10, 10))
        assert (one["seed"], one["difference"]) == (seed, pytest.approx(float((ours - base).mean())))
        assert one["interval"] == wanted.interval.to_list()
        assert (one["n"], one["clusters"]) == (20, 10)
        spread = stats.paired_difference(base, np.roll(ours, 1), clusters=CLUSTERS, bounds=(-10, 10)).interval
        assert spread.high - spread.low > 3 * (one["interval"][1] - one["interval"][0]), "not paired item by item"
    assert row["mean"] == pytest.approx(np.mean([one["difference"] for one in row["seeds"]]))
    signs = {(r["metric"], r["arm"]): r["sign"] for r in found["table"]}
    assert signs == {
        ("gold", "ours"): "higher", ("gold", "odd"): "mixed", ("cost", "ours"): "higher", ("cost", "odd"): "mixed",
    }  # fmt: skip
    cost = next(r for r in found["table"] if (r["metric"], r["arm"]) == ("cost", "ours"))
    assert [one["interval"] for one in cost["seeds"]] == [None] * 3, "one number says nothing about its spread"


def test_the_same_command_computes_nothing_again_and_more_only_adds(tmp_path: Path) -> None:
    asked: list[tuple[Any, int]] = []

    def counted(options: Mapping[str, Any], seed: int) -> Measured:
        asked.append((options["shift"], seed))
        return cell(options, seed)

    first = run(tmp_path / "s", cell=counted)
    assert len(asked) == 9
    again = run(tmp_path / "s", cell=counted)
    assert len(asked) == 9
    assert same(first) == same(again)
    asked.clear()
    more = {"plain": ARMS["plain"], "renamed": ARMS["ours"], "new": Arm(options={"shift": 9.0}, baseline="renamed")}
    grown = run(tmp_path / "s", cell=counted, arms=more, seeds=(2, 3))
    assert asked == [(9.0, 2), (0.0, 3), (0.5, 3), (9.0, 3)], "a cell is known by its content, not by its arm's name"
    assert [one["values"] for one in grown["cells"] if one["arm"] == "renamed" and one["seed"] == 2] == [
        one["values"] for one in first["cells"] if one["arm"] == "ours" and one["seed"] == 2
    ]
    asked.clear()
    run(tmp_path / "s", cell=counted, version=2, seeds=(0,))
    assert len(asked) == 3, "changed code is another result"


def test_a_folder_of_something_else_and_faulty_cells_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "s", seeds=(0,))
    with pytest.raises(InputError, match="holds another study"):
        run(tmp_path / "s", name="other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="holds no study"):
        run(tmp_path / "mine")
    with pytest.raises(InputError, match="different numbers"):
        run(tmp_path / "t", seeds=(0, 0))
    for values, words in (
        ({"gold": [float("nan")]}, "not a number everywhere"),
        ({"gold": []}, "not a number everywhere"),
        ({"new": 1.0}, "declares no metric 'new'"),
    ):
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "t", seeds=(0,), cell=lambda options, seed, values=values: Measured(values))
        assert not list((tmp_path / "t" / "cells").glob("*.json")), "a faulty cell is not kept"
    with pytest.raises(ValueError, match="did not measure the same items"):
        run(
            tmp_path / "t",
            seeds=(0,),
            cell=lambda options, seed: Measured({"gold": [1.0] * (2 if options["shift"] else 3)}),
        )


def test_the_page_shows_the_arms_their_differences_and_the_command(tmp_path: Path) -> None:
    arms = {**ARMS, "<script>x</script>": Arm(options={"shift": 0.1}, baseline="plain")}
    found = run(tmp_path / "s", arms=arms, notes=("A note.",), criteria="abc123")
    page = (tmp_path / "s" / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "s" / "study.json").read_text("utf-8")) == found
    for words in ("A made-up study", "A note.", "optative systems run 7", "abc123", "the sign differs", "study.json"):
        assert words in page
    assert "<script" not in page
    shown = next(r for r in found["table"] if (r["metric"], r["arm"]) == ("gold", "ours"))
    assert f"{shown['mean']:+.3f}" in page
    assert page.count("<svg") >= 4


PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import test_study as t
    from optative.core import files

    left, seen = int(sys.argv[2]), 0
    replace = os.replace
    def killing(source, target):  # at the moment when a cell's file would appear, or just after
        global seen
        if Path(target).parent.name == "cells":
            seen += 1
            if seen > left:
                if sys.argv[3] == "after":
                    replace(source, target)
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    files.os.replace = killing
    t.run(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("left", "when"), [(0, "before"), (5, "before"), (6, "after")])
def test_killed_at_any_moment_it_goes_on_with_equal_numbers(tmp_path: Path, left: int, when: str) -> None:
    program = textwrap.dedent(PROGRAM).format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(left), when]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "study.json").exists()
    found = run(tmp_path / "killed")
    assert not list((tmp_path / "killed" / "cells").glob(".*")), "half-written files are cleared away"

    def strip(found: dict[str, Any]) -> list[dict[str, Any]]:
        return [{k: v for k, v in one.items() if k not in ("seconds", "key")} for one in found["cells"]]

    assert strip(found) == strip(run(tmp_path / "whole"))
    assert same(found)[1:] == same(run(tmp_path / "whole"))[1:]
