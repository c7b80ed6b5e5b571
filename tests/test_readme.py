"""The README's examples are run as they stand, in a fresh folder; only sizes and the person's own model are put in."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optative.runs.spec import load_spec
from test_align import pairs_file
from test_run import KINDS
from tiny_models import save_tiny_model

README = Path(__file__).parents[1] / "README.md"
SMALLER = {  # the Python example is the main job in full; these make it small
    '"train": 180, "held_out": 250': f'"train": 16, "held_out": 24, "unseen_kinds": 24, "kinds": {KINDS}',
    '"samples_per_prompt": 7': '"samples_per_prompt": 6, "max_new_tokens": 16',
    '"unfinished": "leave_out"': '"unfinished": "keep"',  # as --quick does: so short a limit cuts every answer
    '"smollm2-135m-instruct"': "MODEL",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("optative ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that the README speaks of."""
    home = tmp_path_factory.mktemp("home")
    save_tiny_model(home / "path" / "to" / "your" / "model", max_position_embeddings=2048)
    pairs_file(home)
    return home


def test_make_and_every_verb_that_is_shown_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert len(commands()) >= 7


@pytest.mark.parametrize("command", [c for c in commands() if "--quick" not in c])
def test_commands(command: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if command.startswith("optative align"):
        assert (folder / done.stdout.splitlines()[-1] / "report.html").exists()


def test_the_table_of_results_is_the_recorded_one() -> None:
    benchmarks = README.parent / "benchmarks"
    program = importlib.util.spec_from_file_location("seeds", benchmarks / "long" / "seeds.py")
    assert program
    assert program.loader
    seeds = importlib.util.module_from_spec(program)
    program.loader.exec_module(seeds)
    for record in (benchmarks / "results").glob("[df]*.json"):  # demo, full
        assert seeds.table(json.loads(record.read_text())) in README.read_text("utf-8"), record.name


@pytest.mark.model
def test_the_quick_run_on_the_real_model(folder: Path, default_model_folder: Path) -> None:
    (command,) = [c for c in commands() if "--quick" in c]
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = folder / done.stdout.splitlines()[-1]
    metrics = json.loads((run / "evaluation.json").read_text())["metrics"]
    assert any(m["name"] == "prompt_accuracy" and m["n"] == 50 for m in metrics)
    assert (run / "model" / "model.safetensors").exists()


def test_the_python_example_is_the_main_job() -> None:
    (code,) = blocks("python")
    (given,) = re.findall(r"optative\.run\(\n(.*?)\n\)\n", code, re.DOTALL)
    own, _ = load_spec(ast.literal_eval(given.strip()))
    assert own.model_dump(exclude={"name"}) == load_spec()[0].model_dump(exclude={"name"})


def test_the_python_example(folder: Path) -> None:
    (code,) = blocks("python")
    for full, small in SMALLER.items():
        assert full in code
        code = code.replace(full, small.replace("MODEL", repr(str(folder / "path" / "to" / "your" / "model"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "prompt_accuracy" in done.stdout
