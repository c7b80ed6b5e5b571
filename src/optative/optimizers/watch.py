"""Warnings in words about what usually goes wrong in preference training.

Knows: the lines of metrics and the counts of a selection. Does not know: models, files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def warning(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def training_warnings(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the metrics of one run say, comparing the first and the last fifth of each round's steps."""
    found = []
    for number in sorted({line.get("round", 1) for line in lines}):
        own = [line for line in lines if line.get("round", 1) == number]
        if len(own) < 5:
            continue
        fifth = max(1, len(own) // 5)

        def mean(name: str, part: Sequence[Mapping[str, Any]]) -> float:
            return sum(line[name] for line in part) / len(part)

        chosen = mean("rewards/chosen", own[-fifth:])
        rejected = mean("rewards/rejected", own[-fifth:])
        if chosen < 0 and rejected < 0 and abs(chosen) > 0.25 * (chosen - rejected):
            found.append(
                warning(
                    "likelihood_displacement",
                    f"Round {number}: the policy became less likely to give the chosen answers too (reward {chosen:+.2f}, "
                    f"rejected {rejected:+.2f}): the margin grows by pushing both down. A larger nll_weight or a lower "
                    "learning rate counters it.",
                )
            )
        if mean("rewards/accuracies", own[-fifth:]) > 0.98 and mean("rewards/margins", own[-fifth:]) > 3:
            found.append(
                warning(
                    "margins_saturated",
                    f"Round {number}: nearly every training pair is already ordered with a wide margin; more steps on them "
                    "teach little and drift. Fewer epochs or fresh pairs serve better.",
                )
            )
        clipped = sum(line["grad_norm"] > 10 for line in own)
        if clipped > len(own) // 4:
            found.append(
                warning(
                    "gradient_spikes",
                    f"Round {number}: the gradient norm was above 10 in {clipped} of {len(own)} steps.",
                )
            )
        eval_accuracy = own[-1].get("eval_rewards/accuracies")
        if eval_accuracy is not None and mean("rewards/accuracies", own[-fifth:]) - eval_accuracy > 0.25:
            found.append(
                warning(
                    "overfitting",
                    f"Round {number}: {mean('rewards/accuracies', own[-fifth:]):.0%} of the training pairs are ordered right, "
                    f"but only {eval_accuracy:.0%} of the held-out ones.",
                )
            )
    return found


def selection_warnings(number: int, prompts: int, ties: int, pairs: int) -> list[dict[str, str]]:
    """Prompts whose samples all score alike teach nothing; many of them mean too few samples or too easy a rule."""
    found = []
    if prompts and ties / prompts > 0.5:
        found.append(
            warning(
                "zero_variance",
                f"Round {number}: for {ties} of {prompts} prompts all samples got the same score, so they gave no pair. "
                "More samples a prompt, a higher temperature or other prompts give more signal.",
            )
        )
    if pairs < 16:
        found.append(warning("few_pairs", f"Round {number}: only {pairs} pairs were found; the step is mostly noise."))
    return found
