"""The records that flow: prompts, completions and what somebody thought of them.

Knows: judgements, their relations, the strict pairs and ties inside them, their JSON and their content fingerprints.
Does not know: files, formats of other tools, models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

from optative.core.errors import InputError, unknown

Text = str | list[dict[str, Any]]
"""A plain string (standard), or a conversation: messages with `role`, `content` and whatever else they carry."""


@dataclass(frozen=True, slots=True)
class Order:
    """Completions by preference: best group first, ties share a group; an index in no group is unranked.

    `Order(((0,),))` is a demonstration (one completion, nothing compared) and `Order(())` a prompt alone.
    """

    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class BothBad:
    """None of the completions is acceptable."""


@dataclass(frozen=True, slots=True)
class Incomparable:
    """Whoever judged could not compare the completions; not the same as a tie."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Good (True) or bad (False), one per completion."""

    values: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Ratings:
    """One number per completion, higher is better; None is unrated, which is not zero."""

    values: tuple[float | None, ...]


Relation = Order | BothBad | Incomparable | Labels | Ratings


@dataclass(frozen=True, slots=True)
class Judgement:
    """One prompt, k completions, and how they relate. `strength` >= 0 is how much better the better one is, in the
    units of its source; `confidence` is the probability that the relation is right; `shown_first` an index."""

    id: str
    prompt: Text
    completions: tuple[Text, ...]
    relation: Relation
    strength: float | None = None
    confidence: float | None = None
    aspects: dict[str, Any] | None = None
    rationale: str | None = None
    annotator: str | None = None
    source: str | None = None
    shown_first: int | None = None
    seconds: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The full record as plain JSON values, every field present."""
        record: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        record["completions"] = list(self.completions)
        record["relation"] = relation_to_json(self.relation)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Judgement:
        """The judgement of a full record. Raises InputError naming the field."""
        for key in record:
            if key not in FIELDS:
                raise InputError(unknown("field", key, FIELDS), field=key)
        for key in ("prompt", "completions", "relation"):
            if record.get(key) is None:
                raise InputError("missing", field=key)
        if not isinstance(record["completions"], (list, tuple)):
            raise InputError("wrong type", field="completions", found=record["completions"], expected="a list")
        values = dict(record)
        _check_text(values["prompt"], "prompt")
        for i, completion in enumerate(values["completions"]):
            _check_text(completion, f"completions[{i}]")
        values["completions"] = tuple(values["completions"])
        values["relation"] = relation_from_json(values["relation"], len(values["completions"]))
        for key in ("strength", "confidence", "seconds"):
            if values.get(key) is not None:
                values[key] = _number(values[key], key)
        if values.get("confidence") is not None and not 0 <= values["confidence"] <= 1:
            raise InputError("out of range", field="confidence", found=values["confidence"], expected="0 to 1")
        shown = values.get("shown_first")
        if shown is not None and (type(shown) is not int or not 0 <= shown < len(values["completions"])):
            raise InputError(
                "no such completion", field="shown_first", found=shown, expected="the index of a completion"
            )
        for key in ("rationale", "annotator", "source"):
            if values.get(key) is not None and not isinstance(values[key], str):
                raise InputError("wrong type", field=key, found=values[key], expected="a string")
        for key in ("aspects", "meta"):
            if values.get(key) is not None and not isinstance(values[key], dict):
                raise InputError("wrong type", field=key, found=values[key], expected="an object")
        values["meta"] = values.get("meta") or {}
        if values.get("id") is None:
            values["id"] = ""
        elif isinstance(values["id"], bool) or not isinstance(values["id"], (str, int)):
            raise InputError("wrong type", field="id", found=values["id"], expected="a string or a whole number")
        values["id"] = str(values["id"])
        made = cls(**values)
        return made if made.id else with_id(made, made.fingerprint[:16])

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what was judged and how: every field but `id` and `meta`."""
        return hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """The canonical bytes behind `fingerprint`."""
        record = self.to_json()
        del record["id"], record["meta"]
        return _canonical({k: v for k, v in record.items() if v is not None}).encode("utf-8")


FIELDS = tuple(f.name for f in fields(Judgement))
# As `core.ids.canonical_json` writes it; an encoder made once is several times faster on a million records.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Pair:
    """A strict preference between two completions. `source_line`: physical line or row it was read from."""

    prompt: Text
    chosen: Text
    rejected: Text
    strength: float | None = None
    confidence: float | None = None
    id: str = ""
    source_line: int | None = None


class Fingerprint:
    """The fingerprint of a data set, built record by record: ids and contents, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, id: str, content_digest: bytes) -> None:
        name = id.encode("utf-8", "surrogatepass")
        self._hash.update(len(name).to_bytes(4, "little") + name + content_digest)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def fingerprint(judgements: Sequence[Judgement]) -> str:
    """The content fingerprint of a data set: equal for equal records in equal order, whatever file they came from."""
    made = Fingerprint()
    for judgement in judgements:
        made.add(judgement.id, bytes.fromhex(judgement.fingerprint))
    return made.hexdigest()


def with_id(judgement: Judgement, id: str) -> Judgement:
    """The same judgement under another id."""
    return Judgement(id, *(getattr(judgement, name) for name in FIELDS[1:]))


def levels(relation: Relation) -> list[float | None]:
    """A height per completion such that higher is better and equal is a tie; None is out of the comparison."""
    match relation:
        case Order(groups):
            height: dict[int, float] = {i: float(-rank) for rank, group in enumerate(groups) for i in group}
            return [height.get(i) for i in range(max(height, default=-1) + 1)]
        case Labels(values):
            return [float(v) for v in values]
        case Ratings(values):
            return list(values)
    return []


def pairs(judgement: Judgement, line: int | None = None) -> list[Pair]:
    """The strict pairs, best first. Ties, both_bad, incomparable and unrated completions give none, nor do two equal
    texts. The strength is the judgement's own or, for ratings, the gap between the two."""
    heights = levels(judgement.relation)
    ranked = sorted((-height, i) for i, height in enumerate(heights) if height is not None)
    found = []
    for (high, a), (low, b) in combinations(((-height, i) for height, i in ranked), 2):
        if high == low or judgement.completions[a] == judgement.completions[b]:
            continue
        strength = judgement.strength
        if strength is None and isinstance(judgement.relation, Ratings):
            strength = high - low
        name = judgement.id if len(judgement.completions) == 2 else f"{judgement.id}/{a}>{b}"
        chosen, rejected = judgement.completions[a], judgement.completions[b]
        found.append(Pair(judgement.prompt, chosen, rejected, strength, judgement.confidence, name, line))
    return found


def ties(judgement: Judgement) -> int:
    """Pairs of completions that were judged equally good. Labels say nothing about two answers of one label."""
    if isinstance(judgement.relation, Labels):
        return 0
    heights = [h for h in levels(judgement.relation) if h is not None]
    return sum(heights.count(h) * (heights.count(h) - 1) // 2 for h in set(heights))


def relation_to_json(relation: Relation) -> Any:
    match relation:
        case Order(groups):
            return {"order": [list(g) for g in groups]}
        case Labels(values):
            return {"labels": list(values)}
        case Ratings(values):
            return {"ratings": list(values)}
        case BothBad():
            return "both_bad"
    return "incomparable"


def relation_from_json(value: Any, k: int) -> Relation:
    """The relation over `k` completions. Raises InputError naming the part of `relation` that is wrong."""
    if value == "both_bad":
        return BothBad()
    if value == "incomparable":
        return Incomparable()
    expected = 'one of {"order": [[0], [1]]}, {"labels": [...]}, {"ratings": [...]}, "both_bad", "incomparable"'
    if not isinstance(value, dict) or len(value) != 1 or not isinstance(next(iter(value.values())), (list, tuple)):
        raise InputError("not a relation", field="relation", found=value, expected=expected)
    ((kind, items),) = value.items()
    at = f"relation.{kind}"
    if kind == "order":
        groups = tuple(tuple(g) if isinstance(g, (list, tuple)) else (g,) for g in items)
        indices = [i for g in groups for i in g]
        if any(type(i) is not int or not 0 <= i < k for i in indices) or len(set(indices)) != len(indices):
            raise InputError("not an order", field=at, found=items, expected=f"each index below {k} at most once")
        if not all(groups):
            raise InputError("an empty group", field=at, found=items)
        return Order(groups)
    if kind not in ("labels", "ratings"):
        raise InputError("not a relation", field="relation", found=value, expected=expected)
    if len(items) != k:
        raise InputError("wrong length", field=at, found=items, expected=f"one value per completion, {k}")
    if kind == "labels":
        if not all(type(v) is bool for v in items):
            raise InputError("wrong type", field=at, found=items, expected="true or false for each completion")
        return Labels(tuple(items))
    return Ratings(tuple(None if v is None else _number(v, f"{at}[{i}]") for i, v in enumerate(items)))


def _number(value: Any, at: str) -> float:
    # The upper bound keeps a whole number that no float can hold from raising OverflowError.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300 or math.isnan(value):
        raise InputError("wrong type", field=at, found=value, expected="a number")
    return float(value)


def _check_text(value: Any, at: str) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise InputError("wrong type", field=at, found=value, expected="a string or a list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(
                "not a message", field=f"{at}[{i}]", found=message, expected="an object with role and content"
            )
