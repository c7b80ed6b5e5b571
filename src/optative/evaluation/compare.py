"""Two results, paired: run folders, evaluations or plain score files.

Knows: how to pair results, which figures their rows allow, what makes a comparison doubtful. Does not know: models, the
command line. Differences are A minus B: positive where A is better. For flips B is the old model and A the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optative.core.errors import InputError
from optative.evaluation import drift, instructions
from optative.evaluation.changes import change_warnings, changes, repeated
from optative.evaluation.figures import score_figure, warning
from optative.evaluation.flips import count_flips
from optative.evaluation.independence import BASE_LOGPS
from optative.evaluation.instructions import Context
from optative.evaluation.options import Diversity, InstructionAccuracy, Length
from optative.evaluation.results import Answers, Pairing, Results, pair, read_results, read_verdicts
from optative.evaluation.verdicts import win_rate, win_warnings


def compare(
    a: str | Path,
    b: str | Path,
    *,
    level: float = 0.95,
    seed: int = 0,
    repeat: str | Path | None = None,
    verdicts: str | Path | None = None,
    dead_zone: float | None = None,
) -> dict[str, Any]:
    """Compare two run folders or two result files, item by item.

    repeat: B measured once more; flips between the two are the noise floor. verdicts: a judge's choice between A and B
    (`results.read_verdicts`). dead_zone: how much a graded score has to move to count as a flip; 0 by default.

    Returns `a` and `b` (what was read), `metrics` and `by_kind` (each with `a`, `b`, `difference` = a - b, `interval`,
    `n`; yes/no scores also with `only_a`, `only_b`, `both`, `neither` and the exact McNemar `p`), `missing` (ids of one
    side only) and `warnings`. `flips` by split: `flips.anatomy` of yes/no results, with `by_kind`, `by_length` and
    `noise_floor`, or `flips.generation_flips` of graded ones. `win_rate`: of verdicts or of graded scores, raw and
    length-controlled. All means are over the common items. Raises InputError when nothing can be paired.
    """
    left, right = read_results(a), read_results(b)
    again = None if repeat is None else read_results(repeat)
    if left.kind != right.kind:
        raise InputError(f"{left.name} holds judged answers and {right.name} plain scores; compare two of a kind")
    pairing = pair(right.rows, left.rows)
    if not pairing.n:
        hint = "The same ids stand for other prompts." if pairing.other_prompt else "They have no id in common."
        raise InputError(f"{left.name} and {right.name} share no item", hint=hint)
    graded = left.kind == "scores" and not _yes_no(pairing)
    if dead_zone is not None and not graded:
        raise InputError("cannot act: these results are yes or no", field="dead_zone", found=dead_zone)
    noise = None if again is None else repeated(right, again)
    metrics: list[dict[str, Any]] = []
    by_kind: list[dict[str, Any]] = []
    for answers in pairing.splits:
        if left.kind == "scores":
            metrics.append(_scores(answers, level, seed))
        else:
            context = Context(_trained_by(left, right), "/".join(sorted(left.modes | right.modes)), None, seed)
            metrics += _judged(answers, context, level)
            by_kind += _kinds(answers, context, level)
    sampling = {"level": level, "seed": seed}
    flips = {answers.split: changes(answers, noise, graded, dead_zone or 0.0, sampling) for answers in pairing.splits}
    judged = None if verdicts is None else read_verdicts(verdicts)
    wins = win_rate(pairing, judged, sampling) if graded or judged else None
    return {
        "a": _described(left),
        "b": _described(right),
        "n": pairing.n,
        "metrics": metrics,
        "by_kind": by_kind,
        "flips": flips,
        "win_rate": wins,
        "missing": {
            "only_a": list(pairing.only_steered),
            "only_b": list(pairing.only_base),
            "other_prompt": list(pairing.other_prompt),
            "unscored_a": list(left.unscored),
            "unscored_b": list(right.unscored),
        },
        "warnings": _warnings(left, right, pairing) + change_warnings(flips) + (win_warnings(wins) if wins else []),
    }


def _scores(answers: Answers, level: float, seed: int) -> dict[str, Any]:
    own, other = ([row["score"] for row in rows or ()] for rows in (answers.base, answers.steered))
    yes_no = _binary(own + other)
    figure = score_figure(
        "score",
        answers.split,
        own,
        other,
        clusters=answers.ids,
        bounds=(0, 1) if yes_no else None,
        level=level,
        seed=seed,
        measured_by="scores of the files",
        independence="same_rule_held_out",
    )
    row = _sided(figure.to_json())
    row["independence"] = None  # a file of scores does not say who gave them
    return row | _flips(answers.ids, own, other) if yes_no else row


def _judged(answers: Answers, context: Context, level: float) -> list[dict[str, Any]]:
    figures = instructions.accuracy(answers, InstructionAccuracy(level=level), context)
    rows = [row for side in answers.sides.values() for row in side]
    if all("num_tokens" in row for row in rows):
        figures += drift.length(answers, Length(level=level), context)
    figures += drift.diversity(answers, Diversity(level=level), context)
    found = [_sided(figure.to_json()) for figure in figures]
    followed = [[row["followed"] for row in rows or ()] for rows in (answers.base, answers.steered)]
    found[0] |= _flips(answers.ids, *followed)
    return found


def _kinds(answers: Answers, context: Context, level: float) -> list[dict[str, Any]]:
    rows = []
    for row in instructions.by_kind(answers, level, context):
        items = [
            (i, old["followed"], new["followed"])
            for i, b, a in zip(answers.ids, answers.base, answers.steered or ())
            for old, new in zip(b["checks"], a["checks"])
            if old["kind"] == row["kind"]
        ]
        rows.append(_sided(row) | _flips(*zip(*items)))
    return rows


def _binary(scores: Sequence[Any]) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


def _yes_no(pairing: Pairing) -> bool:
    return _binary([row["score"] for answers in pairing.splits for side in answers.sides.values() for row in side])


def _flips(ids: Sequence[str], own: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    counts = count_flips(ids, own, other)
    shared = {"both": counts["both"], "neither": counts["neither"], "p": counts["mcnemar_p"]}
    return {"only_a": counts["gained"], "only_b": counts["lost"], **shared}


def _sided(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a figure with its two sides named as in the comparison."""
    names = {"base": "b", "steered": "a", "base_interval": "b_interval", "steered_interval": "a_interval"}
    return {names.get(key, key): value for key, value in row.items()}


def _described(results: Results) -> dict[str, Any]:
    known = {"name": results.name, "kind": results.kind, "rows": len(results.rows)}
    if results.kind == "scores":
        return known
    base = (results.manifest or {}).get("base_model") or {}
    return {**known, "model": results.model, "modes": sorted(results.modes), "base_model": base.get("name")}


def _trained_by(left: Results, right: Results) -> frozenset[str] | None:
    """Kinds that the training of either side used; None when a side does not say."""
    kinds = [(side.manifest or {}).get("trained_kinds") for side in (left, right)]
    if any(k is None for k in kinds):
        return None
    return frozenset(kind for k in kinds for kind in k or ()) | {BASE_LOGPS}


def _warnings(left: Results, right: Results, pairing: Pairing) -> list[dict[str, str]]:
    found = []
    one_sided = len(pairing.only_base) + len(pairing.only_steered)
    if one_sided:
        sides = f"{_names(pairing.only_steered)} only in A; {_names(pairing.only_base)} only in B"
        found.append(
            warning("missing_items", f"{one_sided} items are in one of the two only and are left out: {sides}.")
        )
    if pairing.other_prompt:
        message = (
            f"{len(pairing.other_prompt)} ids stand for other prompts or instructions in A than in B and are left out"
        )
        found.append(warning("held_out_sets_differ", f"{message}: {_names(pairing.other_prompt)}."))
    if left.modes and right.modes and left.modes != right.modes:
        ways = f"{', '.join(sorted(left.modes))} in A, {', '.join(sorted(right.modes))} in B"
        message = f"The rules were not read in the same way: {ways}."
        found.append(warning("modes_differ", message))
    for name, words in (("template_hash", "chat templates"), ("fingerprint", "base models")):
        own = [((side.manifest or {}).get("base_model") or {}).get(name) for side in (left, right)]
        if None not in own and own[0] != own[1]:
            found.append(warning(f"{name}_differs", f"A and B used different {words}."))
    for side, results in (("A", left), ("B", right)):
        if results.repeated:
            found.append(
                warning("repeated_rows", f"{results.repeated} rows of {side} say the same twice; they count once.")
            )
        if results.unscored:
            missing = (
                f"{len(results.unscored)} items of {side} have no score and are left out: {_names(results.unscored)}."
            )
            found.append(warning("unscored_items", missing))
    return found


def _names(ids: Sequence[str], most: int = 10) -> str:
    return (", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")) or "none"
