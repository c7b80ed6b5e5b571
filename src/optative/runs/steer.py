"""The main job: a spec's parts wired into one walk of the loop, ending in a run folder with its evidence.

Knows: which stage feeds which, and under which keys they are cached. Does not know: formulas, rules, how a model works.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


from optative.core.errors import InputError
from optative.core.events import Events, default_events
from optative.core.files import Journal, read_json, read_jsonl, write_json, write_text
from optative.core.folder import RunFolder
from optative.core.ids import content_hash, file_hash
from optative.data.records import Judgement
from optative.data.writers import write_judgements
from optative.evaluation.assemble import assemble
from optative.feedback.on_policy import judge
from optative.feedback.select import SELECTORS
from optative.generators.language.adapters import (
    add_lora,
    adapter_off,
    has_adapter,
    load_adapter_weights,
    merged,
    save_adapter,
)
from optative.generators.language.load import open_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group
from optative.generators.language.sample import SamplingSettings, sample
from optative.generators.language.score import divergence, score
from optative.generators.language.tokens import encode_prompt
from optative.objectives.instructions.check import InstructionPrompt, check_answer, check_answer_loose
from optative.objectives.instructions.compose import generate
from optative.objectives.instructions.kinds import TRAINED_KINDS
from optative.optimizers.loop import on_policy
from optative.optimizers.preference import EncodedPair, train_preferences
from optative.optimizers.reference import reference_logps
from optative.optimizers.watch import selection_warnings, training_warnings
from optative.runs.environment import hardware, moving_facts, peak_memory_bytes, versions
from optative.runs.finish import finish, verdict
from optative.runs.spec import Spec, load_spec
from optative.runs.stages import Stages, chunked
from optative.runs.tracking import check_trackers, write_trackers

EVALUATION_CHUNK = 128  # prompts; the unit that a crash loses
KL_PROMPTS = 64  # the exact divergence needs two forwards with full logits; a sample of the held-out prompts is enough


@dataclass
class Run:
    """A finished run. `met` is False when the spec's criterion was not met."""

    folder: Path
    evaluation: dict[str, Any]
    met: bool = True
    why: str = ""


@dataclass
class _Job:
    spec: Spec
    folder: RunFolder
    stages: Stages
    events: Events
    lm: LanguageModel
    keys: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    judged_rows: list[dict[str, Any]] = field(default_factory=list)

    def key(self, name: str, version: int, inputs: Any) -> str:
        key = self.stages.key(name, version, [self.lm.fingerprint, self.lm.template.hash, inputs])
        self.keys.append(key)
        return key


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
    started = datetime.now(UTC).isoformat(timespec="seconds")
    if folder.manifest.exists():
        started = read_json(folder.manifest)["started"]
    lm = open_language_model(spec.generator)
    for line in (f"model {lm.name}, {lm.dtype_reason}", *lm.notes):
        events.say(f"  {line}")
    job = _Job(spec, folder, Stages(folder.stages, moving_facts(str(lm.dtype), lm.device.type), events), events, lm)
    manifest = {
        "name": spec.name,
        "key": spec.key[:8],
        "kind": "run",
        "started": started,
        "finished": None,
        "versions": versions(),
        "hardware": hardware(),
        "base_model": {
            "name": lm.name,
            "fingerprint": lm.fingerprint,
            "template_hash": lm.template.hash,
            "notes": list(lm.notes),
        },
        "dtype": str(lm.dtype).removeprefix("torch."),
        "dtype_reason": lm.dtype_reason,
        "seed": spec.seed,
    }
    write_json(folder.manifest, manifest)

    wanted = spec.objective
    splits = {
        "held_out": generate("held_out", wanted.held_out, spec.seed),
        "unseen_kinds": generate("unseen_kinds", wanted.unseen_kinds, spec.seed) if wanted.unseen_kinds else [],
    }
    practice = generate("train", wanted.train, spec.seed)
    base = {
        split: _evaluate(job, "base", split, prompts, lm.fingerprint) for split, prompts in splits.items() if prompts
    }

    if not has_adapter(lm):  # else the spec named an adapter to start from
        add_lora(lm, spec.generator.lora, seed=spec.seed)
    weights = _practise(job, practice)

    with merged(lm):
        steered = {
            split: _evaluate(job, "steered", split, prompts, weights) for split, prompts in splits.items() if prompts
        }
    prompts = {p.id: p for own in splits.values() for p in own}
    drift = _drift(job, base, steered, prompts, weights)
    for rows in (base, steered):
        for own in rows.values():
            for row in own:
                row["logp_base"] = drift["logp_base"].get(f"{row['model']}/{row['id']}")
    job.judged_rows += [row for rows in (base, steered) for own in rows.values() for row in own]
    _write_samples(job)

    lines = list(read_jsonl(folder.metrics))
    evaluation = assemble(
        [row for own in base.values() for row in own],
        [row for own in steered.values() for row in own],
        trained_kinds=TRAINED_KINDS,
        trained_prompt_ids={p.id for p in practice},
        kl_values=drift["kl"],
        mode=wanted.mode,
        seed=spec.seed,
        metrics=spec.evaluation,
    )
    evaluation["warnings"] = job.warnings + training_warnings(lines) + evaluation["warnings"]
    evaluation["criteria"] = [] if spec.require is None else [verdict(spec.require, evaluation)]
    write_json(folder.evaluation, evaluation)
    manifest |= {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "trained_on": [
            f"{len(practice)} prompts of verifiable instructions, {content_hash([p.prompt for p in practice])[:16]}"
        ],
        "trained_kinds": list(TRAINED_KINDS),
        "measured_by": sorted({m["measured_by"] for m in evaluation["metrics"]}),
        "wall_seconds": job.stages.wall_seconds(job.keys),
        "counts": job.counts,
        "data": {
            split: {"prompts": len(own), "fingerprint": content_hash([p.prompt for p in own])}
            for split, own in splits.items()
        },
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder.manifest, manifest)
    write_trackers(spec.track, folder.metrics, folder.path)
    finish(folder, lm, events)
    met = all(c["met"] for c in evaluation["criteria"])
    return Run(folder.path, evaluation, met, "" if met else evaluation["criteria"][0]["why"])


def _sampling(spec: Spec, temperature: float) -> SamplingSettings:
    asked = spec.feedback
    greedy = temperature == 0
    return SamplingSettings(
        max_new_tokens=asked.max_new_tokens,
        temperature=temperature,
        top_p=1.0 if greedy else asked.top_p,
        top_k=0 if greedy else asked.top_k,
    )


def _answers(
    job: _Job,
    name: str,
    words: str,
    prompts: Sequence[InstructionPrompt],
    n: int,
    settings: SamplingSettings,
    weights: str,
    chunk: int,
) -> list[dict[str, Any]]:
    """`n` answers to each prompt as plain rows, cached; in the order of the prompts."""
    key = job.key(name, 1, [[(p.id, p.prompt) for p in prompts], n, settings, weights, job.spec.seed, chunk])

    def compute(part: Sequence[InstructionPrompt], progress: Any) -> list[dict[str, Any]]:
        found = sample(
            job.lm,
            [[{"role": "user", "content": p.prompt}] for p in part],
            n,
            settings,
            seed=job.spec.seed,
            keys=[p.id for p in part],
            progress=progress,
        )
        return [
            {
                "id": prompt.id,
                "sample": index,
                "completion": answer.text,
                "ids": list(answer.ids),
                "finish_reason": answer.finish_reason,
                "logp": sum(answer.logps),
            }
            for prompt, answers in zip(part, found)
            for index, answer in enumerate(answers)
        ]

    rows = job.stages.rows(key, chunked(prompts, chunk), compute, words, lambda part: len(part) * n)
    return list(rows)


def _judged(
    job: _Job, prompt: InstructionPrompt, row: Mapping[str, Any], *, stage: str, split: str, model: str
) -> dict[str, Any]:
    mode = job.spec.objective.mode
    checks = check_answer(prompt, row["completion"], mode=mode)
    loose = check_answer_loose(prompt, row["completion"], mode=mode)
    return {
        "stage": stage,
        "split": split,
        "model": model,
        "id": prompt.id,
        "prompt": [{"role": "user", "content": prompt.prompt}],
        "completion": row["completion"],
        "sample": row["sample"],
        "finish_reason": row["finish_reason"],
        "num_tokens": len(row["ids"]),
        "ids": row["ids"],
        "logp": row["logp"],
        "logp_base": None,
        "checks": [
            {
                "kind": c.kind,
                "params": i.params,
                "wording": i.wording,
                "followed": c.followed,
                "followed_loose": l.followed,
                "decided": c.decided,
                "why": c.why,
            }
            for c, l, i in zip(checks, loose, prompt.instructions)
        ],
        "followed": all(c.followed for c in checks),
        "followed_loose": all(c.followed for c in loose),
        "mode": mode,
    }


def _evaluate(
    job: _Job, model: str, split: str, prompts: Sequence[InstructionPrompt], weights: str
) -> list[dict[str, Any]]:
    """Greedy answers to held-out prompts, judged."""
    rows = _answers(
        job, f"{model}-{split}", f"{model} on {split}", prompts, 1, _sampling(job.spec, 0.0), weights, EVALUATION_CHUNK
    )
    judged = [_judged(job, p, row, stage="evaluation", split=split, model=model) for p, row in zip(prompts, rows)]
    right = sum(row["followed"] for row in judged)
    job.events.say(f"  {model} on {split}: {right} of {len(judged)} prompts followed")
    return judged


def _practise(job: _Job, prompts: Sequence[InstructionPrompt]) -> str:
    """All rounds of the on-policy loop; leaves the trained adapter in the model and returns the weights' identity."""
    spec, lm, asked = job.spec, job.lm, job.spec.feedback
    per_round = -(-len(prompts) // asked.rounds)
    rounds = chunked(prompts, per_round)
    state = {"weights": lm.fingerprint, "journal": 0, "steps": 0}
    by_id = {p.id: p for p in prompts}

    def draw(number: int, own: Sequence[InstructionPrompt]) -> list[dict[str, Any]]:
        settings = _sampling(spec, asked.temperature)
        with merged(lm):
            return _answers(
                job,
                f"answers-{number}",
                f"round {number}: answers",
                own,
                asked.samples_per_prompt,
                settings,
                str(state["weights"]),
                16,
            )

    def label(
        number: int, own: Sequence[InstructionPrompt], rows: list[dict[str, Any]]
    ) -> list[tuple[Judgement, list[dict[str, Any]]]]:
        judged = []
        for prompt in own:
            mine = [row for row in rows if row["id"] == prompt.id]
            job.judged_rows += [
                _judged(job, prompt, row, stage=f"round-{number}", split="train", model="policy") for row in mine
            ]
            record = judge(
                [{"role": "user", "content": prompt.prompt}],
                [row["completion"] for row in mine],
                lambda text, prompt=prompt: check_answer(prompt, text, mode=spec.objective.mode),  # type: ignore[misc]
                annotator=f"rules/{spec.objective.mode}",
                meta={"prompt_id": prompt.id, "round": number},
            )
            judged.append((record, mine))
        write_judgements(job.folder.stages / f"judgements-{number}.jsonl", [record for record, _ in judged])
        _write_samples(job)
        return judged

    def select(number: int, judged: list[tuple[Judgement, list[dict[str, Any]]]]) -> list[EncodedPair]:
        pairs, without = [], 0
        for record, rows in judged:
            scores = record.relation.values
            chosen = SELECTORS[asked.select](scores, asked.pairs_per_prompt, [spec.seed, number, record.id])
            without += not chosen
            prompt = by_id[record.meta["prompt_id"]]
            prompt_ids = tuple(encode_prompt(lm, [{"role": "user", "content": prompt.prompt}]))
            for best, worst, gap in chosen:
                if not rows[best]["ids"] or not rows[worst]["ids"]:
                    continue
                pairs.append(
                    EncodedPair(
                        id=f"{record.id}-{best}-{worst}",
                        group=Group(prompt_ids, (tuple(rows[best]["ids"]), tuple(rows[worst]["ids"]))),
                        strength=gap,
                    )
                )
        counts = {
            "prompts": len(judged),
            "answers": sum(len(rows) for _, rows in judged),
            "pairs": len(pairs),
            "prompts_without_pair_all_tied": without,
            "empty_answers": sum(not row["completion"].strip() for _, rows in judged for row in rows),
            "answers_cut_at_the_limit": sum(row["finish_reason"] == "length" for _, rows in judged for row in rows),
        }
        job.counts[f"round-{number}"] = counts
        job.events.say(
            f"  round {number}: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items())
        )
        job.warnings += selection_warnings(number, len(judged), without, len(pairs))
        if not pairs:
            raise InputError(
                f"round {number}: no prompt had answers of different score, so there is nothing to learn from",
                hint="More samples_per_prompt, a higher temperature or other prompts may help.",
            )
        return pairs

    def teach(number: int, pairs: Sequence[EncodedPair]) -> None:
        options = spec.optimizer
        key = job.key(
            f"train-{number}", 1, [[p.key for p in pairs], [p.strength for p in pairs], options, state["weights"], spec]
        )
        home, receipt = job.stages.folder / key, job.stages.folder / f"{key}.done.json"
        if receipt.exists():
            load_adapter_weights(lm, home)
        else:
            started = time.perf_counter()
            with job.events.progress(f"round {number}: reference") as advance:
                reference = reference_logps(
                    lm,
                    pairs,
                    weights=content_hash([lm.fingerprint, lm.template.hash, job.stages.environment]),
                    cache=job.stages.folder,
                    token_budget=options.token_budget,
                    progress=lambda done, total: advance(done, total, "pairs"),
                )
            with job.events.progress(f"round {number}: training") as advance:

                def tell(done: int, total: int, line: dict[str, Any]) -> None:
                    advance(done, total, f"loss {line['loss']:.3f} accuracy {line['rewards/accuracies']:.2f}")

                offset = train_preferences(
                    lm,
                    pairs,
                    reference,
                    options=options,
                    seed=spec.seed + number,
                    key=key,
                    journal_path=job.folder.metrics,
                    journal_start=int(state["journal"]),
                    checkpoints=job.folder.checkpoints,
                    labels={"round": number},
                    first_step=int(state["steps"]),
                    on_step=tell,
                )
            save_adapter(lm, home)
            steps = sum(1 for _ in read_jsonl(job.folder.metrics))
            job.stages.add_seconds(key, time.perf_counter() - started)
            write_json(receipt, {"journal_offset": offset, "steps": steps})
        done = read_json(receipt)
        weights = file_hash(home / "adapter_model.safetensors")
        state.update(journal=done["journal_offset"], steps=done["steps"], weights=weights)

    on_policy(rounds, sample=draw, label=label, select=select, train=teach)
    Journal(job.folder.metrics, int(state["journal"])).close()  # lines of a training that another key has replaced
    return str(state["weights"])


def _drift(
    job: _Job,
    base: Mapping[str, list[dict[str, Any]]],
    steered: Mapping[str, list[dict[str, Any]]],
    prompts: Mapping[str, InstructionPrompt],
    weights: str,
) -> dict[str, Any]:
    """Log-probability of every answer per token under the base, and the exact per-token KL on some steered answers."""
    lm = job.lm
    lookup = {f"base/{row['id']}": row["logp"] / len(row["ids"]) for own in base.values() for row in own if row["ids"]}
    rows = [row for own in steered.values() for row in own if row["ids"]]

    def groups(part: Sequence[dict[str, Any]]) -> list[Group]:
        return [
            Group(
                tuple(encode_prompt(lm, [{"role": "user", "content": prompts[row["id"]].prompt}])), (tuple(row["ids"]),)
            )
            for row in part
        ]

    def fluency(part: Sequence[dict[str, Any]], progress: Any) -> list[Any]:
        with adapter_off(lm):
            scored = score(lm, groups(part), token_budget=2048)
        return [[f"steered/{row['id']}", float(own[0].logps.mean())] for row, own in zip(part, scored)]

    key = job.key("fluency", 1, [[(row["id"], row["ids"]) for row in rows]])
    lookup |= dict(job.stages.rows(key, chunked(rows, 64), fluency, "fluency under the base", len))
    values: dict[str, float] = {}
    if "kl" in job.spec.evaluation:
        some = [row for row in steered["held_out"] if row["ids"]][:KL_PROMPTS]

        def kl(part: Sequence[dict[str, Any]], progress: Any) -> list[Any]:
            found = divergence(lm, groups(part), token_budget=1024)
            return [[row["id"], float(own[0].mean())] for row, own in zip(part, found)]

        key = job.key("kl", 1, [[(row["id"], row["ids"]) for row in some], weights])
        values = dict(job.stages.rows(key, chunked(some, 32), kl, "divergence from the base", len))
    return {"logp_base": lookup, "kl": values}


def _write_samples(job: _Job) -> None:
    """Every judged answer so far, whole or not at all."""
    import json

    write_text(
        job.folder.samples,
        "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in job.judged_rows),
    )
