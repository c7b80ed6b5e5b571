"""The step engine: fixed steps of units, accumulated in micro-batches under one normaliser, with exact resume.

Knows: gradients, AdamW, clipping, schedules, journals, checkpoints. Does not know: losses, models, what a unit is.
A step is redone whole after a crash. How its units are packed into micro-batches changes speed, never the sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from optative.core.errors import OptativeError
from optative.core.files import Journal
from optative.core.memory import release
from optative.training.checkpoint import load_checkpoint, save_checkpoint
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
) -> int:
    """Run all steps of the plan, from the newest checkpoint with this key if there is one; return the journal's end.

    key: identity of this training (a checkpoint of another key is not used). journal_start: offset of the metrics
    journal when this training first began. first_step: global number of steps already made by earlier trainings.
    labels: constants copied into each line of metrics. evaluate: held-out metrics, named `eval_...`, measured every
    `evaluate_every` steps.
    """
    for parameter in parameters.values():
        if parameter.dtype != torch.float32:
            raise OptativeError(f"trained parameters must be float32, found {parameter.dtype}")
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
    )
    state = load_checkpoint(checkpoints, key, parameters, optimizer)
    done, offset = (state["local_step"], state["journal_offset"]) if state else (0, journal_start)
    steps_per_epoch = max(1, len(plan) // options.epochs)
    with Journal(journal_path, offset) as journal:
        for index in range(done, len(plan)):
            started = time.perf_counter()
            units = plan[index]
            rate = learning_rate(
                index,
                len(plan),
                peak=options.learning_rate,
                schedule=options.schedule,
                warmup_ratio=options.warmup_ratio,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            sums: dict[str, tuple[float, float]] = {}
            for micro in micro_batches(units):
                result = loss(micro, len(units))
                result.loss.backward()
                total += float(result.loss.detach())
                for name, (value, count) in result.sums.items():
                    old = sums.get(name, (0.0, 0.0))
                    sums[name] = (old[0] + value, old[1] + count)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), options.max_grad_norm))
            if not (norm == norm and abs(norm) != float("inf")):
                raise OptativeError(
                    f"step {first_step + index + 1}: the gradient is not finite; lower the learning rate"
                )
            optimizer.step()
            release()
            line: dict[str, Any] = {"step": first_step + index + 1, **(labels or {})}
            line["epoch"] = round((index + 1) / steps_per_epoch, 4)
            line |= {"loss": total, "learning_rate": rate, "grad_norm": norm}
            line |= {name: value if count == 0 else value / count for name, (value, count) in sorted(sums.items())}
            if evaluate and evaluate_every and ((index + 1) % evaluate_every == 0 or index + 1 == len(plan)):
                line |= evaluate()
            seconds = time.perf_counter() - started
            journal.append(line)
            if (index + 1) % options.checkpoint_every == 0 and index + 1 < len(plan):
                save_checkpoint(
                    checkpoints,
                    first_step + index + 1,
                    parameters,
                    optimizer,
                    {"key": key, "local_step": index + 1, "journal_offset": journal.offset},
                )
            if on_step:
                on_step(index + 1, len(plan), {**line, "step_time": seconds})
        return journal.offset
