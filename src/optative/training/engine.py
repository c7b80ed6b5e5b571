"""The step engine: fixed steps of units, accumulated in micro-batches under one normaliser, with exact resume.

Knows: gradients, AdamW, clipping, schedules, journals, checkpoints, the best evaluation. Does not know: losses, models,
what a unit is. A step is redone whole after a crash. How its units are packed into micro-batches, and over which
processes they are spread, changes speed, never the sum. Under torchrun every rank calls `train`; rank 0 writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from optative.core.errors import InputError, OptativeError
from optative.core.files import Journal
from optative.core.memory import release
from optative.core.rng import seed_from
from optative.training.best import METRIC, Best
from optative.training.checkpoint import load_best, load_checkpoint, save_best, save_checkpoint
from optative.training.distribution import check_same, clip_gradients, even, sum_gradients, world
from optative.training.options import StepOptions
from optative.training.schedule import learning_rate

Micro = TypeVar("Micro")


@dataclass
class MicroResult:
    """What the loss of one micro-batch returns.

    loss: scalar, already divided by the number of units of the whole step.
    sums: name -> (sum, count), for means over the step; a count of 0 makes it a total.
    """

    loss: torch.Tensor
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)


def train(
    parameters: Mapping[str, torch.nn.Parameter],
    plan: Sequence[Sequence[int]],
    micro_batches: Callable[[Sequence[int]], Iterable[Micro]],
    loss: Callable[[Micro, int], MicroResult],
    *,
    options: StepOptions,
    key: str,
    journal_path: Path,
    journal_start: int,
    checkpoints: Path,
    labels: Mapping[str, Any] | None = None,
    first_step: int = 0,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
    cost: Callable[[int], float] | None = None,
    before_step: Callable[[int], None] | None = None,
) -> int:
    """Run all steps of the plan, from the newest checkpoint with this key if there is one; return the journal's end.

    parameters: what is trained, float32: an adapter, or all weights of a model. micro_batches: from units of one step,
    under torchrun those of this rank. loss: of a micro-batch and the number of units of the whole step, all ranks
    together. key: identity of this training (a checkpoint of another key is not used; dropout is keyed by it).
    journal_start: offset of the metrics journal when this training first began. first_step: global number of steps
    already made by earlier trainings. labels: constants copied into each line of metrics. evaluate: held-out metrics,
    named `eval_...`, measured every `evaluate_every` steps. on_step: called on rank 0. cost: of a unit, such as its
    tokens, to spread a step evenly over ranks. before_step: called on every rank with the place of the step in the
    plan, before its micro-batches are made. Raises InputError when an option cannot act.
    """
    for parameter in parameters.values():
        if parameter.dtype != torch.float32:
            raise OptativeError(f"trained parameters must be float32, found {parameter.dtype}")
    here, shards = world(), any(isinstance(parameter, DTensor) for parameter in parameters.values())
    evaluations = sum(_is_evaluated(index, len(plan), evaluate_every) for index in range(len(plan))) if evaluate else 0
    _check_options(options, evaluations, shards)
    optimizer = _adamw(parameters.values(), options)
    state = load_checkpoint(checkpoints, key, parameters, optimizer)
    check_same(parameters, state)
    done, offset = (state["local_step"], state["journal_offset"]) if state else (0, journal_start)
    best = Best(**state["best"]) if state and state["best"] else Best()
    number, stored_best = first_step + done, best.step  # stored_best: the one that the newest checkpoint knows of
    with Journal(journal_path, offset) if here.is_main else nullcontext() as journal:
        for index in range(done, len(plan)):
            started, number = time.perf_counter(), first_step + index + 1
            rate = learning_rate(
                index,
                len(plan),
                peak=options.learning_rate,
                schedule=options.schedule,
                warmup_ratio=options.warmup_ratio,
                final_ratio=options.final_ratio,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            if before_step:
                before_step(index)
            with _dropout_keyed(key, index, here.rank, parameters):
                total, sums = _accumulate(plan[index], micro_batches, loss, cost, shards)
            sum_gradients(parameters.values())
            norm = clip_gradients(parameters.values(), options.max_grad_norm)
            if not math.isfinite(norm):
                raise OptativeError(f"step {number}: the gradient is not finite; lower the learning rate")
            optimizer.step()
            release()
            line: dict[str, Any] = {"step": number, **(labels or {})}
            line["epoch"] = round((index + 1) / max(1, len(plan) // options.epochs), 4)
            line |= {"loss": total, "learning_rate": rate, "grad_norm": norm}
            line |= {name: value if count == 0 else value / count for name, (value, count) in sorted(sums.items())}
            stops = False
            if evaluate and _is_evaluated(index, len(plan), evaluate_every):
                line |= here.first(evaluate())
                if options.early_stopping or options.keep_best:
                    if best.see(number, _held_out_loss(line)) and options.keep_best:
                        save_best(checkpoints, number, parameters, {"key": key}, older=stored_best)
                    stops = 0 < options.early_stopping <= best.waited and index + 1 < len(plan)
                    line |= {"best_step": best.step, **({"stopped_early": True} if stops else {})}
            seconds = time.perf_counter() - started
            if journal:
                journal.append(line)
            if (index + 1) % options.checkpoint_every == 0 and index + 1 < len(plan) and not stops:
                place = {"local_step": index + 1, "journal_offset": journal.offset if journal else 0}
                known = {"key": key, "best": asdict(best) if best.step else None, **here.first(place)}
                save_checkpoint(checkpoints, number, parameters, optimizer, known, best=best.step)
                stored_best = best.step
            if on_step and here.is_main:
                on_step(index + 1, len(plan), {**line, "step_time": seconds})
            if stops:
                break
        if options.keep_best and best.step not in (0, number):
            load_best(checkpoints, best.step, key, parameters)
        return here.first(journal.offset if journal else 0)


def _adamw(parameters: Iterable[torch.nn.Parameter], options: StepOptions) -> torch.optim.AdamW:
    """One fused kernel for all copies and one for all shards, which cannot be mixed."""
    groups: dict[bool, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(isinstance(parameter, DTensor), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=True,
    )


def _accumulate(
    units: Sequence[int],
    micro_batches: Callable[[Sequence[int]], Iterable[Micro]],
    loss: Callable[[Micro, int], MicroResult],
    cost: Callable[[int], float] | None,
    shards: bool,
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Backward through this rank's units of a step; the loss and the sums of all ranks."""
    here = world()
    costs = [cost(unit) for unit in units] if cost and here.size > 1 else None
    own = tuple(units[i] for i in here.share(len(units), costs))
    if shards:  # each forward is a joint act: a rank without units computes one that does not count
        micros: Iterable[tuple[Micro, bool]] = even(list(micro_batches(own or units[:1])))
    else:
        micros = ((micro, True) for micro in micro_batches(own))
    total, sums = 0.0, dict[str, tuple[float, float]]()
    for micro, is_real in micros:
        counts = is_real and bool(own)
        result = loss(micro, len(units))
        with _fixed_order():
            (result.loss if counts else 0.0 * result.loss).backward()
        if counts:
            total += float(result.loss.detach())
            _add(sums, result.sums)
    parts = here.every((total, sums))
    together = dict[str, tuple[float, float]]()
    for _, own_sums in parts:
        _add(together, own_sums)
    return sum(part for part, _ in parts), together


def _add(sums: dict[str, tuple[float, float]], more: Mapping[str, tuple[float, float]]) -> None:
    for name, (value, count) in more.items():
        old = sums.get(name, (0.0, 0.0))
        sums[name] = (old[0] + value, old[1] + count)


@contextmanager
def _fixed_order() -> Iterator[None]:
    """A backward of attention on CUDA adds in a fixed order only where an open order is an error, not a warning."""
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


@contextmanager
def _dropout_keyed(key: str, step: int, rank: int, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Random numbers inside depend on training, step and rank alone, so that a step can be redone."""
    device = next(iter(parameters.values())).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_from(key, "dropout", step, rank))
        yield


def _is_evaluated(index: int, num_steps: int, every: int) -> bool:
    return every > 0 and ((index + 1) % every == 0 or index + 1 == num_steps)


def _held_out_loss(line: Mapping[str, Any]) -> float:
    value = line.get(METRIC)
    if value is None or not math.isfinite(value):
        raise OptativeError(f"step {line['step']}: the held-out loss ({METRIC}) is {value}")
    return float(value)


def _check_options(options: StepOptions, evaluations: int, shards: bool) -> None:
    """An option that cannot act is an error."""
    # The best is known from the second evaluation on; stopping is worth it before the last one.
    for name, wanted, needed in (
        ("early_stopping", options.early_stopping, options.early_stopping + 2),
        ("keep_best", options.keep_best, 2),
    ):
        if wanted and evaluations < needed:
            raise InputError(
                "cannot act: it needs more evaluations on held-out units than there are",
                field=name,
                found=f"{wanted} with {evaluations} evaluations",
                expected=f"{needed} evaluations or more",
                hint="Keep units out, evaluate more often, train longer, or leave it out.",
            )
    if options.shard and world().size == 1:
        raise InputError("cannot act: there is one process, so there is nothing to split", field="shard", found=True)
    if options.shard != shards:
        raise OptativeError("`shard` does not say what was done to the model")
