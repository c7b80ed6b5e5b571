"""What packs cost: predictions, the packing that is chosen by them, a training that goes on with its own constants."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optative.core.events import Silent
from optative.core.files import read_jsonl
from optative.generators.language.cost import Cost, measure
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group, plan
from optative.generators.language.trained import prepare_training, trained_parameters
from optative.generators.options import LoraOptions
from optative.runs.align import align
from test_align import CHILD, mixed_file, options
from tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cost") / "model"
    save_tiny_model(folder)
    return folder


@given(st.lists(st.integers(2, 90), min_size=1, max_size=25), st.floats(0, 50), st.floats(0, 0.1))
def test_no_measured_size_packs_cheaper(lengths, fixed, slower):
    sizes = (64, 128, 256)
    cost = Cost(sizes, tuple(fixed + n + slower * max(0, n - 100) ** 2 for n in sizes))
    groups = [Group((0,), ((0,) * (n - 1),)) for n in lengths]
    taken = sum(cost.predict(pack.num_tokens) for pack in cost.plan(groups))
    for size in sizes:
        assert taken <= sum(cost.predict(pack.num_tokens) for pack in plan(groups, size)) + 1e-9


def test_fixed_costs_ask_for_large_packs_and_falling_speed_for_small_ones():
    groups = [Group((0,), ((0,) * 31,))] * 16
    assert len(Cost((64, 512), (10.0, 11.0)).plan(groups)) == 1
    assert len(Cost((64, 512), (1.0, 100.0)).plan(groups)) == 8


def test_measuring_changes_nothing_and_finds_what_a_pack_takes(tiny: Path) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    prepare_training(lm, LoraOptions(rank=2), 0)
    before = {name: p.detach().clone() for name, p in trained_parameters(lm).items()}
    drawn = torch.random.get_rng_state()
    cost = measure(lm, [Group((1, 2, 3), ((4,) * 20, (5,) * 20))] * 40)
    assert cost.tokens[0] >= 256
    assert list(cost.tokens) == sorted(set(cost.tokens))
    assert cost.tokens[-1] <= 40 * 43
    assert all(seconds > 0 for seconds in cost.seconds)
    assert torch.equal(drawn, torch.random.get_rng_state())
    for name, p in trained_parameters(lm).items():
        assert torch.equal(p, before[name])
        assert p.grad is None
    short = measure(lm, [Group((1,), ((2, 3),))] * 3)
    assert short.tokens == (9,)


def test_a_training_keeps_what_it_measured(tiny: Path, tmp_path: Path) -> None:
    steps = {"learning_rate": 0.01, "units_per_step": 6, "epochs": 3, "checkpoint_every": 2}
    found = {}
    for budget in (768, "auto"):
        asked = options(mixed_file(tmp_path), tiny, optimizer={"dpo": {**steps, "token_budget": budget}})
        out = tmp_path / str(budget)
        if budget == "auto":
            command = [sys.executable, "-c", CHILD, asked.model_dump_json(), str(out)]
            threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            killed = subprocess.run(command, capture_output=True, text=True, env=threads)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            (kept,) = (p for p in (out / "stages").glob("pack-cost-*.json") if not p.name.endswith(".time.json"))
            measured = kept.read_bytes()
        found[budget] = list(read_jsonl(align(asked, out=out, events=Silent()).folder / "metrics.jsonl"))
    assert kept.read_bytes() == measured
    assert json.loads(measured)["tokens"]
    for line, other in zip(*found.values(), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
