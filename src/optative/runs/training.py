"""One training as cached stages: the reference, the steps with checkpoints, the weights.

Knows: keys and files of a run. Does not know: where units come from, formulas.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from optative.core.files import read_json, read_jsonl, write_json
from optative.core.ids import content_hash
from optative.generators.language.trained import load_trained, save_trained
from optative.optimizers.options import Preference
from optative.optimizers.preference import Reference, reference_sums, train_preferences
from optative.optimizers.terms import terms
from optative.optimizers.units import Units
from optative.runs.job import Job
from optative.runs.stages import chunked

CHUNK = 256  # units whose reference is one unit of resumption


def reference_stage(job: Job, units: Units, options: Preference, words: str) -> Reference:
    """Log-probabilities where the policy started, from the cache when these units were scored before."""
    moving = [options.token_budget, getattr(options, "length_desensitise", 1.0)]
    key = job.key("reference", 2, [*moving, content_hash([unit.key for unit in units])])
    chunks: list[Sequence[int]] = chunked(range(len(units)), CHUNK)
    return job.stages.rows(key, chunks, lambda part, _: reference_sums(job.lm, units, part, options), words, len)


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
    held_out: tuple[Units, Reference | None] | None = None,
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
    started = time.perf_counter()
    with job.events.progress(f"{words}: training") as advance:

        def tell(done: int, total: int, line: dict[str, Any]) -> None:
            accuracy = line.get("rewards/accuracies")
            advance(done, total, f"loss {line['loss']:.3f}" + ("" if accuracy is None else f" accuracy {accuracy:.2f}"))

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
            on_step=tell,
        )
    identity = save_trained(lm, weights)
    steps = sum(1 for _ in read_jsonl(job.folder.metrics))
    job.stages.add_seconds(key, time.perf_counter() - started)
    write_json(receipt, {"journal_offset": offset, "steps": steps, "weights": identity})
    return dict(read_json(receipt))
