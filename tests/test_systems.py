"""The ledger of systems: the catalogue is whole, and a verdict follows from recorded results alone."""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from optative.cli.main import main
from optative.cli.systems import findings_table
from optative.core.errors import InputError
from optative.systems import catalogue
from optative.systems.catalogue import CATALOGUE, find
from optative.systems.record import (
    RESULTS,
    Bound,
    Criterion,
    Entry,
    Results,
    Spread,
    StudyOptions,
    System,
    command,
    read_results,
    with_settings,
)
from optative.systems.status import VERDICTS, judge, standing


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_contract(entry: Entry) -> None:
    """What every system must hold to, implemented or not."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.name)
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", entry.citation)
    assert entry.title == entry.title.strip() != ""
    assert entry.claim.endswith(".")
    assert 40 <= len(entry.claim) <= 170, "one sentence"
    assert not re.search(r"[.!?] [A-Z]", entry.claim), "one sentence"
    results = read_results(entry)
    if entry.module is None:
        assert not results, "results without a module"
        return
    module = import_module(entry.module)
    assert module.__doc__
    assert isinstance(module.SYSTEM, System)
    assert module.SYSTEM.differs
    assert issubclass(module.Study, StudyOptions)
    assert isinstance(module.FULL, module.Study)
    assert module.Study() != module.FULL, "quick and full are the same study"
    assert len(module.FULL.seeds) >= max(criterion.seeds for criterion in module.SYSTEM.criteria)
    assert command(entry.number, module.Study(), module.FULL) == f"optative systems run {entry.number}"
    assert command(entry.number, module.FULL, module.FULL) == f"optative systems run {entry.number} --full"
    assert list(inspect.signature(module.run).parameters) == ["study", "folder"]


def test_the_catalogue_is_whole() -> None:
    assert [entry.number for entry in CATALOGUE] == list(range(1, 78))
    for field in ("name", "title", "citation", "claim"):
        assert len({getattr(entry, field) for entry in CATALOGUE}) == 77, f"a {field} occurs twice"
    known = {f"{entry.number:02d}-" for entry in CATALOGUE}
    assert all(path.name[:3] in known for path in RESULTS.glob("*.json"))


def test_names_and_titles_are_those_of_the_cards(shared: Path) -> None:
    cards = sorted((shared / "systems").glob("*.md"))
    assert [f"{entry.number:02d}-{entry.name}" for entry in CATALOGUE] == [card.stem for card in cards]
    for entry, card in zip(CATALOGUE, cards, strict=True):
        text = card.read_text("utf-8")
        assert text.splitlines()[0] == f"# {entry.number:02d}. {entry.title}"
        assert entry.citation.removeprefix("arXiv:") in text


def test_find() -> None:
    for key in ("26", "026", "constrained-rlhf", "26-constrained-rlhf"):
        assert find(key).number == 26
    with pytest.raises(InputError, match="the nearest is 'constrained-rlhf'"):
        find("constraint-rlhf")
    for key in ("0", "78", "", "-1", "2.6"):
        with pytest.raises(InputError, match="from 1 to 77"):
            find(key)


# A made-up system: two criteria, three seeds each.

SOURCE = '''
"""A made-up system."""
from pathlib import Path
from optative.core.config import Field
from optative.systems.record import Criterion, StudyOptions, System, command

SYSTEM = System(
    criteria=(
        Criterion(metric="gold", arm="ours", baseline="plain", smallest_effect=0.1, direction="higher", seeds=3),
        Criterion(metric="error", arm="ours", baseline="plain", smallest_effect=0.02, direction="lower", seeds=2),
    ),
    differs="It is made up.",
    explanation="The effect is not there.",
)

class Study(StudyOptions):
    steps: int = Field(3, ge=1, description="Steps.")
    word: str = Field("no", description="A word.")
    pairs: Path | None = Field(None, description="A file of the user's own.")

FULL = Study(steps=9, seeds=(0, 1, 2))

def run(study, folder):
    from optative.runs.study import Arm, Measured, Metric
    from optative.runs.study import study as run_study

    def cell(options, seed):
        return Measured({"gold": 0.7 + options["more"] * (1 + 0.1 * seed), "error": 0.2 - options["more"] / 2})

    return run_study(
        folder,
        name="made-up",
        title="A made-up study",
        command=command(7, study, FULL),
        version=1,
        arms={"plain": Arm(options={"more": 0.0}), "ours": Arm(options={"more": study.steps / 45}, baseline="plain")},
        seeds=study.seeds,
        metrics={"gold": Metric("independent"), "error": Metric("independent")},
        cell=cell,
        criteria=SYSTEM.hash,
    )
'''
GOOD: dict[str, dict[str, list[float]]] = {
    "gold": {"ours": [0.9, 0.8, 0.85], "plain": [0.7, 0.7, 0.7]},
    "error": {"ours": [0.10, 0.12, 0.11], "plain": [0.20, 0.20, 0.20]},
}


class MadeUp:
    def __init__(self, folder: Path, source: str = SOURCE) -> None:
        self.folder = folder / "results"
        self.folder.mkdir()
        (folder / "made_up_system.py").write_text(source, "utf-8")
        sys.modules.pop("made_up_system", None)
        self.entry = Entry(7, "made-up", "A Made-up System", "arXiv:0000.00000", "It works.", "made_up_system")

    def write(self, values: dict[str, dict[str, list[float]]], *, scale: str = "small", **changed: Any) -> Path:
        rows = [
            {"seed": seed, "arm": arm, "metric": metric, "value": value}
            for metric, arms in values.items()
            for arm, numbers in arms.items()
            for seed, value in enumerate(numbers)
        ]
        record: dict[str, Any] = {
            "system": 7,
            "criteria": import_module("made_up_system").SYSTEM.hash,
            "scale": scale,
            "command": "optative systems run 7",
            "hardware": {"cores": 2},
            "versions": {"python": "3.11"},
            "results": rows,
        }
        path = self.folder / f"07-made-up{'-large' if scale == 'large' else ''}.json"
        path.write_text(json.dumps(record | changed), "utf-8")
        return path

    def verdict(self) -> str:
        return standing(self.entry, self.folder).verdict


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    monkeypatch.syspath_prepend(str(tmp_path))
    return MadeUp(tmp_path)


def test_missing_is_decided_without_results(made_up: MadeUp) -> None:
    made_up.write(GOOD)
    entry = Entry(7, "made-up", "t", "c", "It works.", None)
    assert standing(entry, made_up.folder).verdict == "missing"


def test_a_module_without_results_runs(made_up: MadeUp) -> None:
    assert made_up.verdict() == "runs"


def test_reproduced(made_up: MadeUp) -> None:
    made_up.write(GOOD)
    state = standing(made_up.entry, made_up.folder)
    assert state.verdict == "reproduced"
    gold, error = state.findings
    assert gold.effects == pytest.approx({0: 0.2, 1: 0.1, 2: 0.15})
    assert error.effects == pytest.approx({0: 0.1, 1: 0.08, 2: 0.09}), "lower is better: the effect is positive"


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        ([0.75, 0.75, 0.75], "the mean effect is too small"),
        ([1.2, 1.2, 0.69], "one seed contradicts the sign"),
        ([0.5, 0.5, 0.5], "the other direction"),
    ],
)
def test_negative(made_up: MadeUp, ours: list[float], why: str) -> None:
    made_up.write(GOOD | {"gold": {"ours": ours, "plain": [0.7, 0.7, 0.7]}})
    assert made_up.verdict() == "negative", why


def test_what_is_reached_but_for_rounding_is_reached(made_up: MadeUp) -> None:
    assert 0.9 - 0.8 < 0.1
    made_up.write(GOOD | {"gold": {"ours": [0.9, 0.9, 0.9], "plain": [0.8, 0.8, 0.8]}})
    assert made_up.verdict() == "reproduced"


def test_the_direction_counts(made_up: MadeUp) -> None:
    error = GOOD["error"]
    made_up.write(GOOD | {"error": {"ours": error["plain"], "plain": error["ours"]}})
    assert made_up.verdict() == "negative"


def test_too_few_seeds_decide_nothing(made_up: MadeUp) -> None:
    gold = {"ours": [0.9, 0.8, 0.85], "plain": [0.7, 0.7]}  # three and two: two pairs
    made_up.write(GOOD | {"gold": gold})
    state = standing(made_up.entry, made_up.folder)
    assert state.verdict == "runs"
    assert [finding.met for finding in state.findings] == [None, True]
    made_up.write({"gold": GOOD["gold"]})
    assert made_up.verdict() == "runs", "a criterion without a result is open, not met"


@pytest.mark.parametrize(
    ("criterion", "good", "bad"),
    [
        (Bound(metric="m", arm="a", direction="at_least", limit=0.9, seeds=3), [0.9, 0.95, 1.0], [0.89, 1.0, 1.0]),
        (Bound(metric="m", arm="a", direction="at_most", limit=0.9, seeds=3), [0.9, 0.5, 0.1], [0.91, 0.1, 0.1]),
        (Spread(metric="m", arms=("b", "a"), at_most=0.25, seeds=3), [0.75, 0.5, 0.25], [0.24, 0.5, 0.5]),
        (Bound(metric="m", arm="a", direction="at_least", limit=0.9, seeds=3), [1 - 1e-16 - 0.1] * 3, [0.9 - 1e-9] * 3),
        (Bound(metric="m", arm="a", direction="at_most", limit=0.0, seeds=3), [0.0] * 3, [1e-14, 0.0, 0.0]),
        (Spread(metric="m", arms=("b", "a"), at_most=0.3, seeds=3), [0.8, 0.2, 0.8], [0.8 + 1e-9, 0.5, 0.5]),
    ],
)
def test_bounds_and_spreads_hold_in_every_seed(criterion: Any, good: list[float], bad: list[float]) -> None:
    def found(a: list[float], b: list[float]) -> Any:
        values = {("m", "a"): dict(enumerate(a)), ("m", "b"): dict(enumerate(b))}
        return judge(criterion, Results("f", "", "small", "", {}, {}, values))

    level = [0.5, 0.5, 0.5]
    assert found(good, level).met is True
    assert found(bad, level).met is False, "one seed breaks it, whatever the mean"
    assert found(good[:2], level).met is None, "too few seeds decide nothing"
    assert found([], level).effects == {}
    assert found([], level).met is None


def test_changed_criteria_make_results_stale(made_up: MadeUp, tmp_path: Path) -> None:
    made_up.write(GOOD)
    before = import_module("made_up_system").SYSTEM.hash
    (tmp_path / "made_up_system.py").write_text(
        SOURCE.replace("smallest_effect=0.1,", "smallest_effect=0.101,"), "utf-8"
    )
    sys.modules.pop("made_up_system")
    state = standing(made_up.entry, made_up.folder)
    assert state.system is not None
    assert state.system.hash != before
    assert (state.verdict, state.findings, len(state.stale)) == ("runs", (), 1)


def test_scaled_needs_both_scales(made_up: MadeUp) -> None:
    made_up.write(GOOD, scale="large")
    assert made_up.verdict() == "runs", "large results alone do not reproduce"
    made_up.write(GOOD)
    assert made_up.verdict() == "scaled"
    made_up.write(GOOD | {"gold": {"ours": [0.7] * 3, "plain": [0.7] * 3}}, scale="large")
    assert made_up.verdict() == "reproduced"
    made_up.write(GOOD | {"gold": {"ours": [0.7] * 3, "plain": [0.7] * 3}})
    made_up.write(GOOD, scale="large")
    assert made_up.verdict() == "negative"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"system": 8}, "another system"),
        ({"scale": "huge"}, "small or large"),
        ({"typed": "reproduced"}, "not a results file"),
        ({"results": [{"seed": 0, "arm": "a", "metric": "m", "value": math.nan}]}, "not a number"),
        ({"results": [{"seed": 0, "arm": "a", "metric": "m", "value": 1.0}] * 2}, "the same seed twice"),
    ],
)
def test_a_faulty_results_file_is_an_error(made_up: MadeUp, changed: dict[str, Any], words: str) -> None:
    made_up.write(GOOD, **changed)
    with pytest.raises(InputError, match=words):
        made_up.verdict()


def test_a_criterion_that_cannot_fail_is_refused() -> None:
    fields: dict[str, Any] = {
        "metric": "m",
        "arm": "a",
        "baseline": "b",
        "smallest_effect": 0.1,
        "direction": "higher",
        "seeds": 3,
    }
    Criterion(**fields)
    for wrong in ({"smallest_effect": 0.0}, {"direction": "up"}, {"seeds": 0}):
        with pytest.raises(AssertionError):
            Criterion(**fields | wrong)
    with pytest.raises(AssertionError):
        System(criteria=(), differs="")


# The command line


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 5},
        {"word": "yes", "seeds": (3,)},
        {"word": "it's a word: 1"},
        {"word": ""},
        {"word": "[1"},
        {"pairs": Path("a b.gz")},
        {"steps": 9, "seeds": (4, 5), "pairs": Path("p")},
    ],
)
def test_a_command_says_all_options(made_up: MadeUp, changed: dict[str, Any]) -> None:
    module = import_module("made_up_system")
    for form in (module.Study(), module.FULL):
        study = form.model_copy(update=changed)
        words = shlex.split(command(7, study, module.FULL))
        assert words[:4] == ["optative", "systems", "run", "7"]
        start = module.FULL if "--full" in words else module.Study()
        settings = [after for word, after in pairwise(words) if word == "--set"]
        settings += [f"seeds=[{after}]" for word, after in pairwise(words) if word == "--seeds"]
        assert with_settings(start, settings) == study


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 77
    assert all(list(row) == ["number", "name", "title", "status", "claim"] for row in rows)
    assert all(row["status"] in VERDICTS for row in rows)
    assert main(["systems", "list", "--json", "--status", "missing"]) == 0
    missing = json.loads(capsys.readouterr().out)
    assert missing == [row for row in rows if row["status"] == "missing"]
    assert main(["systems", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 78
    assert lines[-1].startswith("77 systems: ")
    assert main(["systems", "list", "--status", "reprodced"]) == 2
    assert "the nearest is 'reproduced'" in capsys.readouterr().err


def test_the_pages_of_findings_show_what_is_recorded() -> None:
    shown, counted = set(), set()
    for page in (Path(__file__).resolve().parents[1] / "docs" / "findings").glob("*.md"):
        for number, table in re.findall(r"<!-- (\d+) -->\n(.*?)<!-- /\1 -->", page.read_text(), re.DOTALL):
            assert table == findings_table(standing(find(number))), f"optative systems show {number} --markdown"
            shown.add(int(number))
        for number, met, lines in re.findall(
            r"^\| \[(\d+)\]\(#.*?\) \| (\d+) of (\d+) \|", page.read_text(), re.MULTILINE
        ):
            found = standing(find(number)).findings
            assert (int(met), int(lines)) == (sum(one.met is True for one in found), len(found)), number
            counted.add(int(number))
    assert counted == shown
    assert shown == {entry.number for entry in CATALOGUE if standing(entry).current}


def test_show_and_run_a_missing_one(capsys: pytest.CaptureFixture[str]) -> None:
    entry = next(entry for entry in CATALOGUE if entry.module is None)
    assert main(["systems", "show", entry.name]) == 0
    out = capsys.readouterr().out
    assert entry.claim in out
    assert "nothing yet" in out
    assert main(["systems", "run", str(entry.number)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is not implemented yet" in err
    assert main(["systems", "show", "rlhf-constrained"]) == 2


def test_show_and_run_an_implemented_one(
    made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = (made_up.entry, *(entry for entry in CATALOGUE if entry.number != 7))
    monkeypatch.setattr(catalogue, "CATALOGUE", entries)
    monkeypatch.setattr("optative.cli.systems.CATALOGUE", entries)
    made_up.write(GOOD | {"gold": {"ours": [0.7, 0.8, 0.9], "plain": [0.7, 0.7, 0.7]}})
    monkeypatch.setattr("optative.cli.systems.standing", lambda entry: standing(entry, made_up.folder))

    assert main(["systems", "show", "made-up"]) == 0
    out = capsys.readouterr().out
    assert "Measured here (negative)" in out
    assert "ours higher than plain by 0.1 or more: not met, by seed +0, +0.1, +0.2" in out
    assert "How they differ: It is made up." in out
    assert "Best explanation: The effect is not there." in out
    assert main(["systems", "show", "7", "--json"]) == 0
    details = json.loads(capsys.readouterr().out)
    assert (details["status"], details["findings"][0]["met"], details["differs"]) == (
        "negative",
        False,
        "It is made up.",
    )

    assert main(["systems", "run", "7", "--out", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    folder = Path(out.splitlines()[-1])
    assert (folder / "report.html").exists()
    assert json.loads((folder / "study.json").read_text("utf-8"))["command"] == "optative systems run 7"
    assert "ours higher than plain by 0.1 or more: open, 1 of 3 seeds" in err, "a quick study decides nothing"
    assert main(["systems", "record", "7", str(folder)]) == 2
    assert "not the full study" in capsys.readouterr().err

    assert main(["systems", "run", "7", "--full", "--seeds", "0,1", "--out", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    study = json.loads((Path(found["folder"]) / "study.json").read_text("utf-8"))
    assert (study["seeds"], study["command"]) == ([0, 1], "optative systems run 7 --full --seeds 0,1")
    assert [finding["met"] for finding in found["findings"]] == [None, True]
    assert main(["systems", "run", "7", "--full", "--out", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert "by 0.1 or more: met" in err
    page = (Path(out.splitlines()[-1]) / "report.html").read_text("utf-8")
    assert "What was asked" in page
    assert "written down before the first full study, which they are for: 2 met." in page
    monkeypatch.setattr("optative.systems.record.keep.__defaults__", ("small", made_up.folder))
    assert main(["systems", "record", "7", out.splitlines()[-1]]) == 0
    assert made_up.verdict() == "reproduced", "what a study wrote is what the ledger reads"
    assert main(["systems", "show", "7", "--json"]) == 0
    gold = json.loads(capsys.readouterr().out.partition("\n")[2])["findings"][0]
    assert gold["effects"] == pytest.approx({"0": 0.2, "1": 0.22, "2": 0.24})
    assert gold["measured"] == pytest.approx({"ours": 0.92, "plain": 0.7})

    run = ["systems", "run", "7", "--out", str(tmp_path / "more")]
    assert main([*run, "--set", "steps=5", "--set", "pairs=my pairs.jsonl"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    asked = json.loads((folder / "study.json").read_text("utf-8"))["command"]
    assert asked == "optative systems run 7 --set steps=5 --set 'pairs=my pairs.jsonl'"
    for wrong, words in (
        (["step=5"], "the nearest is 'steps'"),
        (["steps=0"], "greater than or equal to 1"),
        (["steps"], "name=value"),
        (["steps=[1"], "not YAML"),
        (["steps=4", "steps=5"], "is set twice"),
        (["seeds=[0]", "--seeds", "1"], "is set twice"),
    ):
        flags = [part if part in ("--seeds", "1") else f"--set={part}" for part in wrong]
        assert main([*run, *flags]) == 2
        assert words in capsys.readouterr().err
    assert main(["systems", "run", "7", "--full", "--set", "pairs=p.gz", "--out", str(tmp_path / "files")]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert main(["systems", "record", "7", str(folder)]) == 0, "a file of one's own adds to the full study"
    kept = json.loads((made_up.folder / "07-made-up.json").read_text("utf-8"))
    assert kept["command"] == "optative systems run 7 --full --set pairs=p.gz"
    assert main(["systems", "run", "7", "--full", "--set", "word=x", "--out", str(tmp_path / "others")]) == 0
    assert main(["systems", "record", "7", capsys.readouterr().out.splitlines()[-1]]) == 2, "other options do not"

    assert main(["systems", "run", "7", "--seeds", "a,b"]) == 2
    assert "numbers such as 0,1,2" in capsys.readouterr().err
    assert main(["systems", "run", "8"]) == 2
    assert "Implemented: 7 made-up" in capsys.readouterr().err
