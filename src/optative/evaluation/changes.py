"""What a new model breaks and repairs: flips from an old result (B) to a new one (A), by kind, by length, beside noise.

Knows: paired rows of results. Does not know: files, models. The formulas are those of `flips`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optative.core.errors import InputError
from optative.evaluation.figures import warning
from optative.evaluation.flips import anatomy, generation_flips
from optative.evaluation.results import Answers, Results, answer_of, lengths_of, pair

PARTS = 4  # by length


def repeated(right: Results, again: Results) -> dict[str, Answers]:
    """B and its repeat, paired, by split. Raises InputError when they are no two measurements of the same items."""
    if again.kind != right.kind:
        raise InputError(f"{again.name} is no repeat of {right.name}: one holds judged answers, the other plain scores")
    pairing = pair(right.rows, again.rows)
    if not pairing.n:
        raise InputError(f"{right.name} and its repeat {again.name} share no item")
    return {answers.split: answers for answers in pairing.splits}


def changes(
    answers: Answers, noise: Mapping[str, Answers] | None, graded: bool, dead_zone: float, sampling: dict[str, Any]
) -> dict[str, Any]:
    """`flips.anatomy` (yes/no) or `flips.generation_flips` (graded) of one split from B to A, with its parts.

    `by_kind` and `by_length` (equal parts by the length of B's answer, where lengths are known) hold `n`, `nfr` and
    `pfr`; `noise_floor` is what B and its repeat do to each other, None without a repeat.
    """

    def rates(items: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
        ids, old, new = zip(*items)
        if graded:
            part = generation_flips(old, new, dead_zone=dead_zone, clusters=ids, **sampling)
        else:
            part = anatomy(old, new, clusters=ids, **sampling)
        return {name: part[name] for name in ("n", "nfr", "pfr")}

    found = _flips(answers, graded, dead_zone, sampling)
    found["noise_floor"] = None
    if noise is not None and answers.split in noise:
        again = _flips(noise[answers.split], graded, dead_zone, sampling)
        found["noise_floor"] = {name: again.get(name) for name in ("n", "nfr", "pfr", "nfr_mc")}
    rows = list(zip(answers.base, answers.steered or ()))
    by_kind: dict[str, list[tuple[str, float, float]]] = {}
    for i, (old, new) in zip(answers.ids, rows):
        for kind, before, after in _items(old, new):
            by_kind.setdefault(kind, []).append((i, before, after))
    found["by_kind"] = {kind: rates(items) for kind, items in sorted(by_kind.items())}
    found["by_length"] = []
    if (lengths := lengths_of(rows)) is None:
        return found
    own = [before for before, _ in lengths]
    for part in np.array_split(np.argsort(own, kind="stable"), PARTS):
        if len(part):
            items = [(answers.ids[i], rows[i][0]["score"], rows[i][1]["score"]) for i in part]
            found["by_length"].append({"length_b": [own[part[0]], own[part[-1]]], **rates(items)})
    return found


def _flips(answers: Answers, graded: bool, dead_zone: float, sampling: dict[str, Any]) -> dict[str, Any]:
    rows = list(zip(answers.base, answers.steered or ()))
    old, new = [r["score"] for r, _ in rows], [r["score"] for _, r in rows]
    if graded:
        return generation_flips(old, new, dead_zone=dead_zone, clusters=answers.ids, **sampling)
    texts = [(answer_of(b), answer_of(a)) for b, a in rows]
    same = None if any(None in both for both in texts) else [b == a for b, a in texts]
    differently = 0
    if same is not None:  # an equal answer that was judged in two ways is a fault of the judge, and no equal answer
        differently = sum(equal and before != after for equal, before, after in zip(same, old, new))
        same = [equal and before == after for equal, before, after in zip(same, old, new)]
    return {**anatomy(old, new, same=same, clusters=answers.ids, **sampling), "judged_differently": differently}


def _items(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(kind, old, new): the single instructions of judged answers, or a score under its row's kind."""
    if "checks" in old:
        return [(b["kind"], float(b["followed"]), float(a["followed"])) for b, a in zip(old["checks"], new["checks"])]
    return [(str(old["kind"]), old["score"], new["score"])] if old.get("kind") is not None else []


def change_warnings(flips: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What makes the flips doubtful."""
    found = []
    for split, own in flips.items():
        if own.get("judged_differently"):
            number = own["judged_differently"]
            message = f"On {split} {number} equal answers are right in one of the two and wrong in the other."
            found.append(warning("judged_differently", message))
        floor = own["noise_floor"]
        if floor is not None and floor["nfr"]["value"] >= own["nfr"]["value"] > 0:
            message = f"On {split} B's own repeat flips as often as A does: the negative flips are within the noise."
            found.append(warning("flips_are_noise", message))
    return found
