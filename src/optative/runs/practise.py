"""The on-policy rounds of a run: what the loop's `sample`, `label`, `select` and `train` are here, and their cache.

Knows: stages, keys, counts. Does not know: how pairs are chosen or losses computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optative.core.errors import InputError
from optative.core.files import Journal
from optative.data.records import Judgement, Ratings
from optative.data.writers import write_judgements
from optative.feedback.on_policy import judge
from optative.feedback.select import SELECTORS, below_all, without_unfinished
from optative.generators.language.adapters import merged
from optative.generators.language.packing import Group
from optative.generators.language.sample import SamplingSettings
from optative.generators.language.tokens import TruncationCounts
from optative.generators.language.trained import copied
from optative.objectives.instructions.check import InstructionPrompt, check_answer
from optative.objectives.repetition import LOOPS, repetition
from optative.optimizers.loop import on_policy
from optative.optimizers.units import Unit
from optative.optimizers.watch import selection_warnings
from optative.runs.answers import EVALUATION_CHUNK, answers, as_messages, evaluate, judged, prompt_ids
from optative.runs.job import Job
from optative.runs.leash import hold
from optative.runs.spec import Spec
from optative.runs.stages import chunked
from optative.runs.training import train_stage

CHUNK = 32  # prompts whose samples are one unit of resumption

Judged = list[tuple[InstructionPrompt, Judgement, list[dict[str, Any]]]]


def practise(
    job: Job, spec: Spec, prompts: Sequence[InstructionPrompt], validation: Sequence[InstructionPrompt] = ()
) -> str:
    """All rounds; leaves the trained adapter in the model and returns the identity of its weights.

    validation: prompts on which the policy is measured after each round.
    """
    asked, mode, lm = spec.feedback, spec.objective.mode, job.lm
    weights, journal, steps = lm.fingerprint, 0, 0
    settings = SamplingSettings(
        max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k
    )

    def draw(number: int, own: Sequence[InstructionPrompt]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        greedy, many = settings.model_copy(update={"temperature": 0.0}), asked.samples_per_prompt
        ways = ((0, many, settings, CHUNK, "answers"), (many, 1, greedy, EVALUATION_CHUNK, "greedy-answers"))
        for first, n, how, chunk, name in ways[: 1 + asked.greedy]:
            key = job.key(f"{name}-{number}", 1, [[(p.id, p.prompt) for p in own], n, how, weights, spec.seed, chunk])
            words = f"round {number}: {name.replace('-', ' ')}"
            with merged(lm):
                rows = answers(job.stages, key, words, lm, own, n, how, rule=job.rule, seed=spec.seed, chunk=chunk)
            found += [row | {"sample": first + row["sample"]} for row in rows]
        return found

    def label(number: int, own: Sequence[InstructionPrompt], rows: list[dict[str, Any]]) -> Judged:
        found: Judged = []
        by_prompt: dict[str, list[dict[str, Any]]] = {prompt.id: [] for prompt in own}
        for row in rows:
            by_prompt[row["id"]].append(row)
        for prompt in own:
            mine = by_prompt[prompt.id]
            job.rows += [
                judged(prompt, row, stage=f"round-{number}", split="train", model="policy", mode=mode) for row in mine
            ]

            def verdicts(text: str, prompt: InstructionPrompt = prompt) -> Sequence[Any]:
                return check_answer(prompt, text, mode=mode)

            record = judge(
                as_messages(prompt),
                [row["completion"] for row in mine],
                verdicts,
                annotator=f"rules ({mode})",
                meta={"prompt_id": prompt.id, "round": number},
            )
            found.append((prompt, record, mine))
        write_judgements(job.folder.stages / f"judgements-{number}.jsonl", [record for _, record, _ in found])
        job.write_samples()
        return found

    def select(number: int, found: Judged) -> list[Unit]:
        pairs: list[Unit] = []
        without, cut_winners, loops, cut = 0, 0, 0, TruncationCounts()
        for prompt, record, rows in found:
            assert isinstance(record.relation, Ratings)
            lengths = [row["num_tokens"] for row in rows]
            cut_off = [row["finish_reason"] == "length" for row in rows]
            scores = without_unfinished(record.relation.values, cut_off, asked.unfinished)
            looping = [repetition(row["completion"].split()) > LOOPS for row in rows]
            loops += sum(looping)
            if asked.loops == "lose":
                scores = below_all(scores, looping)
            chosen = SELECTORS[asked.select](scores, lengths, asked.pairs_per_prompt, [spec.seed, number, prompt.id])
            if asked.unfinished != "keep":  # of two cut ones neither is an example
                chosen = [pair for pair in chosen if not cut_off[pair[0]]]
            without += not chosen
            cut_winners += sum(cut_off[best] for best, _, _ in chosen)
            ids = prompt_ids(lm, prompt, job.rule, asked.max_new_tokens, cut)
            for best, worst, gap in chosen:
                group = Group(ids, (tuple(rows[best]["ids"]), tuple(rows[worst]["ids"])))
                pairs.append(Unit(f"{record.id}-{best}-{worst}", group, strength=gap))
        everything = [row for _, _, rows in found for row in rows]
        counts = {
            "prompts": len(found),
            "answers": len(everything),
            "pairs": len(pairs),
            "tokens of a chosen answer": _mean([len(p.group.completion_ids[0]) for p in pairs]),
            "tokens of a rejected answer": _mean([len(p.group.completion_ids[1]) for p in pairs]),
            "prompts without a pair (all tied)": without,
            "prompts cut on the left": cut.prompts_cut,
            "empty answers": sum(not row["completion"].strip() for row in everything),
            "answers cut at the limit": sum(row["finish_reason"] == "length" for row in everything),
            "answers that repeat themselves": loops,
        }
        job.counts[f"round {number}"] = counts
        job.events.say(f"  round {number}: " + ", ".join(f"{value} {name}" for name, value in counts.items()))
        job.warnings += selection_warnings(number, len(found), without, len(pairs), cut_winners)
        return pairs

    def teach(number: int, pairs: Sequence[Unit]) -> None:
        nonlocal weights, journal, steps
        if not pairs:
            job.events.warn(f"round {number} taught nothing: no prompt had answers of different score")
            return
        inputs = [
            [[p.key, p.label] for p in pairs],
            spec.loss,
            spec.optimizer,
            spec.generator.lora,
            spec.generator.adapter,
            weights,
            spec.seed,
            steps,
        ]
        key = job.key(f"train-{number}", 2, inputs)
        start = None if asked.max_kl is None else copied(lm)
        taught = train_stage(
            job,
            key,
            pairs,
            spec.loss,
            spec.optimizer,
            words=f"round {number}",
            seed=spec.seed + number,
            labels={"round": number},
            journal_start=journal,
            first_step=steps,
        )
        journal, steps = taught["journal_offset"], taught["steps"]
        weights = taught["weights"]
        if start is not None and asked.max_kl is not None:
            own, most = rounds[number - 1], asked.max_kl * number / asked.rounds
            weights = hold(job, number, own, start, weights, most=most, longest=asked.max_new_tokens)
        if validation:
            with merged(lm):
                rows = evaluate(job, spec, "policy", {"validation": validation}, weights, stage=f"round-{number}")[
                    "validation"
                ]
            job.rows += rows
            right = sum(row["followed"] for row in rows)
            job.counts[f"round {number}"]["validation prompts followed"] = f"{right} of {len(rows)}"

    per_round = -(-len(prompts) // asked.rounds)
    rounds = chunked(prompts, per_round)
    on_policy(rounds, sample=draw, label=label, select=select, train=teach)
    if not steps:
        raise InputError(
            "no prompt had answers of different score, so there is nothing to learn from",
            hint="More samples_per_prompt, a higher temperature or other prompts may help.",
        )
    Journal(job.folder.metrics, journal).close()  # cuts the lines of a training that another key has replaced
    return weights


def _mean(values: Sequence[int]) -> float:
    return round(sum(values) / len(values), 1) if values else 0.0
