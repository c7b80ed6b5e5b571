"""`optative explain`: every name of every table is explained, at once, and the page of losses is up to date."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from optative.cli.explain import details, losses_table, tables
from optative.cli.main import main
from optative.optimizers.options import LOSSES, VARIANTS

ROOT = Path(__file__).resolve().parents[1]
NAMES = [(part, name) for part, table in tables().items() for name in table]


@pytest.mark.parametrize(("part", "name"), NAMES)
def test_every_name_is_explained_with_all_its_options(part, name, capsys):
    assert main(["explain", f"{part}.{name}"]) == 0
    words = capsys.readouterr().out
    assert main(["explain", f"{part}.{name}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == f"{part}.{name}"
    assert found["about"]
    config = tables()[part][name][0]
    assert {option["name"].partition(".")[0] for option in found["options"]} == set(config.model_fields)
    for option in found["options"]:
        assert option["description"], option
        assert option["name"] in words
        assert option["description"] in words
    if part == "optimizer":
        loss = LOSSES[name]
        for text in (loss.formula, loss.needs, loss.when, loss.source):
            assert text
            assert text in words


def test_defaults_limits_and_the_losses_own_options_come_first(capsys):
    assert main(["explain", "optimizer.simpo"]) == 0
    words = capsys.readouterr().out
    assert "(default 2.0; above 0)" in words
    assert "(default cosine; constant | linear | cosine)" in words
    assert words.index("  gamma") < words.index("Common options:") < words.index("  learning_rate")
    options = details("optimizer", "simpo")["options"]
    assert next(o for o in options if o["name"] == "gamma") == {
        "name": "gamma",
        "required": False,
        "default": 1.0,
        "allowed": "at least 0",
        "description": "Reward difference to exceed. Paper: 0.25 to 0.75 of beta.",
        "common": False,
    }
    assert next(o for o in details("optimizer", "mixture")["options"] if o["name"] == "terms")["required"]
    assert "lora.rank" in [o["name"] for o in details("generator", "language_model")["options"]]


def test_a_loss_needs_what_its_table_says():
    needs = {name: details("optimizer", name)["needs"] for name in LOSSES}
    assert needs["simpo"] == "pairs"
    assert needs["dpo"] == "pairs, a reference"
    assert needs["aot"] == "pairs, a reference, steps of at least 2 units"
    assert needs["kto"] == "answers marked good or bad, a reference, steps of at least 2 units"
    assert needs["davidson"] == "pairs, also tied ones, a reference"
    assert needs["sft"] == "good answers"
    assert needs["plackett_luce"] == "ranked lists, a reference"


def test_without_a_name_all_are_listed_and_a_part_lists_its_own(capsys):
    assert main(["explain", "--json"]) == 0
    listed = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert set(listed) == {f"{part}.{name}" for part, name in NAMES} | {f"optimizer.{name}" for name in VARIANTS}
    assert main(["explain", "feedback"]) == 0
    assert capsys.readouterr().out.startswith("feedback.on_policy  ")


def test_a_bare_name_and_a_variant_are_found(capsys):
    assert main(["explain", "dpo"]) == 0
    assert capsys.readouterr().out.startswith("optimizer.dpo: ")
    assert main(["explain", "mpo"]) == 0
    assert "with terms: [{dpo: {weight: 0.8}}, {bco_pair: {weight: 0.2}}], nll_weight: 1.0" in capsys.readouterr().out
    assert main(["explain", "optimizer.rpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is"] == "optimizer.dpo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.simpoo"], "unknown optimizer 'simpoo'; the nearest is 'simpo'"),
        (["dpoo"], "the nearest is 'dpo'"),
        (["optimiser.dpo"], "the nearest is 'optimizer.dpo'"),
        (["optimizr"], "the nearest is 'optimizer'"),
        (["optimizer.dpo", "--markdown"], "takes neither a name"),
        (["--markdown", "--json"], "takes neither a name"),
    ],
)
def test_wrong_names_are_told_the_nearest(arguments, message, capsys):
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_of_losses_is_up_to_date():
    page = (ROOT / "docs" / "losses.md").read_text("utf-8")
    assert page == losses_table(), "out of date: run `optative explain --markdown > docs/losses.md`"
    for name in [*LOSSES, *VARIANTS]:
        assert f"\n| `{name}` |" in page


@pytest.mark.parametrize("arguments", [["explain"], ["explain", "optimizer.dpo"]])
def test_it_answers_at_once_and_imports_nothing_heavy(arguments):
    program = (
        "import sys; from optative.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "heavy = ('torch', 'transformers', 'peft', 'matplotlib', 'pyarrow', 'scipy', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules], code, file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr.splitlines()[-1] == "[] 0", done.stderr
    assert min(seconds) < 0.5
