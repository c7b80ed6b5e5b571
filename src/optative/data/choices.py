"""Multiple choice from real texts: which of several continuations is the one that was written?

Knows: texts that are cut into a beginning and a rest (`openings`). Does not know: tokens, models, how one is scored.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from optative.core.errors import InputError
from optative.core.rng import stream


@dataclass(frozen=True, slots=True)
class Choice:
    """`options[answer]` is what was written after `prompt`; `source`: what the text comes from."""

    prompt: str
    options: tuple[str, ...]
    answer: int
    source: str


def continuations(texts: Sequence[tuple[str, str, str]], *, options: int, words: int, key: Hashable) -> list[Choice]:
    """One item for each text (first words, rest, source): the next `words` words of it among those of other texts.

    All options have equally many words, so that length says nothing. Other options and the place of the right one are
    drawn by (`key`, prompt). Raises InputError when there are too few texts to draw from, or one that is too short.
    """
    rests = [rest.split()[:words] for _, rest, _ in texts]
    if short := [first for (first, _, _), rest in zip(texts, rests) if len(rest) < words]:
        raise InputError("a text is too short", field="words", found=short[0], expected=f"{words} words to go on with")
    whole = [" " + " ".join(rest) for rest in rests]
    if len(set(whole)) < options:
        raise InputError("too few different texts", field="options", found=len(set(whole)), expected=f"{options}")
    found = []
    for (first, _, source), right in zip(texts, whole):
        rng = stream(key, "continuations", first)
        own = [right]
        while len(own) < options:
            other = whole[int(rng.integers(len(whole)))]
            if other not in own:
                own.append(other)
        order = rng.permutation(options)
        found.append(Choice(first, tuple(own[i] for i in order), int(order.argmin()), source))
    return found
