"""The main job: a spec's parts wired into one walk of the loop, ending in a run folder with its evidence.

Knows: which stage feeds which, and under which keys they are cached. Does not know: formulas, rules, how a model works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optative.core.events import Events, default_events
from optative.core.files import read_jsonl, write_json
from optative.core.folder import RunFolder
from optative.core.ids import content_hash
from optative.evaluation.assemble import assemble
from optative.evaluation.independence import BASE_LOGPS, WORD_COUNTS, prompt_hash
from optative.generators.language.adapters import adapter_off, add_lora, has_adapter, merged
from optative.generators.language.load import open_language_model
from optative.generators.language.score import score
from optative.generators.language.tokens import Truncation
from optative.objectives.instructions.check import InstructionPrompt
from optative.objectives.instructions.compose import generate
from optative.objectives.instructions.kinds import TRAINED_KINDS
from optative.objectives.instructions.text import measured_with
from optative.optimizers.watch import training_warnings
from optative.runs.answers import Rows, as_groups, divergences, evaluate
from optative.runs.finish import finish, verdict
from optative.runs.job import Job, Run, settled_dtype
from optative.runs.practise import practise
from optative.runs.spec import Spec, load_spec
from optative.runs.stages import chunked
from optative.runs.tracking import check_trackers, write_trackers

KL_PROMPTS = 64  # the exact divergence needs the logits of two models; some of the held-out prompts are enough


def run(
    spec: Spec | str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    quick: bool = False,
    fresh: bool = False,
    events: Events | None = None,
) -> Run:
    """Walk the loop that a spec describes; with no spec the embedded example.

    out: the run folder itself; by default `runs/<name>-<key>`. The same spec on an existing folder resumes.
    Raises InputError (exit code 2) for a bad spec, a folder of another spec, a model that cannot be loaded.
    """
    if isinstance(spec, Spec):
        import yaml

        text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    else:
        spec, text = load_spec(spec, overrides=overrides, quick=quick)
    events = events or default_events()
    check_trackers(spec.track)
    folder = RunFolder(out if out is not None else Path("runs") / f"{spec.name}-{spec.key[:8]}")
    with folder.claim(spec.options, text, fresh=fresh) as resumed:
        events.say(f"{'Resuming' if resumed else 'Starting'} {folder.path}")
        return _steer(spec, folder, events)


def _steer(spec: Spec, folder: RunFolder, events: Events) -> Run:
    wanted = spec.objective
    practice = generate("train", wanted.train, spec.seed, wanted.kinds)
    validation = generate("validation", wanted.validation, kinds=wanted.kinds) if wanted.validation else []
    splits = {"validation": validation}
    if wanted.held_out:
        splits = {
            "held_out": generate("held_out", wanted.held_out, kinds=wanted.kinds),
            "unseen_kinds": generate("unseen_kinds", wanted.unseen_kinds),
        }
    dtype = settled_dtype(folder, spec.generator.dtype)
    lm = open_language_model(spec.generator.model_copy(update={"dtype": dtype}))
    length = min(spec.generator.max_length, lm.context_length)
    rule = Truncation(max_length=length, on_long_prompt=spec.generator.on_long_prompt)
    job = Job(folder, lm, events, {"name": spec.name, "key": spec.key[:8], "kind": "run", "seed": spec.seed}, rule)

    base = evaluate(job, spec, "base", splits, lm.fingerprint)
    if not has_adapter(lm):  # else the spec named an adapter to start from
        add_lora(lm, spec.generator.lora, seed=spec.seed)
    weights = practise(job, spec, practice, validation if wanted.held_out else [])
    with merged(lm):
        steered = evaluate(job, spec, "steered", splits, weights)
    kl = _drift(job, spec, base, steered, {p.id: p for own in splits.values() for p in own}, weights)
    job.rows += [row for rows in (base, steered) for own in rows.values() for row in own]
    job.write_samples()

    trained_kinds = wanted.kinds or TRAINED_KINDS
    evaluation = assemble(
        [row for own in base.values() for row in own],
        [row for own in steered.values() for row in own],
        trained_kinds=trained_kinds,
        trained_judges=(BASE_LOGPS, WORD_COUNTS) if spec.feedback.loops == "lose" else (BASE_LOGPS,),
        trained_prompt_ids={p.id for p in practice},
        trained_prompt_hashes={prompt_hash(p.prompt) for p in practice},
        kl_values=kl,
        mode=wanted.mode,
        seed=spec.seed,
        metrics=spec.evaluation,
    )
    evaluation["warnings"] = job.warnings + training_warnings(list(read_jsonl(folder.metrics))) + evaluation["warnings"]
    evaluation["criteria"] = [] if spec.require is None else [verdict(spec.require, evaluation)]
    write_json(folder.evaluation, evaluation)
    practised_on = content_hash([p.prompt for p in practice])[:16]
    facts = {
        split: {"prompts": len(own), "hash": content_hash([p.prompt for p in own])} for split, own in splits.items()
    }
    job.finish(
        {
            "trained_on": [f"{len(practice)} prompts with verifiable instructions (hash {practised_on})"],
            "trained_kinds": list(trained_kinds),
            "measured_by": sorted({m["measured_by"] for m in evaluation["metrics"]}),
            "measured_with": measured_with(),
            "data": facts,
        }
    )
    write_trackers(spec.track, folder.metrics, folder.path)
    finish(folder, lm, events)
    unmet = [criterion["why"] for criterion in evaluation["criteria"] if not criterion["met"]]
    return Run(folder.path, evaluation, not unmet, "; ".join(unmet))


def _drift(
    job: Job, spec: Spec, base: Rows, steered: Rows, prompts: Mapping[str, InstructionPrompt], weights: str
) -> dict[str, float] | None:
    """Put the base's log-probability per token into every row; return the KL per token of some steered answers."""
    lm, longest = job.lm, spec.feedback.max_new_tokens
    for own in base.values():
        for row in own:
            row["logp_base"] = row["logp"] / row["num_tokens"]
    rows = [row for own in steered.values() for row in own]

    def fluency(part: Sequence[dict[str, Any]], progress: Any) -> list[float]:
        with adapter_off(lm):
            scored = score(lm, as_groups(job, part, prompts, longest))
        return [float(logps.mean()) for ((only,),) in zip(scored) if (logps := only.logps) is not None]

    key = job.key("fluency", 1, [(row["id"], row["ids"]) for row in rows])
    found = job.stages.rows(key, chunked(rows, 64), fluency, "fluency under the base", len)
    for row, value in zip(rows, found, strict=True):
        row["logp_base"] = value
    if "kl" not in spec.evaluation:
        return None
    some = next(iter(steered.values()))[:KL_PROMPTS]
    return divergences(job, "kl", some, prompts, weights, longest, "divergence from the base")
