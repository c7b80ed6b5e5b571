"""A judgement as a unit of training: which completions take part, how high each stands, and their tokens.

Knows: the relations of a judgement. Does not know: losses, files.
"""

from __future__ import annotations

from optative.data.records import BothBad, Judgement, Labels, Ratings, levels
from optative.generators.language.model import LanguageModel
from optative.generators.language.tokens import Truncation, TruncationCounts, encode_group
from optative.optimizers.units import Unit


def is_comparison(judgement: Judgement) -> bool:
    """Does it say anything about at least one of its completions?"""
    return isinstance(judgement.relation, BothBad) or any(h is not None for h in levels(judgement.relation))


def encode_unit(
    lm: LanguageModel, judgement: Judgement, rule: Truncation, counts: TruncationCounts | None = None
) -> Unit:
    """The tokens of the completions that were judged, and their heights. Two bad answers count as two labels.

    Raises PromptTooLong where the prompt leaves no room for an answer.
    """
    relation = judgement.relation
    bad = isinstance(relation, BothBad)
    heights: list[float | None] = [0.0] * len(judgement.completions) if bad else levels(relation)
    judged = [(completion, h) for completion, h in zip(judgement.completions, heights) if h is not None]
    group = encode_group(lm, judgement.prompt, tuple(c for c, _ in judged), truncation=rule, counts=counts)
    strength = judgement.strength
    if strength is None and not isinstance(relation, Ratings):
        strength = 0.0
    return Unit(
        judgement.id,
        group,
        tuple(h for _, h in judged),
        labelled=bad or isinstance(relation, Labels),
        strength=strength,
        confidence=1.0 if judgement.confidence is None else float(judgement.confidence),
    )
