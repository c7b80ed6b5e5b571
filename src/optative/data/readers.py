"""Read a file of preferences into judgements, and say everything that was odd.

Knows: physical and logical formats together, `on_bad_record`, what counts as a duplicate. Does not know: models, caches
(`table` keeps what was read on disk).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from optative.core.errors import InputError, InputErrors
from optative.data import formats
from optative.data.counts import Counts
from optative.data.files import Record, Source, source
from optative.data.messages import says_nothing
from optative.data.records import Fingerprint, Judgement, Order, Ratings, Text, levels, pairs, ties, with_id
from optative.data.rows import BadMeaning, BadStructure, Row, blank
from optative.data.seen import Seen

OnBadRecord = Literal["error", "skip"]
SHOWN_ERRORS = 20
_PEEKED = 64  # records looked at before the format is told


class DataWarning(UserWarning):
    """Something in a data file is probably not what its owner wants."""


class Numbered(NamedTuple):
    """A judgement, the line (or row) of its first record, and the digest of its content."""

    line: int
    judgement: Judgement
    digest: bytes


class Reading:
    """One pass over a file. Iterate once; `counts` and `fingerprint` are complete after the last judgement.

    All faults of structure, and with `on_bad_record="error"` those of meaning, are raised together as one InputErrors
    at the end of the pass; after the first fault no judgement is given any more. Use `list(reading)`, or
    `table.build`, before anything is done with a judgement.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        on_bad_record: OnBadRecord = "error",
        score: str | None = None,
    ):
        if on_bad_record not in ("error", "skip"):
            raise InputError("unknown way", field="on_bad_record", found=on_bad_record, expected="error or skip")
        self.source: Source = source(path)
        self.on_bad_record, self.score = on_bad_record, score
        self.counts = Counts()
        self.columns: dict[str, None] = {}
        self._fingerprint, self._contents, self._ids = Fingerprint(), Seen(), Seen()
        self._faults: list[InputError] = []
        self._num_faults, self._broken = 0, False
        self._records, peeked = self._peek()
        self.format = formats.named(format) if format is not None else formats.detect(peeked)
        formats.check_score(self.format, score)
        self._form = formats.FORMATS[self.format]
        self._note_columns(peeked[0])
        self._options = formats.Options(score, self.counts)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint.hexdigest()

    def __iter__(self) -> Iterator[Judgement]:
        return (numbered.judgement for numbered in self.numbered())

    def numbered(self) -> Iterator[Numbered]:
        """The judgements with their lines. Raises InputErrors at the end."""
        waiting: list[tuple[int, Judgement]] = []
        for line, judgement in self._parsed():
            if self._form.joins:
                if waiting and waiting[0][1].prompt != judgement.prompt:
                    yield from self._finish(waiting)
                    waiting = []
                waiting.append((line, judgement))
            else:
                yield from self._finish([(line, judgement)])
        if waiting:
            yield from self._finish(waiting)
        self._raise_faults()
        warn(self.counts, self.source.path)

    def _peek(self) -> tuple[Iterator[Record], list[Row]]:
        """The records, and the first of them that are whole. With none of these the format cannot be told."""
        records = self.source.rows()
        first: list[Record] = []
        try:
            first.extend(islice(records, _PEEKED))  # keeps what came before a fault that ends the stream
        except InputError as error:
            self._fault(error)
        rows = [r for r in first if isinstance(r, Row)]
        if not rows:
            for record in chain(first, records if not self._num_faults else ()):
                if isinstance(record, InputError):
                    self._fault(record)
            self._raise_faults()
            raise InputError("no records", file=self.source.path, expected="at least one")
        if self._num_faults:
            # The stream ended in a fault that hides the rest; say so now, with whatever else is known.
            for record in first:
                if isinstance(record, InputError):
                    self._fault(record)
            self._raise_faults()
        return chain(first, records), rows

    def _note_columns(self, first: Row) -> None:
        for column, known in formats.misspelt(first.value, self.format).items():
            self.counts.note("misspelt_column", None, column, f"kept as meta; the nearest known is {known!r}")
        if self.source.other_splits:
            others = ", ".join(self.source.other_splits)
            message = f"read {self.source.split}, not {others}"
            self.counts.note("other_splits", None, None, message, len(self.source.other_splits))

    def _parsed(self) -> Iterator[tuple[int, Judgement]]:
        counts, score_options = self.counts, self._options
        try:
            for record in self._records:
                counts.records += 1
                if isinstance(record, Row):
                    self.columns.update(dict.fromkeys(record.value))
                    try:
                        judgement = self._form.parse(record, score_options)
                        self._examine(record, judgement)
                    except (BadMeaning, BadStructure) as error:
                        self._refuse(error)
                    else:
                        if not self._num_faults:
                            yield record.line, judgement
                else:
                    self._refuse(record)
        except InputError as error:
            self._fault(error)

    def _refuse(self, error: BadMeaning | BadStructure) -> None:
        if isinstance(error, BadMeaning):
            self.counts.skipped += 1
            self.counts.note(error.kind, error.line, error.field, _without_place(error))
            if self.on_bad_record == "skip":
                return
        self._fault(error)

    def _fault(self, error: InputError) -> None:
        self._num_faults += 1
        self._broken |= not isinstance(error, BadMeaning)
        if len(self._faults) < SHOWN_ERRORS:
            self._faults.append(error)

    def _raise_faults(self) -> None:
        if not self._num_faults:
            return
        faults = sorted(self._faults, key=lambda e: e.line or 0)
        more = self._num_faults - len(faults)
        summary = [f"  ... and {more} more."] if more else []
        if not self._broken:
            summary.append("  on_bad_record=skip leaves such records out, counted and shown.")
        raise InputErrors(faults, "\n".join(summary))

    def _examine(self, row: Row, judgement: Judgement) -> None:
        """Refuse a pair that says nothing, and count what is odd about the rest."""
        answers, line, note = judgement.completions, row.line, self.counts.note
        heights = levels(judgement.relation)
        strict_pair = len(answers) == 2 and len(heights) == 2 and heights[0] != heights[1] and None not in heights
        if self.format == "optative":  # the other formats refuse empty answers while they are parsed
            for i, answer in enumerate(answers):
                if says_nothing(answer):
                    if strict_pair:
                        raise row.meaning("empty", "empty answer", f"completions[{i}]")
                    note("empty", line, f"completions[{i}]", "empty answer; kept, for it was judged")
        if strict_pair and answers[0] == answers[1]:
            field = "rejected" if "rejected" in self._form.required else None
            raise row.meaning("identical", "the two answers are identical, and yet one is preferred", field)
        if not self._form.joins:
            self._note_answers(line, judgement)
        self._note_prompt(line, judgement.prompt)
        if judgement.strength is not None and judgement.strength < 0:
            note("negative_strength", line, "strength", f"{judgement.strength:g}")

    def _note_answers(self, line: int, judgement: Judgement) -> None:
        answers, note = judgement.completions, self.counts.note
        if len(answers) > 1:
            if same := sum(answer in answers[:i] for i, answer in enumerate(answers)):
                note("identical", line, None, f"{same} of {len(answers)} answers repeat another; kept", same)
            elif len({"".join(_said(a).split()) for a in answers}) < len(answers):
                note("nearly_identical", line, None, "two answers differ only in blanks")
        for answer in answers:
            if isinstance(answer, str) and answer.startswith(('[{"role"', "[{'role'", '[{"content"', "[{'content'")):
                note("looks_encoded", line, None, answer[:40])

    def _note_prompt(self, line: int, prompt: Text) -> None:
        if isinstance(prompt, str):
            if blank(prompt) and self.format != "language_modelling":
                self.counts.note("empty_prompt", line, "prompt", "empty")
            return
        if not any(turn["role"] == "user" for turn in prompt):
            self.counts.note(
                "no_user_turn", line, "prompt", f"only {', '.join(turn['role'] for turn in prompt) or 'nothing'}"
            )
        elif prompt[-1]["role"] == "assistant":
            self.counts.note("after_answer", line, "prompt", "ends with the assistant")

    def _finish(self, parts: list[tuple[int, Judgement]]) -> Iterator[Numbered]:
        """Name, count and give one judgement."""
        counts = self.counts
        line = parts[0][0]
        judgement = formats.join([part for _, part in parts]) if self._form.joins else parts[0][1]
        if self._form.joins:
            self._note_answers(line, judgement)
        relation = judgement.relation
        if isinstance(relation, (Order, Ratings)) and len(judgement.completions) > 0 and self._form.compares:
            heights = levels(relation)
            if missing := len(judgement.completions) - sum(h is not None for h in heights):
                counts.note("unrated", line, None, f"{missing} of {len(judgement.completions)} answers", missing)
            if len(judgement.completions) == 1:
                counts.note("nothing_to_compare", line, None, "one answer")
        if tied := ties(judgement):
            counts.note("ties", line, None, f"{tied} tied pair{'s' if tied > 1 else ''}", tied)
        counts.pairs += len(pairs(judgement))
        counts.judgements += 1
        digest = bytes.fromhex(judgement.fingerprint)
        first = self._contents.add(digest, line)
        if first is not None:
            counts.note("duplicates", line, None, f"the same as line {first}")
        judgement = self._with_unique_id(judgement, digest, line, first is not None)
        self._fingerprint.add(judgement.id, digest)
        yield Numbered(line, judgement, digest)

    def _with_unique_id(self, judgement: Judgement, digest: bytes, line: int, repeated: bool) -> Judgement:
        """The id of the file, or one made of the content; a repeated one gets the ordinal of its judgement added."""
        given = judgement.id
        if not given:
            ordinal = f"#{self.counts.judgements}" if repeated else ""
            return with_id(judgement, digest.hex()[:16] + ordinal)
        id = given
        while (first := self._ids.add(hashlib.sha256(id.encode()).digest(), line)) is not None:
            if id == given:
                self.counts.note("repeated_ids", line, "id", f"{given!r} first seen in line {first}")
            id = f"{id}#{self.counts.judgements}"
        return judgement if id == given else with_id(judgement, id)


def read(
    path: str | Path, *, format: str | None = None, on_bad_record: OnBadRecord = "error", score: str | None = None
) -> Reading:
    """Open a file or folder of preferences (docs/data.md lists the formats).

    `format`: a name of `formats.FORMATS`; None detects it from the columns. `score`: which number rates an answer,
    where a format has several. Raises InputError at once if there is no such file, no record, or no format that fits.

    >>> reading = read("pairs.jsonl")                                                               # doctest: +SKIP
    >>> judgements = list(reading); print(reading.counts.summary())                                 # doctest: +SKIP
    """
    return Reading(path, format=format, on_bad_record=on_bad_record, score=score)


def warn(counts: Counts, path: Path) -> None:
    """One warning where a file is likely to steer the wrong way although it reads well."""
    if found := counts.kinds["score_differs"]:
        first = next(o for o in counts.odd if o.kind == "score_differs")
        more = f" ({found - 1} more such answers)" if found > 1 else ""
        message = f"{path}:{first.line}: {first.field} is {first.message}{more}; the default score, the mean, is safer"
        warnings.warn(message, DataWarning, stacklevel=2)


def _said(answer: Text) -> str:
    """An answer as one string, for comparing answers but for their blanks."""
    if isinstance(answer, str):
        return answer
    parts = ((turn.get("content") or "", {k: v for k, v in turn.items() if k != "content"}) for turn in answer)
    return "\n".join(f"{content} {rest}" for content, rest in parts)


def _without_place(error: InputError) -> str:
    """The message of an error without file, line and field, which are kept beside it."""
    found: list[Any] = [] if error.found is None else [f"found {error.found!r}"[:80]]
    return "; ".join([error.message, ", ".join(found)]) if found else error.message
