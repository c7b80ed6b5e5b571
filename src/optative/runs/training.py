"""One training as cached stages: the reference, the steps with checkpoints, the weights.

Knows: keys and files of a run. Does not know: where units come from, formulas.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optative.core.files import read_json, read_jsonl, write_json
from optative.core.ids import content_hash
from optative.data.pair_steps import FILE, write_pair_steps
from optative.generators.language.cost import Cost, measure
from optative.generators.language.trained import load_trained, save_trained
from optative.optimizers.follow import pair_steps
from optative.optimizers.options import Preference
from optative.optimizers.preference import Reference, reference_sums, train_preferences
from optative.optimizers.terms import Term, terms
from optative.optimizers.units import Units
from optative.runs.job import Job
from optative.runs.stages import chunked
from optative.training.distribution import world

CHUNK = 256  # units whose reference is one unit of resumption


def reference_stage(job: Job, units: Units, options: Preference, words: str) -> Reference:
    """Log-probabilities where the policy started, from the cache when these units were scored before."""
    moving = [options.scoring_budget, getattr(options, "length_desensitise", 1.0)]
    key = job.key("reference", 2, [*moving, content_hash([unit.key for unit in units])])
    chunks: list[Sequence[int]] = chunked(range(len(units)), CHUNK)
    return job.stages.rows(key, chunks, lambda part, _: reference_sums(job.lm, units, part, options), words, len)


def cost_stage(job: Job, units: Units) -> Cost:
    """What packs take here, measured once a run, so that a run that goes on packs as before."""
    key = job.stages.key("pack-cost", 1, None)
    some = range(0, len(units), max(1, len(units) // 512))
    found = job.stages.value(key, lambda: asdict(measure(job.lm, [units[i].group for i in some])))
    return Cost(tuple(found["tokens"]), tuple(found["seconds"]))


def held_out_file(job: Job, key: str, step: int) -> Path:
    """Where the log-probabilities of the held-out units after a step are kept."""
    return job.stages.folder / f"{key}.held-out-{step}.json"


def write_learning_curves(job: Job, key: str, units: Units, start: Reference, losses: Sequence[Term]) -> None:
    """Write `pairs.parquet`: each held-out pair's log-probabilities at every measurement; nothing without pairs."""
    prefix = f"{key}.held-out-"
    steps = sorted(int(path.stem.removeprefix(prefix)) for path in job.stages.folder.glob(f"{prefix}*.json"))
    measured = {step: read_json(held_out_file(job, key, step)) for step in steps}
    found = pair_steps(units, {0: start, **measured}, losses) if steps else None
    if found is not None:
        write_pair_steps(job.folder.path / FILE, found)


def train_stage(
    job: Job,
    key: str,
    units: Units,
    loss: str,
    options: Preference,
    *,
    words: str,
    seed: int,
    labels: dict[str, Any],
    journal_start: int = 0,
    first_step: int = 0,
    held_out: tuple[Units, Reference] | None = None,
) -> dict[str, Any]:
    """One preference training as a cached stage: the reference, the steps with checkpoints, the weights.

    Returns `journal_offset` and `steps` (both counted from the run's start) and `weights`, the identity of the trained
    weights.
    """
    lm, weights = job.lm, job.stages.folder / f"{key}.safetensors"
    receipt = job.stages.folder / f"{key}.done.json"
    if receipt.exists():
        load_trained(lm, weights)
        return dict(read_json(receipt))
    needed = any(term.loss.reference for term in terms(loss, options))
    reference = reference_stage(job, units, options, f"{words}: reference") if needed else None
    cost = cost_stage(job, units) if options.token_budget == "auto" else None
    started = time.perf_counter()
    with job.events.progress(f"{words}: training") as advance:

        def tell(done: int, total: int, line: dict[str, Any]) -> None:
            accuracy = line.get("rewards/accuracies")
            advance(done, total, f"loss {line['loss']:.3f}" + ("" if accuracy is None else f" accuracy {accuracy:.2f}"))

        def keep(step: int, sums: list[list[float]]) -> None:
            if world().is_main:
                write_json(held_out_file(job, key, step), sums, indent=None)

        offset = train_preferences(
            lm,
            units,
            reference,
            loss=loss,
            options=options,
            seed=seed,
            key=key,
            journal_path=job.folder.metrics,
            journal_start=journal_start,
            checkpoints=job.folder.checkpoints,
            labels=labels,
            first_step=first_step,
            held_out=held_out,
            cost=cost,
            on_step=tell,
            on_held_out=keep,
        )
    identity = save_trained(lm, weights)
    steps = sum(1 for _ in read_jsonl(job.folder.metrics))
    job.stages.add_seconds(key, time.perf_counter() - started)
    write_json(receipt, {"journal_offset": offset, "steps": steps, "weights": identity})
    return dict(read_json(receipt))
