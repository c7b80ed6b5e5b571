"""Two answers, and the request repeated first.

Known faults of the published rules: a longer row of stars divides too, and answers that differ in one blank or capital
are different; a request repeated in other letters passes, and needs no answer after it.
"""

from __future__ import annotations

import re

from optative.objectives.instructions.kinds.base import Kind, Params, Verdict, phrase
from optative.objectives.instructions.text import has_word, words


def _two(answer: str, p: Params) -> Verdict:
    parts = re.split(r"(?<!\*)\*{6}(?!\*)", answer)
    if any(not has_word(part) for part in parts[1:-1]):
        return Verdict(False, "nothing stands between two dividers")
    said = [[word.casefold() for word in words(part)] for part in parts if has_word(part)]
    if len(said) != 2:
        return Verdict(False, f"found {len(said)} answers divided by ******, needed 2")
    return Verdict(said[0] != said[1], "two different answers" if said[0] != said[1] else "both answers are the same")


def _two_published(answer: str, p: Params) -> Verdict:
    parts = answer.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return Verdict(False, "nothing stands between two dividers")
    said = [part.strip() for part in parts if part.strip()]
    if len(said) != 2:
        return Verdict(False, f"found {len(said)} answers divided by ******, needed 2")
    return Verdict(said[0] != said[1], "two different answers" if said[0] != said[1] else "both answers are the same")


def _repeat(answer: str, p: Params) -> Verdict:
    request, said = p["prompt_to_repeat"].split(), answer.split()
    if said[: len(request)] != request:
        return Verdict(False, "does not start with the request, word for word")
    followed = has_word(" ".join(said[len(request) :]))
    return Verdict(followed, "repeats the request, then answers" if followed else "repeats the request without answer")


def _repeat_published(answer: str, p: Params) -> Verdict:
    followed = answer.strip().lower().startswith(p["prompt_to_repeat"].strip().lower())
    return Verdict(followed, "starts with the request" if followed else "does not start with the request")


KINDS = (
    Kind(
        id="combination:two_responses",
        params={},
        wordings=(
            "Give two different answers and put six asterisks (******) between them.",
            "Write two versions that are not the same. Only ****** stands between the first and the second.",
            "Answer twice, in two different ways, with a line of six stars (******) as the divider.",
            "I want two different replies, with ****** between them and nowhere else.",
        ),
        draw=lambda rng, topic: {},
        strict=_two,
        published=_two_published,
    ),
    Kind(
        id="combination:repeat_prompt",
        params={"prompt_to_repeat": phrase()},
        wordings=(
            "First repeat the request above word for word, without a change, then answer it. Write nothing before it.",
            "Begin by copying the request above exactly as it stands; after that give your answer.",
            "Start your reply with the exact words of the request above. Only then give the answer.",
            "Before you answer, say the request above again word for word. Nothing may come before it.",
        ),
        draw=lambda rng, topic: {"prompt_to_repeat": topic.task},
        strict=_repeat,
        published=_repeat_published,
    ),
)
