"""Ranking of held-out pairs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from optative.core.errors import InputError
from optative.evaluation.ranking import assemble_ranking


def pairs(n: int, lift: float, seed: int = 0, displaced: float = 0.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    base = -30 + rng.normal(0, 5, (n, 2))
    moved = base + rng.normal(0, 1, (n, 2)) + np.array([lift / 2, -lift / 2]) - displaced
    return [
        {"id": i, "base_chosen": b[0], "base_rejected": b[1], "steered_chosen": m[0], "steered_rejected": m[1]}
        for i, (b, m) in enumerate(zip(base.tolist(), moved.tolist()))
    ]


def figures(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return {m["name"]: m for m in found["metrics"]}


def test_numbers_by_hand() -> None:
    rows = [
        {"id": "x", "base_chosen": -10, "base_rejected": -8, "steered_chosen": -9, "steered_rejected": -11},
        {"id": "y", "base_chosen": -6, "base_rejected": -6, "steered_chosen": -7, "steered_rejected": -6},
    ]
    found = figures(assemble_ranking(rows, beta=0.5))
    assert (found["ranking_accuracy"]["base"], found["ranking_accuracy"]["steered"]) == (0.25, 0.5)
    assert found["reward_margin"]["steered"] == pytest.approx(0.5 * ((1 + 3) + (-1 - 0)) / 2)
    assert (found["reward_accuracy"]["base"], found["reward_accuracy"]["steered"]) == (0.5, 0.5)
    assert found["chosen_logp"]["difference"] == 0
    assert found["rejected_logp"]["difference"] == -1.5
    assert {m["independence"] for m in found.values()} == {"same_rule_held_out"}
    assert "ranking_accuracy_per_token" not in found


def test_tokens_change_who_is_ranked_first() -> None:
    row = {"id": 1, "base_chosen": -10, "base_rejected": -8, "steered_chosen": -10, "steered_rejected": -8}
    found = figures(assemble_ranking([{**row, "num_tokens_chosen": 10, "num_tokens_rejected": 4}], beta=0.1))
    assert (found["ranking_accuracy"]["base"], found["ranking_accuracy_per_token"]["base"]) == (0, 1)


def test_swapping_chosen_and_rejected_mirrors() -> None:
    rows = pairs(50, 1.0)
    swap = {"chosen": "rejected", "rejected": "chosen"}
    turned = [{k if k == "id" else f"{k.split('_')[0]}_{swap[k.split('_')[1]]}": v for k, v in r.items()} for r in rows]
    found, mirrored = figures(assemble_ranking(rows, beta=0.1)), figures(assemble_ranking(turned, beta=0.1))
    for name in ("ranking_accuracy", "reward_accuracy"):
        assert found[name]["steered"] == pytest.approx(1 - mirrored[name]["steered"])
    assert found["reward_margin"]["steered"] == pytest.approx(-mirrored["reward_margin"]["steered"])


def test_untrained_model_changes_nothing() -> None:
    rows = [{**r, "steered_chosen": r["base_chosen"], "steered_rejected": r["base_rejected"]} for r in pairs(40, 0)]
    result = assemble_ranking(rows, beta=0.1)
    found = figures(result)
    assert found["reward_accuracy"]["steered"] == 0.5
    assert found["reward_margin"]["interval"] == [None, None]
    assert {w["code"] for w in result["warnings"]} == {"uncertain"}


def test_warnings() -> None:
    assert assemble_ranking(pairs(100, 3.0), beta=0.1)["warnings"] == []
    codes = {w["code"] for w in assemble_ranking(pairs(20, -3.0, displaced=5), beta=0.1)["warnings"]}
    assert {"few_pairs", "likelihood_displacement"} <= codes
    worse = [{**r, "steered_chosen": r["steered_chosen"] - 20} for r in pairs(100, 0)]
    assert "ranking_fell" in {w["code"] for w in assemble_ranking(worse, beta=0.1)["warnings"]}


def test_pairs_of_a_prompt_are_one_cluster() -> None:
    rows = pairs(40, 1.0)
    copies = [{**r, "id": f"{r['id']}/{c}", "prompt_id": r["id"]} for r in rows for c in range(5)]
    once, many = figures(assemble_ranking(rows, beta=0.1)), figures(assemble_ranking(copies, beta=0.1))
    assert many["reward_margin"]["n"] == 200
    assert many["reward_margin"]["interval"] == pytest.approx(once["reward_margin"]["interval"])


def test_faults() -> None:
    rows = pairs(3, 1.0)
    for bad, message in (
        ([], "no held-out pair"),
        ([rows[0], rows[0]], "twice"),
        ([{**rows[0], "steered_chosen": float("-inf")}], "finite"),
    ):
        with pytest.raises(InputError, match=message):
            assemble_ranking(bad, beta=0.1)
