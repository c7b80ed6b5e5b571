"""Result files and the pairing of their rows: by id, never by position.

Knows: `samples.jsonl` of a run folder (one judged answer a row), plain `{"id", "score"}` JSON lines, which may carry
`answer`, `num_tokens` and `kind`, and a judge's verdicts on two of them. Does not know: what a score means, statistics.

Ids are text; the number 1 and the text "1" are the same id. An id that occurs twice with different scores is an
error, twice with the same it counts once and is reported. Lines end at line feeds only: other separators can stand
inside text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optative.core.errors import InputError, InputErrors
from optative.core.files import read_json

Key = tuple[str, str, int]  # split, id, sample
Verdict = tuple[Key, str | None, str | None]  # item, shown first (a, b, None if unknown), winner (a, b, tie, or none)
PREFERRED = ("steered", "policy", "base")  # whose answers stand for a run folder
MOST_ERRORS = 20


@dataclass(frozen=True)
class Results:
    """The rows of one file or folder, each with `split`, `id`, `sample` and `score`.

    `unscored`: ids without a verdict (a null score), left out of `rows`. `repeated`: rows that say the same twice.
    """

    name: str
    kind: Literal["samples", "scores"]
    rows: tuple[dict[str, Any], ...]
    unscored: tuple[str, ...] = ()
    repeated: int = 0
    model: str | None = None
    manifest: Mapping[str, Any] | None = None

    @property
    def modes(self) -> set[str]:
        return {row["mode"] for row in self.rows if row.get("mode")}


@dataclass(frozen=True)
class Answers:
    """The answers of one split, paired: item i of `base` and of `steered` answers the same prompt.

    `steered` is None where only one model was measured. `ids[i]` is the prompt, which several samples share.
    """

    split: str
    ids: tuple[str, ...]
    base: tuple[Mapping[str, Any], ...]
    steered: tuple[Mapping[str, Any], ...] | None

    @property
    def sides(self) -> dict[str, tuple[Mapping[str, Any], ...]]:
        return {"base": self.base} if self.steered is None else {"base": self.base, "steered": self.steered}


@dataclass(frozen=True)
class Pairing:
    """`other_prompt`: equal ids whose prompts or instructions differ; they are not paired."""

    splits: tuple[Answers, ...]
    only_base: tuple[str, ...]
    only_steered: tuple[str, ...]
    other_prompt: tuple[str, ...]

    @property
    def n(self) -> int:
        return sum(len(answers.ids) for answers in self.splits)


def read_results(path: str | Path) -> Results:
    """Read a run folder (its steered model), the folder of an evaluation, or one result file. Raises InputErrors."""
    path = Path(path)
    if path.is_dir():
        if not (path / "samples.jsonl").is_file():
            raise InputError(
                "holds no samples.jsonl", file=path, hint="Did the run finish? The same command resumes it."
            )
        manifest = path / "manifest.json"
        return _read(path / "samples.jsonl", path.name, read_json(manifest) if manifest.is_file() else None)
    if not path.is_file():
        raise InputError("no such file or folder", file=path)
    return _read(path, path.name, None)


def row_id(given: Any, file: Any = None, line: int | None = None) -> str:
    """The id as text. Raises InputError for what is neither text nor a whole number."""
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise InputError("not an id", file=file, line=line, field="id", found=given, expected="text or a whole number")
    return str(given)


def pair(base: Sequence[Mapping[str, Any]], steered: Sequence[Mapping[str, Any]] | None) -> Pairing:
    """Pair rows by split, id and sample. Raises InputError when one side has a key twice."""
    a = _keyed(base, "base")
    if steered is None:
        return Pairing(_by_split(list(a), a, None), (), (), ())
    b = _keyed(steered, "steered")
    common = [key for key in a if key in b]
    other_prompt = [key for key in common if _question(a[key]) != _question(b[key])]
    same = [key for key in common if key not in set(other_prompt)]
    return Pairing(
        _by_split(same, a, b),
        tuple(label(key) for key in a if key not in b),
        tuple(label(key) for key in b if key not in a),
        tuple(label(key) for key in other_prompt),
    )


def label(key: Key) -> str:
    """How a key is shown: the id, with its sample where that is not the first."""
    return key[1] if key[2] == 0 else f"{key[1]} (sample {key[2]})"


def key_of(row: Mapping[str, Any]) -> Key:
    return str(row.get("split", "all")), row_id(row["id"]), int(row.get("sample", 0))


def answer_of(row: Mapping[str, Any]) -> Any:
    """What was answered, or None where the file does not say."""
    return row.get("completion", row.get("answer"))


def lengths_of(rows: Sequence[tuple[Mapping[str, Any], ...]]) -> list[list[float]] | None:
    """Lengths of the answers of paired rows: tokens where all rows have them, else characters, else None."""
    if all("num_tokens" in row for both in rows for row in both):
        return [[float(row["num_tokens"]) for row in both] for both in rows]
    if all(isinstance(answer_of(row), str) for both in rows for row in both):
        return [[float(len(answer_of(row))) for row in both] for both in rows]
    return None


def _keyed(rows: Sequence[Mapping[str, Any]], side: str) -> dict[Key, Mapping[str, Any]]:
    keyed: dict[Key, Mapping[str, Any]] = {}
    for row in rows:
        key = key_of(row)
        if key in keyed:
            raise InputError(f"{side}: two answers to {label(key)} of {key[0]}; one a sample is expected", field="id")
        keyed[key] = row
    return keyed


def _by_split(
    keys: Sequence[Key], a: Mapping[Key, Mapping[str, Any]], b: Mapping[Key, Mapping[str, Any]] | None
) -> tuple[Answers, ...]:
    splits: dict[str, list[Key]] = {}
    for key in keys:
        splits.setdefault(key[0], []).append(key)
    return tuple(
        Answers(
            split, tuple(k[1] for k in own), tuple(a[k] for k in own), None if b is None else tuple(b[k] for k in own)
        )
        for split, own in sorted(splits.items())
    )


def _question(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What was asked: an equal id under another prompt or other instructions is another question."""
    prompt = row.get("prompt")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return turns, [(c["kind"], c.get("params")) for c in row.get("checks", ())]


def _read(path: Path, name: str, manifest: Mapping[str, Any] | None) -> Results:
    errors: list[InputError] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    kind: Literal["samples", "scores"] | None = None
    for line, record in _records(path, errors):
        if kind is None:
            kind = "samples" if "completion" in record else "scores"
        try:
            rows.append((line, (_sample if kind == "samples" else _score)(record, path, line)))
        except InputError as error:
            errors.append(error)
        if len(errors) > MOST_ERRORS:
            break
    if errors:
        raise InputErrors(errors)
    if kind is None:
        raise InputError("is empty", file=path, expected="one JSON object a line")
    model = None
    if kind == "samples":
        rows = [(line, row) for line, row in rows if row["stage"] == "evaluation"]
        if not rows:
            raise InputError("holds no answers of an evaluation", file=path, field="stage", expected="evaluation")
        models = {row["model"] for _, row in rows}
        model = next((m for m in PREFERRED if m in models), None) or sorted(models)[0]
        rows = [(line, row) for line, row in rows if row["model"] == model]
    kept: dict[Key, tuple[int, dict[str, Any]]] = {}
    for line, row in rows:
        first, known = kept.setdefault(key_of(row), (line, row))
        if row["score"] != known["score"]:
            shown = tuple(_plain(s) for s in (known["score"], row["score"]))
            message = f"{row['id']} was first seen in line {first}; the scores differ ({shown[0]} and {shown[1]})"
            errors.append(InputError(message, file=path, line=line, field="id"))
    if errors:
        raise InputErrors(errors[:MOST_ERRORS])
    scored = [row for _, row in kept.values() if row["score"] is not None]
    return Results(
        name,
        kind,
        tuple(scored),
        tuple(label(key) for key, (_, row) in kept.items() if row["score"] is None),
        len(rows) - len(kept),
        model,
        manifest,
    )


def _records(path: Path, errors: list[InputError]) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                errors.append(InputError(f"not UTF-8 at byte {error.start} of the line", file=path, line=number))
            except json.JSONDecodeError as error:
                errors.append(InputError(f"not JSON: {error.msg}", file=path, line=number))
            else:
                if isinstance(record, dict):
                    yield number, record
                else:
                    errors.append(
                        InputError(
                            "wrong type", file=path, line=number, found=record, expected="an object with id and score"
                        )
                    )


def _score(record: Mapping[str, Any], path: Path, line: int) -> dict[str, Any]:
    _require(record, ("id", "score"), path, line)
    score = record["score"]
    if score is not None and (not isinstance(score, (int, float)) or not math.isfinite(score)):
        raise InputError(
            "not a score", file=path, line=line, field="score", found=score, expected="a number, or null for none"
        )
    split, sample = record.get("split", "all"), record.get("sample", 0)
    row = {"id": row_id(record["id"], path, line), "split": str(split), "sample": _whole(sample, path, line)}
    tokens = record.get("num_tokens")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
        expected = "a whole number, 0 or more"
        raise InputError("not a length", file=path, line=line, field="num_tokens", found=tokens, expected=expected)
    more = {name: record[name] for name in ("answer", "num_tokens", "kind") if record.get(name) is not None}
    return {**row, "score": None if score is None else float(score), **more}


def read_verdicts(path: str | Path) -> list[Verdict]:
    """A judge's verdicts on A against B, one a line, in the order of the file.

    JSON lines `{"id", "winner"}`, winner "a", "b", "tie" or null, with `first` ("a" or "b") where the order is known.
    Raises InputErrors.
    """
    path, errors = Path(path), list[InputError]()
    if not path.is_file():
        raise InputError("no such file", file=path)
    found = []
    for line, record in _records(path, errors):
        try:
            _require(record, ("id", "winner"), path, line)
            for field, allowed in (("winner", ("a", "b", "tie", None)), ("first", ("a", "b", None))):
                if record.get(field) not in allowed:
                    expected = ", ".join(str(word or "null") for word in allowed)
                    raise InputError(
                        "not a verdict", file=path, line=line, field=field, found=record[field], expected=expected
                    )
            key = str(record.get("split", "all")), row_id(record["id"], path, line), int(record.get("sample", 0))
            found.append((key, record.get("first"), record["winner"]))
        except InputError as error:
            errors.append(error)
    if errors:
        raise InputErrors(errors[:MOST_ERRORS])
    if not found:
        raise InputError("is empty", file=path, expected="one JSON object a line")
    return found


def _sample(record: Mapping[str, Any], path: Path, line: int) -> dict[str, Any]:
    _require(record, ("id", "split", "model", "prompt", "completion", "checks", "followed"), path, line)
    if not isinstance(record["followed"], bool):
        raise InputError(
            "wrong type", file=path, line=line, field="followed", found=record["followed"], expected="true or false"
        )
    for i, check in enumerate(record["checks"]):
        if not isinstance(check, dict) or not isinstance(check.get("followed"), bool) or "kind" not in check:
            expected = "an object with kind, followed and decided"
            raise InputError("wrong type", file=path, line=line, field=f"checks[{i}]", found=check, expected=expected)
    row = {**record, "id": row_id(record["id"], path, line), "sample": _whole(record.get("sample", 0), path, line)}
    return {"stage": "evaluation", **row, "score": float(record["followed"])}


def _require(record: Mapping[str, Any], fields: Sequence[str], path: Path, line: int) -> None:
    absent = [field for field in fields if field not in record]
    if absent:
        raise InputError(
            "is absent", file=path, line=line, field=absent[0], found=sorted(record), expected=", ".join(fields)
        )


def _whole(sample: Any, path: Path, line: int) -> int:
    if isinstance(sample, bool) or not isinstance(sample, int):
        raise InputError(
            "not a sample number", file=path, line=line, field="sample", found=sample, expected="a whole number"
        )
    return sample


def _plain(score: float | None) -> str:
    return "none" if score is None else f"{score:g}"
