"""The on-policy loop: sample, label, select, train, refresh.

Knows: the order of the steps and what passes between them. Does not know: models, rules, files; they come as callables.
Self-play, tree search and mutual-information training are settings of the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Prompt = TypeVar("Prompt")
Answers = TypeVar("Answers")
Judged = TypeVar("Judged")
Unit = TypeVar("Unit")


def on_policy(
    rounds: Sequence[Sequence[Prompt]],
    *,
    sample: Callable[[int, Sequence[Prompt]], Answers],
    label: Callable[[int, Sequence[Prompt], Answers], Judged],
    select: Callable[[int, Judged], Sequence[Unit]],
    train: Callable[[int, Sequence[Unit]], None],
) -> None:
    """Walk the rounds, numbered from 1. `train` leaves the policy that the next round samples."""
    for number, prompts in enumerate(rounds, 1):
        answers = sample(number, prompts)
        judged = label(number, prompts, answers)
        units = select(number, judged)
        train(number, units)
