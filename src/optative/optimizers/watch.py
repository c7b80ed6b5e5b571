"""Warnings in words about what usually goes wrong in preference training.

Knows: the lines of metrics and the counts of a selection. Does not know: models, files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Warnings = list[dict[str, str]]


def training_warnings(lines: Sequence[Mapping[str, Any]]) -> Warnings:
    """What the metrics say about each round, from the last fifth of its steps. Rounds of under 5 steps say nothing."""
    found: Warnings = []
    for number in sorted({line.get("round", 1) for line in lines}):
        own = [line for line in lines if line.get("round", 1) == number]
        if len(own) >= 5:
            found += [{"code": code, "message": f"Round {number}: {words}"} for code, words in _about(own)]
    return found


def selection_warnings(number: int, prompts: int, ties: int, pairs: int, cut_winners: int = 0) -> Warnings:
    """Prompts whose samples all score alike teach nothing; many of them mean too few samples or too easy a rule.

    cut_winners: chosen answers that were cut at the token limit; they teach not to stop.
    """
    found: Warnings = []
    if prompts and ties / prompts > 0.5:
        message = (
            f"Round {number}: for {ties} of {prompts} prompts all samples got the same score, so they gave no pair. "
            "More samples a prompt, a higher temperature or other prompts give more signal."
        )
        found.append({"code": "zero_variance", "message": message})
    if pairs < 16:
        message = f"Round {number}: only {pairs} pairs were found; a step on so few is mostly noise."
        found.append({"code": "few_pairs", "message": message})
    if pairs and cut_winners / pairs > 0.2:
        message = (
            f"Round {number}: {cut_winners} of {pairs} chosen answers were cut at the token limit, so that the policy "
            "learns not to stop. feedback.on_policy.unfinished=leave_out, or a larger max_new_tokens, counters it."
        )
        found.append({"code": "cut_winners", "message": message})
    return found


def _about(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    last = lines[-max(1, len(lines) // 5) :]
    chosen, rejected, accuracy, margin = (
        _mean(last, f"rewards/{name}") for name in ("chosen", "rejected", "accuracies", "margins")
    )
    found = []
    # Both log-probabilities usually fall a little; it is bad when the chosen ones carry much of the movement.
    if (
        chosen is not None
        and rejected is not None
        and chosen < 0
        and rejected < 0
        and -chosen > 0.25 * (chosen - rejected)
    ):
        found.append(
            (
                "likelihood_displacement",
                f"the policy became less likely to give the chosen answers too (reward {chosen:+.2f}, rejected "
                f"{rejected:+.2f}): the margin grows by pushing both down. A larger nll_weight or a lower learning "
                "rate counters it.",
            )
        )
    if accuracy is not None and margin is not None and accuracy > 0.98 and margin > 3:
        found.append(
            (
                "margins_saturated",
                "nearly every training pair is ordered with a wide margin by now; more steps on them teach little and "
                "drift. Fewer epochs or fresh pairs serve better.",
            )
        )
    spikes = sum(line["grad_norm"] > 10 for line in lines)
    if spikes > len(lines) / 4:
        found.append(("gradient_spikes", f"the gradient norm was above 10 in {spikes} of {len(lines)} steps."))
    held_out = lines[-1].get("eval_rewards/accuracies")
    if held_out is not None and accuracy is not None and accuracy - held_out > 0.25:
        found.append(
            ("overfitting", f"{accuracy:.0%} of the training pairs are ordered right, of the held-out {held_out:.0%}.")
        )
    return found


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Over the lines that have it: what a step reports depends on its records."""
    found = [line[name] for line in lines if name in line]
    return sum(found) / len(found) if found else None
