"""Judgements of a model's own answers by the objective's rules.

Knows: completions of one prompt and a checker. Does not know: how answers were made, what is trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optative.core.ids import content_hash
from optative.data.records import Judgement, Ratings, Text

Verdicts = Sequence[Any]  # objects with `kind`, `followed`, `why`


def judge(
    prompt: Text,
    completions: Sequence[str],
    check: Callable[[str], Verdicts],
    *,
    annotator: str,
    meta: dict[str, Any] | None = None,
) -> Judgement:
    """Rate each completion with the share of its checks that it passes, 0 to 1; the verdicts travel in `aspects`.

    A truncated or empty answer is judged like any other: an empty one passes nothing.
    """
    verdicts = [check(text) for text in completions]
    ratings = tuple(sum(v.followed for v in own) / len(own) if own else None for own in verdicts)
    return Judgement(
        id=content_hash([prompt, list(completions)])[:16],
        prompt=prompt,
        completions=tuple(completions),
        relation=Ratings(ratings),
        strength=None,
        confidence=None,
        aspects={"checks": [[{"kind": v.kind, "followed": v.followed, "why": v.why} for v in own] for own in verdicts]},
        rationale=None,
        annotator=annotator,
        source="rule",
        shown_first=None,
        seconds=None,
        meta=meta or {},
    )
