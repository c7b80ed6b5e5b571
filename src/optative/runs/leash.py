"""How far from the base a round may take the policy: where it went too far, a part of its change is taken back.

Knows: a round's first and last weights, stages, the measured divergence. Does not know: losses, pairs, rules.

A round has few steps, so that with equal settings one seed moves the policy several times as far as another. The
weights between the end of the round and its start are tried in turn, until some are near enough (interpolation towards
the start: Wortsman et al. 2022, arXiv:2109.01903; in preference training Ramé et al. 2024, arXiv:2406.16768, 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optative.core.ids import content_hash
from optative.generators.language.adapters import merged
from optative.generators.language.sample import SamplingSettings
from optative.generators.language.trained import copied, interpolate
from optative.objectives.instructions.check import InstructionPrompt
from optative.runs.answers import answers, divergences
from optative.runs.job import Job

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the round's change; with none of it the policy is as far as it was allowed
PROMPTS = 32  # a prompt's divergence has a standard deviation of half its mean, so that the mean is known to a tenth


def hold(
    job: Job,
    number: int,
    prompts: Sequence[InstructionPrompt],
    start: Mapping[str, Any],
    weights: str,
    *,
    most: float,
    longest: int,
) -> str:
    """Keep as much of round `number` as leaves the policy at most `most` nats a token from the base.

    prompts: the round's; the divergence is that on greedy answers to the first of them. start: the trained weights
    before the round. weights: the identity of those after it. Returns the identity of what was kept.
    """
    end, some = copied(job.lm), prompts[:PROMPTS]
    greedy = SamplingSettings(max_new_tokens=longest, temperature=0.0)
    for share in SHARES:
        interpolate(job.lm, start, end, share)
        identity = weights if share == 1 else content_hash([weights, share])[:16]
        words = f"round {number}: how far from the base"
        key = job.key(f"near-{number}", 1, [[(p.id, p.prompt) for p in some], greedy, identity])
        with merged(job.lm):
            rows = answers(job.stages, key, words, job.lm, some, 1, greedy, rule=job.rule, seed=0, chunk=PROMPTS)
        found = divergences(
            job, f"kl-{number}", rows, {p.id: p for p in some}, identity, longest, f"{words}, divergence"
        )
        nats = sum(found.values()) / len(found)
        if nats <= most:
            break
    kept = {"share of the round's change that was kept": share, "nats a token from the base": round(nats, 3)}
    job.counts[f"round {number}"] |= kept
    job.events.say(f"  round {number}: " + ", ".join(f"{value} {name}" for name, value in kept.items()))
    return identity
