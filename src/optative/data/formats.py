"""Logical formats: which columns mean what.

Knows: the formats of the field (`FORMATS`), how one is told from its columns, and how a record becomes a judgement.
Does not know: file types, models. Each parser takes a `rows.Row` and raises its faults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from optative.core.errors import InputError, nearest, unknown
from optative.data import messages as m
from optative.data.counts import Counts
from optative.data.records import Judgement, Labels, Order, Ratings, Relation, Text
from optative.data.rows import BadStructure, Row, plain

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
SOURCES = ("human", "judge", "rule", "simulated")
KEPT = (
    "id",
    "strength",
    "margin",
    "confidence",
    "annotator",
    "rationale",
    "source",
    "shown_first",
    "seconds",
    "aspects",
    "meta",
)
"""Optional columns that every format takes; any other column goes to `meta`."""

BETTER, TIED, WORSE = Order(((0,), (1,))), Order(((0, 1),)), Order(((1,), (0,)))
_PROMPT_LIKE = ("instruction", "question", "query", "input", "context")
_EXTRA = {"ultrafeedback": ("mean", "overall_score", "fine-grained_score"), "helpsteer2": ATTRIBUTES}


@dataclass(frozen=True, slots=True)
class Options:
    """What a parser is told. `score`: which number rates an answer; None is the format's own choice."""

    score: str | None
    counts: Counts


@dataclass(frozen=True, slots=True)
class Format:
    """`required`: columns that tell it. `compares`: whether a record with one answer is odd. `joins`: whether
    consecutive records of one prompt make one judgement."""

    required: tuple[str, ...]
    parse: Callable[[Row, Options], Judgement]
    optional: tuple[str, ...] = ()
    compares: bool = True
    joins: bool = False


# Preferences between two answers


def _preference(row: Row, options: Options) -> Judgement:
    prompt, answers = _explicit(row)
    return build(row, ("prompt", "chosen", "rejected"), prompt, answers, BETTER)


def _explicit(row: Row) -> tuple[Text, list[Text]]:
    answers = [m.text(row, "chosen"), m.text(row, "rejected")]
    return m.settle(row, m.text(row, "prompt"), answers, ["chosen", "rejected"])


def _implicit(row: Row, options: Options) -> Judgement:
    chosen, rejected = m.text(row, "chosen"), m.text(row, "rejected")
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not value:
            raise row.meaning("empty", "empty answer", name)
    prompt: Text
    answers: Sequence[Text]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, answers = m.split_strings(row, chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, answers = m.split_conversation(row, chosen, rejected)
    else:
        expected = "a string, as in chosen" if isinstance(chosen, str) else "a list of messages, as in chosen"
        raise row.structure("wrong type", "rejected", found=rejected, expected=expected)
    return build(row, ("chosen", "rejected"), prompt, answers, BETTER)


def _hh(row: Row, options: Options) -> Judgement:
    pair = [row.need("chosen"), row.need("rejected")]
    for name, value in zip(("chosen", "rejected"), pair, strict=True):
        if value is None or value == "":
            raise row.meaning("empty", "empty answer", name)
    chosen, rejected = m.transcript(row, pair[0], "chosen"), m.transcript(row, pair[1], "rejected")
    prompt, answers = m.split_conversation(row, chosen, rejected)
    return build(row, ("chosen", "rejected"), prompt, answers, BETTER)


def _binarized(row: Row, options: Options) -> Judgement:
    prompt, answers = _explicit(row)
    high = row.number(row.get("score_chosen"), "score_chosen")
    low = row.number(row.get("score_rejected"), "score_rejected")
    known = high is not None and low is not None
    if known and high < low:  # type: ignore[operator]
        message = f"the chosen answer has the lower score: {high:g} against {low:g}"
        raise row.meaning("contradiction", message, "score_chosen", found=high, expected=f"at least {low:g}")
    strength = high - low if known else None  # type: ignore[operator]
    used = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "messages")
    relation = TIED if strength == 0 else BETTER
    return build(
        row, used, prompt, answers, relation, strength=strength, aspects={"score": [high, low]} if known else None
    )


def _helpsteer3(row: Row, options: Options) -> Judgement:
    return _signed(row, "context", ("response1", "response2"), "overall_preference", ("individual_preference",))


def _helpsteer2_preference(row: Row, options: Options) -> Judgement:
    kept = ("preference_statement", "preference_elaboration", "all_preferences_unprocessed")
    return _signed(row, "prompt", ("response_1", "response_2"), "preference_strength", kept)


def _signed(row: Row, prompt_name: str, names: tuple[str, str], preference: str, aspects: tuple[str, ...]) -> Judgement:
    """HelpSteer's scale: -3 the first answer is much better, 3 the second; 0 is a tie and stays one."""
    prompt = m.helpsteer_prompt(m.text(row, prompt_name))
    settled, answers = m.settle(row, prompt, [m.text(row, n) for n in names], list(names))
    value = row.number(row.need(preference), preference, -3, 3)
    if value is None:
        raise row.meaning("bad_value", "no preference", preference, found=None, expected="a number from -3 to 3")
    relation = TIED if value == 0 else BETTER if value < 0 else WORSE
    found = {name: row.unpacked(name) for name in aspects if row.get(name) is not None}
    return build(
        row,
        (prompt_name, *names, preference, *aspects),
        settled,
        answers,
        relation,
        strength=abs(value),
        aspects=found or None,
    )


# Rated and ranked lists


def _helpsteer2(row: Row, options: Options) -> Judgement:
    """One response; the reader joins consecutive responses of one prompt into a rated judgement."""
    by = options.score or "helpfulness"
    prompt, answers = m.settle(row, m.helpsteer_prompt(m.text(row, "prompt")), [m.text(row, "response")], ["response"])
    values = {name: row.number(row.get(name), name, 0, 4) for name in ATTRIBUTES if name in row.value}
    if by not in values:
        row.need(by)
    aspects = {name: [value] for name, value in values.items()}
    return build(row, ("prompt", "response", *ATTRIBUTES), prompt, answers, Ratings((values[by],)), aspects=aspects)


def _ultrafeedback(row: Row, options: Options) -> Judgement:
    """Ratings are the mean of the aspect ratings (1 to 5), not `overall_score`, which holds 10 for some answers rated
    1."""
    prompt, items, answers = _list(row, "instruction", "completions", ("response",))
    aspects: dict[str, list[float | None]] = {}
    means: list[float | None] = []
    for i, item in enumerate(items):
        rated: dict[str, float] = {}
        annotations = item.get("annotations") or {}
        if not isinstance(annotations, dict):
            raise row.structure("wrong type", f"completions[{i}].annotations", found=annotations, expected="an object")
        for aspect, annotation in annotations.items():
            at = f"completions[{i}].annotations.{aspect}.Rating"
            given = annotation.get("Rating") if isinstance(annotation, dict) else annotation
            if isinstance(given, str) and given.strip().upper() in ("N/A", "NA", ""):
                given = None
            rating = row.number(given, at, 1, 5)
            aspects.setdefault(aspect, [None] * len(items))[i] = rating
            if rating is not None:
                rated[aspect] = rating
        means.append(fmean(rated.values()) if rated else None)
    by = options.score or "mean"
    values: list[float | None]
    if by == "mean":
        values = means
    elif by in aspects:
        values = aspects[by]
    else:
        if not any(by in item for item in items):
            known = {*_EXTRA["ultrafeedback"], *aspects}
            raise row.structure(unknown("score", by, known), "completions[0]")
        values = [row.number(item.get(by), f"completions[{i}].{by}") for i, item in enumerate(items)]
        if by == "overall_score":
            _compare_scores(row, values, means, options.counts)
    rest = [{k: v for k, v in item.items() if k != "response"} for item in items]
    made = build(row, ("instruction", "completions"), prompt, answers, Ratings(tuple(values)), aspects=aspects or None)
    return _with_meta(made, completions=rest)


def _compare_scores(row: Row, overall: list[float | None], means: list[float | None], counts: Counts) -> None:
    for i, (score, mean) in enumerate(zip(overall, means, strict=True)):
        # Overall scores go from 1 to 10 and aspects from 1 to 5: half of the scale apart is no matter of opinion.
        if score is not None and mean is not None and abs(score - (1 + (mean - 1) * 9 / 4)) > 4.5:
            message = f"{score} against a mean aspect rating of {mean:.2f}"
            counts.note("score_differs", row.line, f"completions[{i}].overall_score", message)


def _scored(row: Row, options: Options) -> Judgement:
    prompt, items, answers = _list(row, "prompt", "responses", ("text", "response", "completion"))
    for i, item in enumerate(items):
        if "score" not in item and (close := nearest("score", item)):
            raise row.structure(f"missing; the nearest is {close!r}", f"responses[{i}].score")
    ratings = tuple(row.number(item.get("score"), f"responses[{i}].score") for i, item in enumerate(items))
    rest = [{k: v for k, v in item.items() if k not in ("text", "response", "completion", "score")} for item in items]
    made = build(row, ("prompt", "responses"), prompt, answers, Ratings(ratings))
    return _with_meta(made, responses=rest) if any(rest) else made


def _ranked(row: Row, options: Options) -> Judgement:
    """Rank 0 is best; equal ranks are a tie; an answer without a rank is left out of the order."""
    prompt, items, answers = _list(row, "context", "completions", ("completion",))
    by_rank: dict[float, list[int]] = {}
    for i, item in enumerate(items):
        if "rank" not in item and (close := nearest("rank", item)):
            raise row.structure(f"missing; the nearest is {close!r}", f"completions[{i}].rank")
        rank = row.number(item.get("rank"), f"completions[{i}].rank")
        if rank is not None:
            by_rank.setdefault(rank, []).append(i)
    order = Order(tuple(tuple(by_rank[rank]) for rank in sorted(by_rank)))
    rest = [{k: v for k, v in item.items() if k not in ("completion", "rank")} for item in items]
    made = build(row, ("context", "completions"), prompt, answers, order)
    return _with_meta(made, completions=rest) if any(rest) else made


def _list(
    row: Row, prompt_name: str, name: str, texts: tuple[str, ...]
) -> tuple[Text, list[dict[str, Any]], list[Text]]:
    """Prompt, items and answers of a column that lists answers."""
    items = row.objects(name)
    if not items:
        raise row.meaning("empty", "no answers", name)
    answers, names = [], []
    for i, item in enumerate(items):
        key = next((t for t in texts if t in item), "")
        if not key:
            close = nearest(texts[0], item)
            # A null is no key (`rows.plain`): an empty answer, unless another key looks like it.
            if close is None:
                raise row.meaning("empty", "empty answer", f"{name}[{i}].{texts[0]}")
            raise row.structure(f"missing; the nearest is {close!r}", f"{name}[{i}].{texts[0]}")
        names.append(f"{name}[{i}].{key}")
        answers.append(m.as_text(row, item[key], names[-1]))
    prompt, settled = m.settle(row, m.text(row, prompt_name), answers, names)
    return prompt, items, settled


# One answer or none


def _unpaired(row: Row, options: Options) -> Judgement:
    prompt, answers = m.settle(row, m.text(row, "prompt"), [m.text(row, "completion")], ["completion"])
    return build(row, ("prompt", "completion", "label"), prompt, answers, Labels((row.truth("label"),)))


def _prompt_completion(row: Row, options: Options) -> Judgement:
    prompt, answers = m.settle(row, m.text(row, "prompt"), [m.text(row, "completion")], ["completion"])
    return build(row, ("prompt", "completion"), prompt, answers, Order(((0,),)))


def _prompt_only(row: Row, options: Options) -> Judgement:
    prompt = m.text(row, "prompt")
    if prompt is None or not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise row.meaning("empty", "empty prompt", "prompt")
    return build(row, ("prompt",), prompt, [], Order(()))


def _text_or_messages(row: Row, options: Options) -> Judgement:
    """Text is all answer; a conversation is split before the first turn of the assistant."""
    name = "messages" if "messages" in row.value else "text"
    value = m.text(row, name)
    if isinstance(value, list):
        first = next((i for i, turn in enumerate(value) if turn["role"] == "assistant"), None)
        if first is None:
            raise row.meaning("no_answer", "no turn of the assistant", name)
        m.check_answer(row, value[first:], name)
        return build(row, (name,), value[:first], [value[first:]], Order(((0,),)))
    if name == "messages" and value is not None:
        raise row.structure("wrong type", name, found=value, expected="a list of messages")
    prompt, answers = m.settle(row, "", [value], [name])
    return build(row, (name,), prompt, answers, Order(((0,),)))


def _full(row: Row, options: Options) -> Judgement:
    """Optative's own records, as `Judgement.to_json` writes them; string answers to messages become messages."""
    record = dict(row.value)
    for name in ("completions", "relation", "aspects", "meta"):
        if isinstance(record.get(name), str) and record[name][:1] in ("[", "{"):
            record[name] = row.unpacked(name)
    try:
        record["prompt"] = m.text(row, "prompt")
        if isinstance(record.get("completions"), list):
            texts = [m.as_text(row, c, f"completions[{i}]") for i, c in enumerate(record["completions"])]
            if isinstance(record["prompt"], list):
                texts = [[{"role": "assistant", "content": t}] if isinstance(t, str) else t for t in texts]
            record["completions"] = texts
        return Judgement.from_json(record)
    except InputError as error:
        if error.file is not None:
            raise
        details = (
            {"expected": error.expected} if error.found is None else {"found": error.found, "expected": error.expected}
        )
        raise row.structure(error.message, error.field, **details) from None


FORMATS: Mapping[str, Format] = {
    "optative": Format(("prompt", "completions", "relation"), _full, compares=False),
    "helpsteer3": Format(
        ("context", "response1", "response2", "overall_preference"), _helpsteer3, ("individual_preference",)
    ),
    "helpsteer2_preference": Format(
        ("prompt", "response_1", "response_2", "preference_strength"), _helpsteer2_preference
    ),
    "helpsteer2": Format(("prompt", "response", "helpfulness"), _helpsteer2, ATTRIBUTES, joins=True),
    "ultrafeedback": Format(("instruction", "completions"), _ultrafeedback),
    "ranked": Format(("context", "completions"), _ranked),
    "scored": Format(("prompt", "responses"), _scored),
    "ultrafeedback_binarized": Format(("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), _binarized),
    "preference": Format(("prompt", "chosen", "rejected"), _preference),
    "hh": Format(("chosen", "rejected"), _hh),
    "implicit_preference": Format(("chosen", "rejected"), _implicit),
    "unpaired": Format(("prompt", "completion", "label"), _unpaired, compares=False),
    "prompt_completion": Format(("prompt", "completion"), _prompt_completion, compares=False),
    "language_modelling": Format(("messages",), _text_or_messages, ("text",), compares=False),
    "prompt_only": Format(("prompt",), _prompt_only, compares=False),
}
"""In the order in which they are tried: what asks for more columns comes first."""

_GENERAL = ("language_modelling", "prompt_only")


def detect(rows: list[Row]) -> str:
    """The format that the columns of the first records tell. Raises BadStructure when none fits, when a column is
    missing beside those of a richer format, or when it is misspelt."""
    columns = {name: None for row in rows for name in row.value}
    first = rows[0]
    alias = next((name for name in _PROMPT_LIKE if name in columns), None)
    if alias and "chosen" in columns and "rejected" in columns and "prompt" not in columns:
        hint = f"Rename it, or name the format if {alias!r} is something else."
        raise first.structure(f"missing; {alias!r} looks like it", "prompt", hint=hint)
    fits = next((name for name, f in FORMATS.items() if all(c in columns for c in f.required)), None)
    if fits in (None, "prompt_only") and "text" in columns:
        fits = "language_modelling"
    if fits == "hh" and not all(m.is_transcript(r.value.get("chosen")) for r in rows if r.value.get("chosen")):
        fits = "implicit_preference"
    strange = [c for c in columns if c not in _KNOWN]
    for candidate, form in FORMATS.items():
        if candidate == fits:
            break
        missing = [c for c in form.required if c not in columns]
        close = {c: _near_miss(c, strange) for c in missing}
        if missing and all(close.values()):
            column = missing[0]
            way_out = f"Correct it, or name the format (`{fits}`) if {close[column]!r} is meant." if fits else None
            raise first.structure(f"missing; the nearest is {close[column]!r}", column, hint=way_out)
    telling = [c for c in columns if c in _TELLING]
    if fits is None or (fits in _GENERAL and telling and "messages" not in columns):
        raise _no_format(first, list(columns))
    return fits


def named(name: str) -> str:
    """The format of that name. Raises InputError naming the nearest."""
    name = name.strip().lower().replace("-", "_")
    if name not in FORMATS:
        raise InputError(unknown("format", name, FORMATS))
    return name


def check_score(form: str, score: str | None) -> None:
    """Refuse a `score` that cannot act."""
    if score is not None and form not in _EXTRA:
        raise InputError(
            "cannot act", field="score", found=score, expected=f"only with the formats {', '.join(_EXTRA)}, not {form}"
        )
    if score is not None and form == "helpsteer2" and score not in ATTRIBUTES:
        raise InputError(unknown("score", score, ATTRIBUTES), field="score")


def misspelt(columns: Iterable[str], form: str) -> dict[str, str]:
    """Columns that go to `meta` although they are close to one that the format knows."""
    known = {*FORMATS[form].required, *FORMATS[form].optional, *KEPT}
    near = {c: _near_miss_of(c, known - set(columns)) for c in columns if c not in known}
    return {c: k for c, k in near.items() if k}


def build(
    row: Row,
    used: Iterable[str],
    prompt: Text,
    completions: Sequence[Text],
    relation: Relation,
    strength: float | None = None,
    aspects: dict[str, Any] | None = None,
) -> Judgement:
    """The judgement, with the optional columns every format takes (`KEPT`); what is left over goes to `meta`."""
    rest = {
        k: v for k, v in row.value.items() if k not in set(used) and v is not None and not (row.textual and v == "")
    }
    id = _id(row, rest.pop("id", None))
    if strength is None and (name := next((n for n in ("strength", "margin") if n in rest), None)):
        strength = row.number(rest.pop(name), name)
    confidence = row.number(rest.pop("confidence", None), "confidence", 0, 1)
    seconds = row.number(rest.pop("seconds", None), "seconds", 0, math.inf)
    shown = row.number(rest.pop("shown_first", None), "shown_first", 0, max(0, len(completions) - 1))
    annotator = rest.pop("annotator", None)
    rationale = rest.pop("rationale") if isinstance(rest.get("rationale"), str) else None
    source = rest.pop("source") if rest.get("source") in SOURCES else None
    if aspects is None and "aspects" in rest:
        aspects = _object(row, rest, "aspects")
    meta = _object(row, rest, "meta") if "meta" in rest else {}
    return Judgement(
        id=id,
        prompt=prompt,
        completions=tuple(completions),
        relation=relation,
        strength=strength,
        confidence=confidence,
        aspects=aspects,
        rationale=rationale,
        annotator=None if annotator is None else str(annotator),
        source=source,
        shown_first=None if shown is None else int(shown),
        seconds=seconds,
        meta=rest | (meta if not set(meta) & set(rest) else {"meta": meta}),
    )


def join(parts: list[Judgement]) -> Judgement:
    """One rated judgement of several single ones that share their prompt."""
    ratings = tuple(part.relation.values[0] for part in parts if isinstance(part.relation, Ratings))
    names = dict.fromkeys(name for part in parts for name in part.aspects or {})
    aspects = {name: [(part.aspects or {}).get(name, [None])[0] for part in parts] for name in names}
    completions = tuple(part.completions[0] for part in parts)
    metas = [part.meta for part in parts]
    meta = {} if not any(metas) else metas[0] if all(x == metas[0] for x in metas) else {"responses": metas}
    return Judgement(parts[0].id, parts[0].prompt, completions, Ratings(ratings), aspects=aspects, meta=meta)


def _id(row: Row, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise row.meaning("bad_value", "not an id", "id", found=value, expected="a string or a whole number")
    return "" if value is None else str(value)


def _object(row: Row, rest: dict[str, Any], name: str) -> dict[str, Any]:
    value = rest.pop(name)
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = plain(json.loads(value))
        except ValueError:
            raise row.structure("not JSON", name, found=value) from None
    return value if isinstance(value, dict) else {name: value}


def _with_meta(judgement: Judgement, **more: Any) -> Judgement:
    judgement.meta.update(more)
    return judgement


_KNOWN = {c for f in FORMATS.values() for c in (*f.required, *f.optional)} | set(KEPT)
_TELLING = {c for name, f in FORMATS.items() if name not in _GENERAL for c in f.required} - {
    "prompt",
    "context",
    "instruction",
}


def _near_miss(column: str, strange: list[str]) -> str | None:
    return next((s for s in strange if _near_miss_of(s, [column])), None)


def _near_miss_of(strange: str, known: Iterable[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(strange.lower(), list(known), n=1, cutoff=0.75)
    return close[0] if close else None


def _no_format(first: Row, columns: list[str]) -> BadStructure:
    def present(form: Format) -> float:
        return sum(c in columns for c in form.required) / len(form.required)

    name = max(
        (n for n in FORMATS if n not in _GENERAL), key=lambda n: (present(FORMATS[n]), -len(FORMATS[n].required))
    )
    found = ", ".join(columns) or "no columns"
    if not present(FORMATS[name]):
        hint = f"Known formats: {', '.join(FORMATS)}."
        return first.structure("the columns fit no known format", None, found=found, hint=hint)
    missing = next(c for c in FORMATS[name].required if c not in columns)
    return first.structure(f"missing; the columns are those of `{name}` without it", missing, found=found)
