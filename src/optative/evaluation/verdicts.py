"""Who wins: A against B by a judge's verdicts, or by which of two graded scores is larger.

Knows: paired rows of results, verdicts with or without the order in which answers were shown. Does not know: judges,
files. Both orders of one item are one item (`core.stats.collapse_orders`); a tie is half a win for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.evaluation.figures import warning
from optative.evaluation.results import Key, Pairing, Verdict, key_of, label, lengths_of
from optative.evaluation.win_rate import length_controlled


def win_rate(pairing: Pairing, verdicts: Sequence[Verdict] | None, sampling: dict[str, Any]) -> dict[str, Any]:
    """Win rate of A over B by verdicts, else by scores, raw and, where lengths are known, length-controlled.

    `unjudged`: common items without a verdict; `unknown`: judged items that are not common. `orders` counts how a judge
    that saw both orders agrees with itself. Raises InputError when no verdict is about a common item.
    """
    rows = {
        key_of({**b, "split": answers.split, "id": i}): (b, a)
        for answers in pairing.splits
        for i, b, a in zip(answers.ids, answers.base, answers.steered or ())
    }
    orders = None
    scores: dict[Key, float | None]
    if verdicts is None:
        scores = {key: (float(np.sign(a["score"] - b["score"])) + 1) / 2 for key, (b, a) in rows.items()}
    else:
        if not rows.keys() & {key for key, *_ in verdicts}:
            raise InputError("no verdict is about an item that A and B share", field="verdicts")
        known = [verdict for verdict in verdicts if verdict[0] in rows]
        scores, orders = _collapsed(known, sampling["level"])
    found = stats.win_rate(scores.values(), **sampling)
    judged = [key for key, score in scores.items() if score is not None]
    lengths = lengths_of([rows[key] for key in judged])
    controlled = None
    if lengths and len({key[:2] for key in judged}) > 1:
        b_lengths, a_lengths = zip(*lengths)
        made = length_controlled(
            [scores[key] for key in judged], a_lengths, b_lengths, prompts=[key[:2] for key in judged], **sampling
        )
        controlled = {
            "rate": made.rate,
            "interval": made.interval.to_list(),
            "length_effect": made.length_effect,
            "strata": made.strata,
            "warnings": list(made.warnings),
        }
    counts = {
        name: getattr(found, name) for name in ("rate", "wins", "losses", "ties", "n", "missing", "decisive_rate")
    }
    return {
        "by": "scores" if verdicts is None else "verdicts",
        **counts,
        "interval": found.interval.to_list(),
        "p": found.p,
        "unjudged": len(rows.keys() - scores.keys()),
        "unknown": 0 if verdicts is None else len({key for key, *_ in verdicts} - rows.keys()),
        "orders": orders,
        "length_controlled": controlled,
    }


def _collapsed(verdicts: Sequence[Verdict], level: float) -> tuple[dict[Key, float | None], dict[str, Any] | None]:
    """One score an item: verdicts with a known order are collapsed over both, those without stand as they are."""
    ordered = [verdict for verdict in verdicts if verdict[1] is not None]
    if ordered and len(ordered) < len(verdicts):
        raise InputError("some verdicts say which answer was shown first and some do not", field="first")
    if not ordered:
        scores: dict[Key, float | None] = {}
        for key, _, winner in verdicts:
            if key in scores:
                raise InputError(f"{label(key)} was judged twice; say which answer was shown first", field="first")
            scores[key] = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(winner or "")
        return scores, None
    keys = list(dict.fromkeys(key for key, *_ in ordered))
    unique = len({label(key) for key in keys}) == len(keys)
    names = {key: label(key) if unique else f"{label(key)} of {key[0]}" for key in keys}
    found = stats.collapse_orders(((names[key], str(first), won) for key, first, won in ordered), level=level)
    about = {
        "consistent": found.consistent,
        "items": len(found.scores),
        "first_shown_wins": found.first_shown_wins,
        "verdicts": found.verdicts,
        "incomplete": list(found.incomplete),
        "warnings": list(found.warnings),
    }
    return {key: found.scores[name] for key, name in names.items() if name in found.scores}, about


def win_warnings(wins: Mapping[str, Any]) -> list[dict[str, str]]:
    """What makes a win rate doubtful."""
    said = {
        "orders_of_the_judge": (wins["orders"] or {}).get("warnings", ()),
        "length_decides": (wins["length_controlled"] or {}).get("warnings", ()),
    }
    found = [warning(code, f"{text[:1].upper()}{text[1:]}.") for code, texts in said.items() for text in texts]
    if wins["unknown"]:
        found.append(warning("unknown_verdicts", f"{wins['unknown']} judged items are not in both A and B."))
    return found
