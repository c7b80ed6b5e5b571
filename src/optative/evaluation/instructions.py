"""Accuracy on verifiable instructions: by prompt, by instruction, by kind.

Knows: judged answers. Does not know: how a check is done, models.

A prompt counts as followed when all its instructions are; an instruction that could not be decided counts as its
checker left it. Instructions of one prompt share an answer, so that they are one cluster for the intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from optative.core.errors import InputError
from optative.evaluation.figures import Figure, score_figure
from optative.evaluation.independence import decide
from optative.evaluation.options import InstructionAccuracy
from optative.evaluation.results import Answers

Row = Mapping[str, Any]
LOOSE = "followed_loose"


@dataclass(frozen=True)
class Context:
    """What figures need beside the answers.

    `trained_by`: names of rules (kinds) and judges that training used, None if unknown. `kl`: prompt id to the
    divergence from the base, nats per token. `mode`: how the rules were read (`strict` or `published`).
    """

    trained_by: frozenset[str] | None
    mode: str = "strict"
    kl: Mapping[str, float] | None = None
    seed: int = 0

    @property
    def rules(self) -> str:
        return f"rules ({self.mode})"


def accuracy(answers: Answers, options: InstructionAccuracy, context: Context) -> list[Figure]:
    """prompt_accuracy and instruction_accuracy, and both again by the loose reading where the checks carry it."""
    _verify(answers)
    figures = _both_levels(answers, options.level, context, "followed", "")
    checks = [check for rows in answers.sides.values() for row in rows for check in row["checks"]]
    if all(LOOSE in check for check in checks):
        below = next((check for check in checks if check["followed"] and not check[LOOSE]), None)
        if below is not None:
            raise InputError("followed strictly but not loosely, which cannot be", field=below["kind"], found=below)
        figures += _both_levels(answers, options.level, context, LOOSE, "_loose")
    return figures


def by_kind(answers: Answers, level: float, context: Context) -> list[dict[str, Any]]:
    """Accuracy of each kind of instruction, in the order of their names, as rows of `evaluation.json`.

    With many kinds, one in twenty 95 % intervals excludes 0 by chance.
    """
    rows = []
    for kind in sorted(kinds(answers)):
        values = partial(_checks, field="followed", kind=kind)
        figure = _figure(answers, "instruction_accuracy", {kind}, level, context, values)
        entry = {"kind": kind, "trained": None if context.trained_by is None else kind in context.trained_by}
        rows.append({**entry, **{k: v for k, v in figure.to_json().items() if k != "name"}})
    return rows


def kinds(answers: Answers) -> set[str]:
    return {check["kind"] for row in answers.base for check in row["checks"]}


def undecided(rows: tuple[Row, ...]) -> int:
    """How many checks could not be decided (for instance the language of an answer without letters)."""
    return sum(not check.get("decided", True) for row in rows for check in row["checks"])


def _both_levels(answers: Answers, level: float, context: Context, field: str, suffix: str) -> list[Figure]:
    own = kinds(answers)
    return [
        _figure(answers, f"prompt_accuracy{suffix}", own, level, context, lambda row: [all(_checks(row, field))]),
        _figure(answers, f"instruction_accuracy{suffix}", own, level, context, lambda row: _checks(row, field)),
    ]


def _figure(
    answers: Answers, name: str, own: set[str], level: float, context: Context, values: Callable[[Row], list[bool]]
) -> Figure:
    sides = {side: [values(row) for row in rows] for side, rows in answers.sides.items()}
    flat = {side: [float(v) for per_row in lists for v in per_row] for side, lists in sides.items()}
    return score_figure(
        name,
        answers.split,
        flat["base"],
        flat.get("steered"),
        clusters=[i for i, per_row in zip(answers.ids, sides["base"]) for _ in per_row],
        bounds=(0, 1),
        level=level,
        seed=context.seed,
        measured_by=context.rules,
        independence=decide(own, context.trained_by),
    )


def _checks(row: Row, field: str, kind: str | None = None) -> list[bool]:
    return [bool(check[field]) for check in row["checks"] if kind is None or check["kind"] == kind]


def _verify(answers: Answers) -> None:
    for rows in answers.sides.values():
        for row in rows:
            if not row["checks"]:
                raise InputError(
                    "has no instruction to check", field=str(row["id"]), hint="A prompt without checks passes always."
                )
            if row["followed"] != all(check["followed"] for check in row["checks"]):
                raise InputError(
                    "`followed` does not agree with its checks", field=str(row["id"]), found=row["followed"]
                )
