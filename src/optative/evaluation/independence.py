"""Who judged, and whether training knew the judge or the prompt.

Knows: names of judges and rules, ids and hashes of prompts. Does not know: models, scores.

Three classes, from strong to worthless:

- `independent`: no judge or rule behind the figure was used in training, neither as a label, a reward nor a loss.
- `same_rule_held_out`: training used one of them, on other prompts. It shows that the rule was learnt beyond the
  training prompts, not that the rule says what people want.
- `seen`: training saw this prompt. It is no evidence and is refused: `split_seen` takes such answers out.

A kind of instruction is a rule, named by its kind, in whatever mode it is checked. A figure over several rules is
`independent` only if all of them are. Where nothing is known about the training (`trained_by` is None), independence
cannot be claimed, and the figure is `same_rule_held_out`. What cannot be seen from here: hyperparameters chosen on the
held-out prompts, and what a base model saw before it was steered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from optative.core.ids import content_hash

Independence = Literal["independent", "same_rule_held_out", "seen"]
BASE_LOGPS = "base_logps"  # the base's log-probabilities as a judge; DPO trains with them as its reference
WORD_COUNTS = "word counts"  # of variety and repetition; pairs in which loops lose train with them


def decide(judges: Collection[str], trained_by: Collection[str] | None) -> Independence:
    """The class of a figure on prompts that training never saw.

    `judges`: names of the rules and judges behind the figure; `trained_by`: those that training used, None if unknown.

    >>> decide({"punctuation:no_comma"}, {"keywords:existence"})
    'independent'
    """
    if trained_by is None or set(judges) & set(trained_by):
        return "same_rule_held_out"
    return "independent"


def prompt_hash(prompt: Any) -> str:
    """Identity of a prompt for hold-outs: a text and a conversation of that one user turn are the same; spaces and case
    do not make a new prompt."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return content_hash([[str(turn.get("role")), _folded(turn.get("content"))] for turn in turns])


def split_seen(
    rows: Sequence[Mapping[str, Any]], trained_ids: Collection[str], trained_hashes: Collection[str] = ()
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The rows whose prompt training never saw, and the ids of those that it saw, by id or by text."""
    ids, hashes = {str(i) for i in trained_ids}, set(trained_hashes)
    kept: list[Mapping[str, Any]] = []
    seen: dict[str, None] = {}
    for row in rows:
        if str(row["id"]) in ids or (hashes and prompt_hash(row["prompt"]) in hashes):
            seen[str(row["id"])] = None
        else:
            kept.append(row)
    return kept, list(seen)


def _folded(content: Any) -> Any:
    return " ".join(content.split()).casefold() if isinstance(content, str) else content
