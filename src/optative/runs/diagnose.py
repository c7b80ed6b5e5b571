"""Score the pairs of a file under a model and its reference, and say what that shows.

Knows: which file feeds which figure, what is skipped, the cache of scores. Does not know: formulas, HTML.
Nothing is trained. Answers are scored whole unless a cut is asked for, because the probability of a cut answer is
another one; pairs that do not fit are skipped and counted. One model is in memory at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from optative.core.errors import InputError, unknown
from optative.core.events import Events, default_events
from optative.core.files import lock, read_json, write_json, write_text
from optative.core.ids import content_hash, file_hash
from optative.core.memory import release
from optative.data.counts import REFUSED
from optative.data.files import source
from optative.data.pair_steps import FILE, read_pair_steps
from optative.data.records import Pair, Text
from optative.data.records import pairs as strict_pairs
from optative.data.table import JudgementTable, build_table
from optative.evaluation.diagnosis import Scored, diagnose
from optative.evaluation.pair_curves import describe_curves
from optative.evaluation.pairs import BETAS, difficulty
from optative.evaluation.report.diagnosis import curves_page, pairs_page
from optative.generators.language.adapters import WEIGHTS_FILE
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.score import summed
from optative.generators.language.tokens import encode_group, shorten
from optative.runs.environment import hardware, moving_facts, versions
from optative.runs.stages import Stages, chunked

CHUNK = 32  # pairs; what a crash loses
EXCERPT = 240  # characters of a text that are shown
SKIPPED = {
    "prompt_too_long": "the prompt leaves no room for an answer",
    "answer_too_long": "an answer would be cut",
}
Row = dict[str, Any]  # one pair under one model: `skip`, or `logps`, `tokens` and `cut` (what was cut on request)


@dataclass(frozen=True)
class Length:
    """Most tokens of prompt and answer together; and, if asked, of a prompt (cut left) and of each answer (right)."""

    max_length: int = 1024
    prompt: int | None = None
    answer: int | None = None


def diagnose_pairs(
    file: str | Path,
    model: str,
    reference: str,
    *,
    adapter: str | Path | None = None,
    reference_adapter: str | Path | None = None,
    betas: Sequence[float] = BETAS,
    shares: str | None = None,
    vote_share: float = 0.75,
    limit: int | None = None,
    length: Length | None = None,
    format: str | None = None,
    template: str | None = None,
    dtype: str = "auto",
    out: str | Path | None = None,
    seed: int = 0,
    events: Events | None = None,
) -> dict[str, Any]:
    """Ranking accuracy, idealised ranking accuracy, difficulty and flips of the pairs of a file.

    shares: a column with the share of voters for the chosen answer; without it every pair has the share `vote_share`.
    limit: only the first pairs of the file. out: by default `diagnoses/<file>-<key>`; log-probabilities are kept there,
    and a second call, also with other betas or shares, reads them. Writes `diagnosis.json`, `pairs.jsonl` (every pair)
    and `report.html`; returns the first and its folder. Raises InputError for a file without a pair that fits.
    """
    events, length, file = events or default_events(), length or Length(), Path(file)
    if not 0 < vote_share < 1:
        raise InputError("not a share", field="--vote-share", found=vote_share, expected="between 0 and 1")
    if not betas or min(betas) <= 0:
        raise InputError("not a beta", field="--beta", found=list(betas), expected="numbers above 0")
    sides = {"model": (model, adapter), "reference": (reference, reference_adapter)}
    asked = [[str(n), str(a)] for n, a in sides.values()]
    files = [file_hash(f) for f in source(file).files]
    key = content_hash([files, asked, format, template, dtype, limit, vars(length)])
    folder = Path(out) if out is not None else Path("diagnoses") / f"{file.name.split('.')[0]}-{key[:8]}"
    with lock(folder / ".lock", "another process is at work in this folder; wait for it, or name another with --out"):
        table = build_table(file, folder / "stages" / "table", format=format, on_bad_record="skip")
        events.say(f"  {file.name}: {table.format}, {table.counts}")
        every = ((row, nth) for row in range(len(table)) for nth in range(len(strict_pairs(table[row]))))
        places = list(islice(every, limit))
        if not places:
            raise InputError("holds no strict pair", file=file, hint="`optative data inspect` shows what it holds.")
        votes = _shares(table, places, shares, vote_share, file)
        rows: dict[str, list[Row]] = {}
        facts: dict[str, Any] = {}
        for side, (name, own) in sides.items():
            kept = _dtype(folder, side, dtype)
            lm = load_language_model(name, adapter=own, dtype=kept, template=template)
            facts[side] = _facts(lm, name, own)
            rows[side] = _score(lm, facts[side], table, places, length, folder, file, events, f"{side} {lm.name}")
            del lm
            release()
        result = _result(file, table, places, votes, shares, vote_share, rows, facts, betas, seed)
        result |= {"limits": vars(length), "versions": versions(), "hardware": hardware()}
        lines = result.pop("rows")
        write_text(folder / "pairs.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        write_json(folder / "diagnosis.json", result)
        write_text(folder / "report.html", pairs_page(result))
    return {**result, "folder": str(folder)}


def diagnose_curves(run: str | Path, *, out: str | Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Learning curves of single pairs from `pairs.parquet` of a run folder, or from such a file itself.

    Writes `diagnosis.json` and `report.html` into `out`; by default the folder `curves` beside the file.
    """
    path = Path(run)
    if path.is_dir():
        path = path / FILE
        if not path.is_file():
            hint = "A run of `optative align` writes it when it measures held-out pairs during training."
            raise InputError(f"holds no {FILE}", file=run, hint=hint)
    result = {"file": path.name, "run": path.resolve().parent.name} | describe_curves(read_pair_steps(path), seed=seed)
    folder = Path(out) if out is not None else path.parent / "curves"
    write_json(folder / "diagnosis.json", result)
    write_text(folder / "report.html", curves_page(result))
    return {**result, "folder": str(folder)}


def _shares(
    table: JudgementTable, places: Sequence[tuple[int, int]], column: str | None, constant: float, file: Path
) -> np.ndarray:
    """The vote share of the chosen answer of each pair."""
    if column is None:
        return np.full(len(places), constant)
    if column != "confidence" and column not in table.columns:
        raise InputError(unknown("column", column, table.columns), file=file, field="--shares")
    found = []
    for row, _ in places:
        judgement, line = table[row], table.line(row)
        if len(judgement.completions) != 2:
            message = f"{len(judgement.completions)} answers have no single vote share"
            raise InputError(message, file=file, line=line, field=column, expected="pairs")
        value = judgement.confidence if column == "confidence" else judgement.meta.get(column)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError("not a share", file=file, line=line, field=column, found=value, expected="0 to 1")
        found.append(float(value))
    return np.array(found)


def _dtype(folder: Path, side: str, asked: str) -> str:
    """`auto` is measured once: a second call keeps what the first chose, so that it finds its scores."""
    path = folder / "diagnosis.json"
    return str(read_json(path)[side]["dtype"]) if asked == "auto" and path.exists() else asked


def _facts(lm: LanguageModel, name: str, adapter: str | Path | None) -> dict[str, Any]:
    weights = next((f / WEIGHTS_FILE for f in (Path(adapter or name),) if (f / WEIGHTS_FILE).is_file()), None)
    return {
        "name": lm.name,
        "hub_id": lm.hub_id,
        "fingerprint": lm.fingerprint,
        "adapter": None if weights is None else file_hash(weights),
        "template_hash": lm.template.hash,
        "tokenizer": content_hash([sorted(lm.tokenizer.get_vocab().items()), lm.tokenizer.encode("A b, c\n d")]),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "notes": list(lm.notes),
    }


def _score(
    lm: LanguageModel,
    facts: dict[str, Any],
    table: JudgementTable,
    places: Sequence[tuple[int, int]],
    length: Length,
    folder: Path,
    file: Path,
    events: Events,
    words: str,
) -> list[Row]:
    """One row a pair, from the cache where the same tokens were scored under the same weights."""
    stages = Stages(folder / "stages", moving_facts(str(lm.dtype), lm.device.type), events)
    identity = {k: v for k, v in facts.items() if k not in ("name", "hub_id", "notes")}
    key = stages.key("scores", 1, [identity, table.fingerprint, vars(length), len(places), CHUNK])

    def compute(part: Sequence[tuple[int, int]], progress: Any) -> list[Row]:
        rows = [_encode(lm, table, row, nth, length, file) for row, nth in part]
        groups = [row["group"] for row in rows if "group" in row]
        sums = iter(summed(lm, groups))
        for row in rows:
            if (group := row.pop("group", None)) is not None:
                row["logps"], row["tokens"] = next(sums), group.counted
        progress(len(part), len(part))
        return rows

    return stages.rows(key, chunked(places, CHUNK), compute, words, len)


def _encode(lm: LanguageModel, table: JudgementTable, row: int, nth: int, length: Length, file: Path) -> Row:
    pair = _pair(table, (row, nth))
    try:
        group = encode_group(lm, pair.prompt, (pair.chosen, pair.rejected))
    except InputError as error:
        raise InputError(
            error.message,
            file=file,
            line=table.line(row),
            field=error.field,
            found=error.found,
            expected=error.expected,
        ) from None
    cut = shorten(lm, group, length.prompt, length.answer)
    room = min(length.max_length, lm.context_length) - len(cut.prompt_ids)
    if room < 1:
        return {"skip": "prompt_too_long"}
    if max(map(len, cut.completion_ids)) > room:
        return {"skip": "answer_too_long"}
    return {"group": cut, "cut": cut != group}


def _result(
    file: Path,
    table: JudgementTable,
    places: Sequence[tuple[int, int]],
    votes: np.ndarray,
    column: str | None,
    constant: float,
    rows: dict[str, list[Row]],
    facts: dict[str, Any],
    betas: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    sides = list(zip(rows["model"], rows["reference"], strict=True))
    reasons = [next((str(r["skip"]) for r in own if "skip" in r), None) for own in sides]
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    if not kept:
        why = ", ".join(f"{n} {SKIPPED[r]}" for r, n in Counter(r for r in reasons if r).items())
        hint = "--max-length allows more, --answer-tokens and --prompt-tokens cut."
        raise InputError(f"no pair fits: {why}", file=file, hint=hint)
    scored = {
        side: Scored(
            *(np.array([rows[side][i]["logps"][which] for i in kept]) for which in (0, 1)),
            *(np.array([rows[side][i]["tokens"][which] for i in kept]) for which in (0, 1)),
        )
        for side in rows
    }
    ids, prompts = [], []
    for i in kept:
        pair = _pair(table, places[i])
        ids.append(pair.id)
        prompts.append(content_hash(pair.prompt)[:16])
    found = diagnose(
        ids,
        scored["model"],
        scored["reference"],
        votes[kept],
        betas=betas,
        prompts=prompts,
        seed=seed,
    )
    for row in found["hardest"]:
        at = row.pop("index")
        row |= {"line": table.line(places[kept[at]][0]), **_texts(_pair(table, places[kept[at]]))}
    counts = table.counts.numbers()
    if facts["model"]["tokenizer"] != facts["reference"]["tokenizer"]:
        message = (
            "Model and reference have different tokenizers: each counts tokens in its own way, and differences of "
            "log-probabilities between the two compare different alphabets."
        )
        found["warnings"].append({"code": "tokenizers_differ", "message": message})
    return {
        "kind": "pairs",
        "file": file.name,
        "format": table.format,
        "fingerprint": table.fingerprint,
        **{side: facts[side] for side in ("model", "reference")},
        "shares": {"column": column, "constant": None if column else constant, "mean": float(votes[kept].mean())},
        "skipped": {
            **{name: counts[name] for name in (*REFUSED, "ties")},
            **{name: reasons.count(name) for name in SKIPPED},
            "cut_on_request": sum(bool(a["cut"] or b["cut"]) for a, b in (sides[i] for i in kept)),
        },
        **found,
        "rows": _lines(ids, [table.line(places[i][0]) for i in kept], prompts, scored, votes[kept]),
    }


def _lines(
    ids: Sequence[str], lines: Sequence[int], prompts: Sequence[str], scored: dict[str, Scored], votes: np.ndarray
) -> list[dict[str, Any]]:
    hard = difficulty(scored["reference"].chosen_B, scored["reference"].rejected_B)
    return [
        {
            "id": ids[i],
            "line": lines[i],
            "prompt_id": prompts[i],
            "difficulty": float(hard[i]),
            "share": float(votes[i]),
            **{
                f"{side}_{name}": getattr(own, f"{name}_B")[i].item()
                for side, own in scored.items()
                for name in ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
            },
        }
        for i in range(len(ids))
    ]


def _pair(table: JudgementTable, place: tuple[int, int]) -> Pair:
    return strict_pairs(table[place[0]])[place[1]]


def _texts(pair: Pair) -> dict[str, str]:
    return {"prompt": _last(pair.prompt), "chosen": _last(pair.chosen), "rejected": _last(pair.rejected)}


def _last(text: Text) -> str:
    """The end of a prompt's last turn, or the start of an answer's, short enough for a table."""
    said = text if isinstance(text, str) else str((text[-1].get("content") if text else "") or "")
    said = " ".join(said.split())
    return said if len(said) <= EXCERPT else said[:EXCERPT].rstrip() + "…"
