"""Two local processes give what one gives: copies and shards, adapters and all weights, kill and resume.

This file is also the program of the processes: `python test_distributed.py FOLDER [DIE_AT]`. A first pair of them is
killed in one case; a second pair walks all cases and resumes that one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from optative.core.errors import InputError
from optative.core.folder import RunFolder
from optative.generators.language.adapters import add_lora, lora_parameters, save_weights
from optative.generators.language.attention import backbone_of, base_of
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group, plan
from optative.generators.language.score import score_pack
from optative.generators.options import LoraOptions
from optative.training.batches import step_plan
from optative.training.distribution import World, clip_gradients, sharded, sum_gradients, world
from optative.training.engine import MicroResult, train
from optative.training.options import StepOptions
from tiny_models import save_tiny_model

UNITS, EPOCHS = 17, 4  # 17 units in steps of 4: the last step of an epoch has one unit, and one rank has none
CASES = [(shard, full) for shard in (False, True) for full in (False, True)]


def groups() -> list[Group]:
    draw = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return tuple(torch.randint(0, 250, (length,), generator=draw).tolist())

    return [Group(ids(3, 12), (ids(2, 9), ids(2, 9))) for _ in range(UNITS)]


def pair_logps(lm: Any, pack: Any) -> torch.Tensor:
    scores = score_pack(lm, pack)
    assert scores.logps is not None
    sums = [scores.logps[a:b].sum() for a, b in zip(scores.offsets, scores.offsets[1:])]
    return torch.stack(sums).reshape(-1, 2)


def run(
    folder: Path, *, shard: bool, full: bool, coupled: bool = False, die_at: int = 0, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Train the tiny model on pairs; the lines of metrics and the weights."""
    lm = load_language_model(str(folder.parent / "tiny"), dtype="float32", device="cpu")
    if not full:
        add_lora(lm, LoraOptions(rank=4), seed=0)
    own, backbone = groups(), backbone_of(base_of(lm))
    settings: dict[str, Any] = {
        "learning_rate": 3e-4 if full else 3e-3,
        "units_per_step": 4,
        "epochs": EPOCHS,
        "checkpoint_every": 3,
        "shard": shard and world().size > 1,
    }

    def micro_batches(units: Sequence[int]) -> list[Any]:
        packs = plan([own[i] for i in units], 60)
        micros = [(pack, [units[i] for i in pack.group_indices], None) for pack in packs]
        if not coupled:
            return micros
        with torch.no_grad():
            spares = max(world().every(len(micros))) - len(micros)
            firsts = [pair_logps(lm, pack) for pack, *_ in micros + micros[:1] * spares][: len(micros)]
        logps = torch.cat(firsts) if firsts else torch.zeros(0, 2)
        indices = [unit for _, mine, _ in micros for unit in mine]
        of_unit = {unit: row for part in world().every(dict(zip(indices, logps))) for unit, row in part.items()}
        order = sorted(of_unit)
        values = torch.stack([of_unit[unit] for unit in order]).requires_grad_()
        (slopes,) = torch.autograd.grad(sorted_loss(values), values)
        shares = slopes[[order.index(unit) for unit in indices]].split([len(mine) for _, mine, _ in micros])
        return [(pack, mine, share) for (pack, mine, _), share in zip(micros, shares)]

    def loss(micro: Any, num_units: int) -> MicroResult:
        pack, mine, slopes = micro
        logps = pair_logps(lm, pack)
        if slopes is None:
            values = -torch.nn.functional.logsigmoid(0.5 * (logps[:, 0] - logps[:, 1]) / 10)
        else:
            values = (slopes * logps).sum(1) * num_units
        margins = float((logps[:, 0] - logps[:, 1]).detach().sum())
        sums = {"margin": (margins, float(len(mine))), "num_tokens": (float(pack.num_tokens), 0.0)}
        return MicroResult(values.sum() / num_units, sums)

    def on_step(step: int, total: int, line: dict[str, Any]) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with sharded(backbone, list(backbone.layers)) if settings["shard"] else nullcontext():
        named = dict(lm.model.named_parameters()) if full else lora_parameters(lm)
        if full:
            for parameter in named.values():
                parameter.requires_grad_(True)
        train(
            named,
            step_plan(UNITS, 4, EPOCHS, seed=5),
            micro_batches,
            loss,
            options=StepOptions(**{**settings, **options}),
            key="k",
            journal_path=folder / "metrics.jsonl",
            journal_start=0,
            checkpoints=folder / "checkpoints",
            on_step=on_step,
            cost=lambda unit: float(own[unit].num_tokens),
        )
    world().wait()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = dict(lm.model.named_parameters()) if full else lora_parameters(lm)
    if not full and world().is_main:  # whole weights again, and rank 0 needs nobody to use them
        save_weights(lm, folder / "adapter.safetensors")
        with torch.no_grad():
            lm.model(torch.tensor([[1, 2, 3]]))
    return lines, {name: parameter.detach().clone() for name, parameter in weights.items()}


def sorted_loss(logps_B2: torch.Tensor) -> torch.Tensor:
    """A loss that couples all units of a step: sorted margins against a fixed ramp."""
    margins = (logps_B2[:, 0] - logps_B2[:, 1]).sort().values / 10
    return ((margins - torch.linspace(0, 2, len(margins))) ** 2).mean()


def name_of(shard: bool, full: bool) -> str:
    return f"{'shards' if shard else 'copies'}-{'full' if full else 'lora'}"


def launch(folder: Path, *arguments: str, size: int = 2) -> list[int]:
    """Start the processes as torchrun would, and end those that wait for a dead one; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outside = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), *arguments],
            env={**os.environ, **outside, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    codes, said = [], []
    for process in processes:
        said.append(process.communicate(timeout=240)[1])
        codes.append(process.returncode)
        if process.returncode:
            for other in processes:
                other.kill()
    if not arguments:
        assert codes == [0] * size, "\n".join(said)
    return codes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny_model(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def two(place: Path) -> dict[str, Any]:
    """What two processes found in all cases, after two others were killed in the first of them."""
    assert launch(place, "13")[0] == -signal.SIGKILL
    assert [path.name for path in (place / "cut" / "checkpoints").iterdir()] == ["step-12"]
    launch(place)
    return torch.load(place / "found.pt", weights_only=False)


@pytest.fixture(scope="module")
def one(place: Path) -> dict[str, Any]:
    """The same with one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for full in (False, True):
        found[name_of(False, full)] = run(place / f"one-{full}", shard=False, full=full)
    found["coupled"] = run(place / "one-coupled", shard=False, full=False, coupled=True)
    torch.set_num_threads(threads)
    return found


def assert_same_training(found: Any, right: Any) -> None:
    (lines, weights), (other_lines, other_weights) = found, right
    assert len(lines) == len(other_lines) == 20
    for line, other in zip(lines, other_lines):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert line["margin"] == pytest.approx(other["margin"], abs=1e-3)
        assert (line["step"], line["num_tokens"]) == (other["step"], other["num_tokens"])
    losses = [line["loss"] for line in lines]
    assert max(losses) - min(losses) > 0.01, "nothing was learnt, so nothing was compared"
    for name, weight in weights.items():
        torch.testing.assert_close(weight, other_weights[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("shard", "full"), CASES)
def test_two_processes_have_the_losses_of_one(one: Any, two: Any, shard: bool, full: bool) -> None:
    assert_same_training(two[name_of(shard, full)], one[name_of(False, full)])


@pytest.mark.parametrize("shard", [False, True])
def test_a_loss_that_couples_the_step_is_the_same(one: Any, two: Any, shard: bool) -> None:
    assert_same_training(two[f"coupled-{shard}"], one["coupled"])


def test_a_killed_rank_resumes_to_the_same_bits(two: Any) -> None:
    lines, weights = two["resumed"]
    whole_lines, whole_weights = two[name_of(True, True)]
    assert lines == whole_lines
    assert all(torch.equal(weights[name], whole_weights[name]) for name in whole_weights)


def test_one_process_reads_the_checkpoint_of_two(place: Path, one: Any, two: Any) -> None:
    """Tensors are stored whole: shards of two go on in one, within rounding."""
    shutil.copytree(place / name_of(True, True), place / "moved", dirs_exist_ok=True)
    assert_same_training(run(place / "moved", shard=False, full=True), one[name_of(False, True)])


def test_helpers_in_two_processes(two: Any) -> None:
    found = two["helpers"]
    assert found["gathered"] == [{3: 30.0, 1: 10.0}, {2: 20.0, 1: 10.0}]
    assert found["norm"] == pytest.approx(5.0)
    assert found["clipped"] == pytest.approx([0.6, 0.8, 0.0], rel=1e-5)
    assert found["seeds_differ"]
    assert "different checkpoints" in found["state"]
    assert "different weights" in found["weights"]


def test_one_rank_holds_the_run_folder_and_the_others_copy_what_it_found(place: Path, two: Any) -> None:
    shared, copied = two["helpers"]["folders"]
    assert shared == {"resumed": True, "own": True, "cached": "seen", "metrics": "one line"}
    assert copied == {"resumed": True, "own": False, "cached": "seen", "metrics": "one line"}
    left = sorted(path.name for path in (place / "run").iterdir())
    assert left == [".lock", "metrics.jsonl", "resolved.json", "spec.yaml", "stages"]
    assert sorted(path.name for path in (place / "run" / "stages").iterdir()) == ["cached.json", "of-0"]


def test_units_are_shared_out_once_and_evenly() -> None:
    for costs in (None, [7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0, 1.0, 1.0]):
        shares = [World(rank, 3).share(11, costs) for rank in range(3)]
        assert sorted(unit for share in shares for unit in share) == list(range(11))
        if costs:
            loads = [sum(costs[unit] for unit in share) for share in shares]
            assert max(loads) - min(loads) <= 1
    assert World().share(3, [1.0, 5.0, 2.0]) == [0, 1, 2]


def test_one_process_is_the_case_of_size_one() -> None:
    here = world()
    assert (here.rank, here.size, here.is_main) == (0, 1, True)
    assert (here.every(3), here.first(3)) == ([3], 3)
    with pytest.raises(InputError, match="shard: cannot act: there is one process"), sharded(torch.nn.Linear(1, 1), []):
        pass


def run_folder(path: Path) -> dict[str, Any]:
    """Both ranks at one run folder that has seen an earlier attempt."""
    here = world()
    if here.is_main:
        with RunFolder(path).claim({"a": 1}, "a: 1"):
            (path / "stages").mkdir()
            (path / "stages" / "cached.json").write_text("seen")
            (path / "metrics.jsonl").write_text("one line")
    here.wait()
    folder = RunFolder(path)
    with folder.claim({"a": 1}, "a: 1", peers=here) as resumed:
        (folder.stages / f"of-{here.rank}").touch()
        here.wait()
        return {
            "resumed": resumed,
            "own": folder.path == path,
            "cached": (folder.stages / "cached.json").read_text(),
            "metrics": folder.metrics.read_text(),
        }


def helpers(folder: Path) -> dict[str, Any]:
    """The helpers, called by both ranks."""
    from optative.training.distribution import check_same
    from optative.training.engine import _dropout_keyed

    here = world()
    mine = {3: 30.0, 1: 10.0} if here.is_main else {2: 20.0, 1: 10.0}
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    weights[0].grad = torch.tensor([1.0]) if here.is_main else torch.tensor([2.0])
    if not here.is_main:
        weights[1].grad = torch.tensor([4.0])  # rank 0 did not use it
    weights[2].grad = torch.tensor([0.0])
    sum_gradients(weights)
    norm = clip_gradients(weights, 1.0)
    assert weights[3].grad is None, "used by nobody"
    with _dropout_keyed("k", 3, here.rank, {"w": weights[0]}):
        drawn = torch.rand(4).tolist()
    errors = {}
    for name, parameters, state in (
        ("state", {}, {"local_step": here.rank}),
        ("weights", {"w": torch.tensor([float(here.rank)])}, None),
    ):
        try:
            check_same(parameters, state)
        except Exception as error:
            errors[name] = str(error)
    everyone = here.every(drawn)
    return {
        "gathered": here.every(mine),
        "norm": norm,
        "clipped": [float(w.grad) for w in weights[:3] if w.grad is not None],
        "seeds_differ": everyone[0] != everyone[1],
        "folders": here.every(run_folder(folder / "run")),
        **errors,
    }


def main(folder: Path, die_at: int) -> None:
    torch.set_num_threads(1)
    resumed = run(folder / "cut", shard=True, full=True, die_at=die_at)
    found: dict[str, Any] = {"resumed": resumed, "helpers": helpers(folder)}
    for shard, full in CASES:
        found[name_of(shard, full)] = run(folder / name_of(shard, full), shard=shard, full=full)
    for shard in (False, True):
        found[f"coupled-{shard}"] = run(folder / f"coupled-{shard}", shard=shard, full=False, coupled=True)
    if world().is_main:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
