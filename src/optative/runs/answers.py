"""Answers of a model to prompts with instructions, as cached rows, and the rules' verdicts on them.

Knows: prompts, checkers, sampling in chunks that a crash cannot halve. Does not know: training, evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Ids
from optative.generators.language.sample import SamplingSettings, sample
from optative.generators.language.score import divergence
from optative.generators.language.tokens import Truncation, TruncationCounts, encode_prompt, start_ids
from optative.objectives.instructions.check import InstructionPrompt, check_answer, check_answer_loose
from optative.objectives.instructions.text import Mode
from optative.runs.job import Job
from optative.runs.spec import Spec
from optative.runs.stages import Stages, chunked

EVALUATION_CHUNK = 128  # prompts of an evaluation that are one unit of resumption

Rows = dict[str, list[dict[str, Any]]]  # rows of samples.jsonl, by split


def as_messages(prompt: InstructionPrompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt.prompt}]


def prompt_ids(
    lm: LanguageModel, prompt: InstructionPrompt, rule: Truncation, max_new_tokens: int, counts: TruncationCounts
) -> Ids:
    """The ids that sampling started from; training and scoring use the same ones."""
    ids = encode_prompt(lm, as_messages(prompt))
    return rule.fit_prompt(ids, max_new_tokens, counts=counts, start=start_ids(lm))


def answers(
    stages: Stages,
    key: str,
    words: str,
    lm: LanguageModel,
    prompts: Sequence[InstructionPrompt],
    n: int,
    settings: SamplingSettings,
    *,
    rule: Truncation,
    seed: int,
    chunk: int,
) -> list[dict[str, Any]]:
    """`n` answers to each prompt, in the order of the prompts; `chunk` prompts are one unit of resumption."""

    def compute(part: Sequence[InstructionPrompt], progress: Any) -> list[dict[str, Any]]:
        found = sample(
            lm,
            [as_messages(p) for p in part],
            n,
            settings,
            seed=seed,
            keys=[p.id for p in part],
            progress=progress,
            truncation=rule,
        )
        return [
            {
                "id": prompt.id,
                "sample": index,
                "completion": answer.text,
                "ids": list(answer.ids),
                "num_tokens": len(answer.ids),
                "finish_reason": answer.finish_reason,
                "close_calls": answer.close_calls,
                "logp": sum(answer.logps),
            }
            for prompt, own in zip(part, found)
            for index, answer in enumerate(own)
        ]

    return stages.rows(key, chunked(prompts, chunk), compute, words, lambda part: len(part) * n)


def judged(
    prompt: InstructionPrompt, answer: Mapping[str, Any], *, stage: str, split: str, model: str, mode: Mode
) -> dict[str, Any]:
    """A row of `samples.jsonl`: an answer with the verdict on each instruction, strict and loose."""
    checks = check_answer(prompt, answer["completion"], mode=mode)
    loose = check_answer_loose(prompt, answer["completion"], mode=mode)
    return {
        "stage": stage,
        "split": split,
        "model": model,
        "id": prompt.id,
        "prompt": as_messages(prompt),
        "sample": 0,
        "logp_base": None,
        **answer,
        "checks": [
            {
                "kind": strict.kind,
                "params": instruction.params,
                "wording": instruction.wording,
                "followed": strict.followed,
                "followed_loose": freely.followed,
                "decided": strict.decided,
                "why": strict.why,
            }
            for strict, freely, instruction in zip(checks, loose, prompt.instructions)
        ],
        "followed": all(check.followed for check in checks),
        "followed_loose": all(check.followed for check in loose),
        "mode": mode,
    }


def evaluate(
    job: Job,
    spec: Spec,
    model: str,
    splits: Mapping[str, Sequence[InstructionPrompt]],
    weights: str,
    stage: str = "evaluation",
) -> Rows:
    """Greedy answers to prompts that training does not see, judged."""
    settings = SamplingSettings(max_new_tokens=spec.feedback.max_new_tokens, temperature=0.0)
    rows: Rows = {}
    for split, prompts in splits.items():
        key = job.key(f"{model}-{split}", 1, [[(p.id, p.prompt) for p in prompts], settings, weights, EVALUATION_CHUNK])
        words = f"{model} on {split}"
        found = answers(
            job.stages, key, words, job.lm, prompts, 1, settings, rule=job.rule, seed=0, chunk=EVALUATION_CHUNK
        )
        rows[split] = [
            judged(p, row, stage=stage, split=split, model=model, mode=spec.objective.mode)
            for p, row in zip(prompts, found)
        ]
        job.events.say(f"  {words}: {sum(row['followed'] for row in rows[split])} of {len(prompts)} prompts followed")
    return rows


def as_groups(
    job: Job, rows: Sequence[dict[str, Any]], prompts: Mapping[str, InstructionPrompt], longest: int
) -> list[Group]:
    """Answers behind their prompts, with the ids that were sampled."""
    counts = TruncationCounts()
    return [
        Group(prompt_ids(job.lm, prompts[row["id"]], job.rule, longest, counts), (tuple(row["ids"]),)) for row in rows
    ]


def divergences(
    job: Job,
    name: str,
    rows: Sequence[dict[str, Any]],
    prompts: Mapping[str, InstructionPrompt],
    weights: str,
    longest: int,
    words: str,
) -> dict[str, float]:
    """KL of the model as it is from the bare base, nats per token of its own answers, by the prompt's id."""

    def kl(part: Sequence[dict[str, Any]], progress: Any) -> list[list[Any]]:
        found = divergence(job.lm, as_groups(job, part, prompts, longest))
        return [[row["id"], float(own[0].mean())] for row, own in zip(part, found)]

    key = job.key(name, 1, [[(row["id"], row["ids"]) for row in rows], weights])
    return dict(job.stages.rows(key, chunked(rows, 32), kl, words, len))
