"""From queries and principles to squares: constitutions are drawn, the policy answers under each, queries are filtered.

Knows: principles, sampling, which queries cannot teach. Does not know: who checks answers, losses, iterations. The
order of the principles is drawn anew between sampling and training, so that their places carry nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from optative.core.rng import seed_from, stream
from optative.generators.language.sample import Completion, SamplingSettings, sample
from optative.generators.language.tokens import encode_prompt
from optative.objectives.principles import Choice, Principle, constitution, draw, shuffled
from optative.optimizers.mutual_information import Square, square

Prompt = Callable[[str, str], str]  # from a query and a constitution


@dataclass(frozen=True, slots=True)
class Asked:
    """For each query its constitutions, and a prompt for each of them."""

    choices: tuple[tuple[Choice, ...], ...]
    prompts: tuple[tuple[str, ...], ...]

    def answers(self, lm: Any, settings: SamplingSettings, key: Any) -> list[list[Completion]]:
        """One answer for each prompt; random numbers are keyed by the query's place, not by the model."""
        flat = [text for own in self.prompts for text in own]
        keys = [str(i) for i in range(len(flat))]
        found = iter(sample(lm, flat, 1, settings, seed=seed_from(key), keys=keys))
        return [[next(found)[0] for _ in own] for own in self.prompts]


def draw_asked(
    queries: Sequence[str],
    principles: Sequence[Principle],
    prompt: Prompt,
    key: Any,
    *,
    count: int = 2,
    only: Collection[Choice] | None = None,
) -> Asked:
    """`count` constitutions a query, each two of which differ, of `only` these combinations."""
    rng = stream(key, "constitutions")
    choices = tuple(draw(principles, count, rng, only=only) for _ in queries)
    return Asked(choices, _prompts(queries, choices, principles, prompt, key, "asked"))


def answered(
    lm: Any,
    queries: Sequence[str],
    principles: Sequence[Principle],
    prompt: Prompt,
    *,
    settings: SamplingSettings,
    key: Any,
    count: int = 2,
    only: Collection[Choice] | None = None,
    shuffle: bool = False,
) -> tuple[list[Square], float]:
    """Squares of the policy's own answers, their prompts in a new order of principles, and the share of queries kept.

    A query is left out when two of its answers are equal, or one is empty or was cut off. `shuffle`: the answers of a
    query are dealt to its constitutions at random, a control from which nothing can be learnt.
    """
    asked = draw_asked(queries, principles, prompt, key, count=count, only=only)
    found = asked.answers(lm, settings, key)
    prompts = _prompts(queries, asked.choices, principles, prompt, key, "trained")
    rng = stream(key, "shuffle")
    squares = []
    for own, answers in zip(prompts, found):
        texts = {answer.text.strip() for answer in answers}
        if len(texts) == count and "" not in texts and all(answer.finish_reason != "length" for answer in answers):
            order = rng.permutation(count) if shuffle else range(count)
            squares.append(squared(lm, own, [answers[k] for k in order]))
    return squares, len(squares) / len(queries)


def squared(lm: Any, prompts: Sequence[str], answers: Sequence[Completion]) -> Square:
    """The square of one query."""
    return square([encode_prompt(lm, text) for text in prompts], [answer.ids for answer in answers], lm.eos_ids)


def _prompts(
    queries: Sequence[str],
    choices: Sequence[Sequence[Choice]],
    principles: Sequence[Principle],
    prompt: Prompt,
    *key: Any,
) -> tuple[tuple[str, ...], ...]:
    rng = stream(*key, "order")

    def one(query: str, choice: Choice) -> str:
        return prompt(query, constitution(principles, choice, shuffled(len(principles), rng)))

    return tuple(tuple(one(query, choice) for choice in own) for query, own in zip(queries, choices))
