"""What was found while a file was read: numbers of everything odd, and the first lines of each kind.

Knows: kinds of oddities. Does not know: how they were found.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

REFUSED = {
    "identical": "chosen and rejected are identical",
    "empty": "an answer, or the prompt, is empty",
    "border": "prompt and answer cannot be told apart",
    "no_answer": "ends without an answer of the assistant",
    "bad_value": "a number or label that is none",
    "broken_text": "not valid Unicode",
    "contradiction": "the chosen answer has the lower score",
}
"""Faults of meaning: an error, or skipped and counted, by `on_bad_record`. In lists of more than two answers, and in
ties, identical answers are only counted."""

NOTED = {
    "duplicates": "the same judgement as an earlier one; kept",
    "ties": "pairs judged equally good; they give no preference",
    "unrated": "answers without a rating or rank; left out of pairs",
    "repeated_ids": "an id that an earlier record has; a number was added to it",
    "empty_prompt": "the prompt is empty",
    "no_user_turn": "the prompt has no user turn",
    "after_answer": "the prompt ends with a turn of the assistant",
    "nearly_identical": "the answers differ only in blanks",
    "nothing_to_compare": "one answer alone, where answers are compared",
    "looks_encoded": "a string that holds the JSON of messages",
    "score_differs": "overall_score is far from the mean of the aspect ratings",
    "negative_strength": "a strength below zero on a preferred answer",
    "misspelt_column": "a column that is close to a known one; kept as meta",
    "other_splits": "splits of the data set that were not read",
}
KINDS = {**REFUSED, **NOTED}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Odd:
    """One oddity. `line`: where the record starts; None when it is about the whole file."""

    kind: str
    line: int | None
    field: str | None
    message: str


@dataclass
class Counts:
    """`records` were read from the file; `skipped` of them were refused; the rest made `judgements` (several records
    make one where a format spreads it over rows). `pairs`: strict preferences inside them."""

    records: int = 0
    judgements: int = 0
    skipped: int = 0
    pairs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    odd: list[Odd] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.records - self.skipped

    def note(self, kind: str, line: int | None, field: str | None, message: str, count: int = 1) -> None:
        """Count an oddity; the first few of each kind are kept with their line."""
        assert kind in KINDS, kind
        if self.kinds[kind] < SHOWN:
            self.odd.append(Odd(kind, line, field, message))
        self.kinds[kind] += count

    def numbers(self) -> dict[str, int]:
        """All counts, zero ones too."""
        first = {"judgements": self.judgements, "kept": self.kept, "skipped": self.skipped, "pairs": self.pairs}
        return first | {kind: self.kinds[kind] for kind in KINDS}

    def to_json(self) -> dict[str, Any]:
        return {"records": self.records, "counts": self.numbers(), "odd": [asdict(o) for o in self.odd]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counts:
        numbers = value["counts"]
        kinds = Counter({k: n for k, n in numbers.items() if k in KINDS and n})
        odd = [Odd(**o) for o in value["odd"]]
        return cls(value["records"], numbers["judgements"], numbers["skipped"], numbers["pairs"], kinds, odd)

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """A few lines for a person: what was read, and each kind of oddity with its first lines."""
        made = f"{self.judgements} judgements, {self.pairs} pairs"
        out = [f"{self.records} read, {self.kept} kept, {self.skipped} refused; {made}"]
        for kind, meaning in KINDS.items():
            if self.kinds[kind]:
                out.append(f"  {self.kinds[kind]} {kind.replace('_', ' ')}: {meaning}")
                out += [f"    {_where(o)}{o.message}" for o in self.odd if o.kind == kind]
        return "\n".join(out)


def _where(odd: Odd) -> str:
    return "".join([f"line {odd.line}: " if odd.line is not None else "", f"{odd.field}: " if odd.field else ""])
