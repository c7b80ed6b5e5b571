"""The content of evaluation.json: figures, kinds, flips, warnings, and who judged."""

from __future__ import annotations

import doctest
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optative.core import stats
from optative.core.errors import InputError
from optative.evaluation import drift
from optative.evaluation.assemble import assemble
from optative.evaluation.independence import decide, prompt_hash, split_seen
from optative.evaluation.options import METRICS, Length

KEYS = {"name", "split", "base", "steered", "difference", "interval", "level", "n", "measured_by", "independence"}


def row(
    i: Any, followed: list[bool], *, split: str = "held_out", kinds: tuple[str, ...] = ("a", "b"), **more: Any
) -> dict[str, Any]:
    checks = [
        {"kind": k, "params": {}, "wording": k, "followed": f, "decided": True, "why": ""}
        for k, f in zip(kinds, followed)
    ]
    return {
        "stage": "evaluation",
        "split": split,
        "model": "base",
        "id": i,
        "prompt": f"prompt {split} {i}",
        "completion": f"one two three answer {i}",
        "sample": 0,
        "finish_reason": "eos",
        "num_tokens": 10,
        "logp_base": -1.0,
        "checks": checks,
        "followed": all(followed),
        "mode": "strict",
        **more,
    }


def sides(
    n: int = 40, split: str = "held_out", seed: int = 0, gain: float = 0.4, **more: Any
) -> tuple[list[Any], list[Any]]:
    """Base and steered rows; each instruction that the base missed is gained with probability `gain`."""
    rng = np.random.default_rng(seed)
    base_checks = rng.random((n, 2)) < 0.5
    steered_checks = base_checks | (rng.random((n, 2)) < gain)
    base = [row(f"{split}-{i}", c.tolist(), split=split, **more) for i, c in enumerate(base_checks)]
    return base, [
        {**row(f"{split}-{i}", c.tolist(), split=split, **more), "model": "steered"}
        for i, c in enumerate(steered_checks)
    ]


def figure(found: dict[str, Any], name: str, split: str = "held_out") -> dict[str, Any]:
    (one,) = [f for f in found["metrics"] if f["name"] == name and f["split"] == split]
    return one


def codes(found: dict[str, Any]) -> set[str]:
    return {w["code"] for w in found["warnings"]}


def test_contract_and_numbers_by_hand() -> None:
    base, steered = sides()
    found = assemble(base, steered, trained_kinds={"a", "b"})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(f.keys() >= KEYS for f in found["metrics"])
    assert [f["name"] for f in found["metrics"]] == [
        "prompt_accuracy",
        "instruction_accuracy",
        "completion_tokens",
        "logp_base_per_token",
        "negative_flips",
        "distinct_2",
        "repetition",
    ]
    prompt = figure(found, "prompt_accuracy")
    before, after = [r["followed"] for r in base], [r["followed"] for r in steered]
    assert (prompt["base"], prompt["steered"]) == pytest.approx((np.mean(before), np.mean(after)))
    assert prompt["difference"] == pytest.approx(np.mean(after) - np.mean(before))
    assert (prompt["n"], prompt["level"], prompt["independence"]) == (40, 0.95, "same_rule_held_out")
    assert prompt["measured_by"] == "rules (strict)"
    low, high = prompt["interval"]
    assert 0 < low < prompt["difference"] < high < 1
    assert prompt["base_interval"] == pytest.approx(stats.wilson(sum(before), 40).to_list())
    flips = found["flips"]["held_out"]
    assert (flips["gained"], flips["lost"]) == (sum(after) - sum(before), 0)
    assert flips["gained"] + flips["lost"] + flips["both"] + flips["neither"] == 40
    assert flips["mcnemar_p"] == pytest.approx(2 * 0.5 ** flips["gained"])
    assert figure(found, "negative_flips")["steered"] == 0
    assert figure(found, "negative_flips")["interval"][1] > 0


def test_instructions_of_a_prompt_are_one_cluster() -> None:
    base, steered = sides(60)
    found = figure(assemble(base, steered, trained_kinds=set()), "instruction_accuracy")
    before = np.array([[c["followed"] for c in r["checks"]] for r in base], dtype=float)
    after = np.array([[c["followed"] for c in r["checks"]] for r in steered], dtype=float)
    by_prompt = stats.paired_difference(before.mean(1), after.mean(1), bounds=(0, 1))
    assert found["n"] == 120
    assert found["difference"] == pytest.approx(by_prompt.difference)
    assert found["interval"] == pytest.approx(by_prompt.interval.to_list())


def test_kinds_have_their_own_rows() -> None:
    base, steered = sides(30)
    table = assemble(base, steered, trained_kinds={"a"})["by_kind"]
    assert [(r["kind"], r["split"], r["n"], r["trained"], r["independence"]) for r in table] == [
        ("a", "held_out", 30, True, "same_rule_held_out"),
        ("b", "held_out", 30, False, "independent"),
    ]
    assert table[1]["base"] == pytest.approx(np.mean([r["checks"][1]["followed"] for r in base]))


def test_loose_is_reported_where_given_and_never_below_strict() -> None:
    base, steered = sides(12)
    assert not [f for f in assemble(base, steered, trained_kinds=set())["metrics"] if "loose" in f["name"]]
    for r in [*base, *steered]:
        for check in r["checks"]:
            check["followed_loose"] = True
    assert figure(assemble(base, steered, trained_kinds=set()), "prompt_accuracy_loose")["base"] == 1
    base[0]["checks"][0] |= {"followed": True, "followed_loose": False}
    base[0]["followed"] = all(c["followed"] for c in base[0]["checks"])
    with pytest.raises(InputError, match="not loosely"):
        assemble(base, steered, trained_kinds=set())


def test_order_of_rows_does_not_matter() -> None:
    base, steered = sides(40)
    expected = assemble(base, steered, trained_kinds={"a"})
    shuffled = assemble(
        base, list(np.random.default_rng(1).permutation(np.array(steered, dtype=object))), trained_kinds={"a"}
    )
    assert shuffled == expected
    assert assemble(base[::-1], steered, trained_kinds={"a"})["metrics"] == expected["metrics"]


def test_equal_models_differ_by_nothing_but_not_for_certain() -> None:
    base, _ = sides(40)
    found = assemble(base, base, trained_kinds={"a", "b"}, kl_values={r["id"]: 0.0 for r in base})
    json.dumps(found, allow_nan=False)
    prompt = figure(found, "prompt_accuracy")
    assert prompt["difference"] == 0
    assert prompt["interval"][0] < 0 < prompt["interval"][1]
    assert found["flips"]["held_out"]["mcnemar_p"] == 1
    assert figure(found, "distinct_2")["interval"] == [None, None]
    assert "uncertain" in codes(found)


def test_one_prompt_gives_valid_json() -> None:
    found = assemble([row(1, [True])], [row("1", [False])], trained_kinds={"a"})
    assert "NaN" not in json.dumps(found, allow_nan=False)
    assert figure(found, "prompt_accuracy")["difference"] == -1
    assert figure(found, "completion_tokens")["interval"] == [None, None]


def test_one_model_alone() -> None:
    base, _ = sides(20)
    found = assemble(base, None, trained_kinds=None)
    prompt = figure(found, "prompt_accuracy")
    assert (prompt["steered"], prompt["difference"], prompt["interval"]) == (None, None, [None, None])
    assert prompt["base_interval"][0] < prompt["base"] < prompt["base_interval"][1]
    assert found["flips"] == {}
    assert "training_unknown" in codes(found)
    assert {f["independence"] for f in found["metrics"]} == {"same_rule_held_out"}


# Who judged.


def test_classes_of_independence() -> None:
    assert decide({"a"}, {"b"}) == "independent"
    assert decide({"a", "b"}, {"b"}) == "same_rule_held_out"
    assert decide({"a"}, None) == "same_rule_held_out"
    base, steered = sides(10, "unseen_kinds", kinds=("c", "d"))
    found = assemble(base, steered, trained_kinds={"a", "b"}, kl_values={r["id"]: 0.1 for r in base})
    classes = {f["name"]: f["independence"] for f in found["metrics"]}
    assert classes["prompt_accuracy"] == classes["completion_tokens"] == classes["distinct_2"] == "independent"
    assert classes["kl"] == classes["logp_base_per_token"] == "same_rule_held_out"  # DPO's reference is the base
    mixed = assemble(base, steered, trained_kinds={"d"})
    assert figure(mixed, "prompt_accuracy", "unseen_kinds")["independence"] == "same_rule_held_out"


def test_seen_prompts_are_no_evidence() -> None:
    base, steered = sides(20)
    by_id = assemble(base, steered, trained_kinds={"a", "b"}, trained_prompt_ids=["held_out-3"])
    by_text = assemble(
        base, steered, trained_kinds={"a", "b"}, trained_prompt_hashes={prompt_hash("Prompt  held_out held_out-3 ")}
    )
    rest = [r for r in base if r["id"] != "held_out-3"], [r for r in steered if r["id"] != "held_out-3"]
    assert by_id["metrics"] == by_text["metrics"] == assemble(*rest, trained_kinds={"a", "b"})["metrics"]
    assert "seen_prompts" in codes(by_id)
    with pytest.raises(InputError, match="training saw all"):
        assemble(base, steered, trained_kinds={"a", "b"}, trained_prompt_ids=[r["id"] for r in base])


def test_prompt_hash_of_text_and_conversation() -> None:
    assert prompt_hash("Say hi.") == prompt_hash([{"role": "user", "content": "say  hi."}])
    assert prompt_hash("Say hi.") != prompt_hash(
        [{"role": "system", "content": "x"}, {"role": "user", "content": "Say hi."}]
    )
    assert split_seen([{"id": 1, "prompt": "x"}], ["1"]) == ([], ["1"])


@pytest.mark.parametrize("split", ["train"])
def test_splits_that_are_no_evidence_are_refused(split: str) -> None:
    base, steered = sides(4, split)
    with pytest.raises(InputError, match=f"found '{split}', expected held_out or unseen_kinds"):
        assemble(base, steered, trained_kinds=set())


# Pairing and faults.


def test_answers_of_one_model_only_are_left_out_and_named() -> None:
    base, steered = sides(10)
    found = assemble(base, steered[1:], trained_kinds=set())
    assert figure(found, "prompt_accuracy")["n"] == 9
    assert "held_out-0" in next(w for w in found["warnings"] if w["code"] == "unpaired_prompts")["message"]


def test_faults_of_rows() -> None:
    base, steered = sides(5)
    with pytest.raises(InputError, match="different prompts under the ids held_out-2"):
        assemble(
            base, [{**r, "prompt": "other"} if r["id"] == "held_out-2" else r for r in steered], trained_kinds=set()
        )
    with pytest.raises(InputError, match="two answers to held_out-1"):
        assemble([*base, base[1]], steered, trained_kinds=set())
    with pytest.raises(InputError, match="does not agree"):
        assemble([{**r, "followed": not r["followed"]} for r in base], steered, trained_kinds=set())
    with pytest.raises(InputError, match="no instruction"):
        assemble([row(1, [])], [row(1, [])], trained_kinds=set())
    with pytest.raises(InputError, match="no answers"):
        assemble([], [], trained_kinds=set())


def test_metric_asked_for_that_cannot_be_measured() -> None:
    base, steered = sides(5)
    with pytest.raises(InputError, match="kl: cannot be measured"):
        assemble(base, steered, trained_kinds=set(), metrics=["kl"])
    with pytest.raises(InputError, match="fluency: cannot be measured"):
        assemble(
            *([{**r, "logp_base": None} for r in x] for x in (base, steered)), trained_kinds=set(), metrics=["fluency"]
        )
    with pytest.raises(InputError, match="the nearest is 'fluency'"):
        assemble(base, steered, trained_kinds=set(), metrics=["fluancy"])


def test_several_samples_of_a_prompt_are_one_cluster() -> None:
    base, steered = sides(30)
    many = [[{**r, "sample": s} for r in rows for s in range(4)] for rows in (base, steered)]
    once, copied = (assemble(*rows, trained_kinds={"a"}) for rows in ((base, steered), many))
    assert figure(copied, "prompt_accuracy")["n"] == 120
    assert figure(copied, "prompt_accuracy")["interval"] == pytest.approx(figure(once, "prompt_accuracy")["interval"])
    assert figure(copied, "distinct_2")["n"] == 120
    for side in ("base_interval", "steered_interval"):  # Wilson's for one sample a prompt, bootstrap for clusters
        one, four = ((lambda i: i[1] - i[0])(figure(found, "prompt_accuracy")[side]) for found in (once, copied))
        assert four == pytest.approx(one, rel=0.25)
    assert copied["flips"]["held_out"]["mcnemar_p"] == once["flips"]["held_out"]["mcnemar_p"]
    assert copied["flips"]["held_out"]["gained"] == 4 * once["flips"]["held_out"]["gained"]


# Warnings in words.


def test_quiet_when_all_is_well() -> None:
    base, steered = sides(60)
    assert codes(assemble(base, steered, trained_kinds={"a", "b"})) == set()


def test_each_cost_is_said() -> None:
    base, steered = sides(40)
    worse = [
        {**r, "num_tokens": 25, "logp_base": -1.5, "completion": "yes yes yes yes yes", "finish_reason": "length"}
        for r in steered
    ]
    worse[0] = {**worse[0], "completion": "  "}
    worse[1] = {**worse[1], "checks": [{**c, "decided": False} for c in worse[1]["checks"]]}
    found = assemble(base, worse, trained_kinds={"a", "b"})
    assert codes(found) == {"length_ratio", "diversity", "fluency", "empty_answers", "undecided_checks", "cut_answers"}
    assert figure(found, "completion_tokens")["ratio"] == 2.5
    limits = assemble(base, worse, trained_kinds={"a"}, metrics={"length": Length(largest_ratio=3)})
    assert "length_ratio" not in codes(limits)
    assert [f["name"] for f in limits["metrics"]] == ["completion_tokens"]


def test_gain_on_trained_kinds_with_loss_on_others() -> None:
    base, steered = sides(40)
    after, before = sides(40, "unseen_kinds", kinds=("c", "d"))
    found = assemble(base + before, steered + after, trained_kinds={"a", "b"})
    assert {"narrow_gain", "negative_flips"} <= codes(found)
    assert figure(found, "prompt_accuracy", "unseen_kinds")["difference"] < 0
    assert found["flips"]["unseen_kinds"]["lost"] > 0
    kinds = found["flips"]["unseen_kinds"]["by_kind"]
    assert kinds["c"]["lost"] == sum(
        b["checks"][0]["followed"] and not s["checks"][0]["followed"] for b, s in zip(before, after)
    )


# Drift.


def test_kl_of_sampled_tokens_is_unbiased_and_not_negative() -> None:
    policy, base = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.4, 0.3])
    tokens = np.random.default_rng(0).choice(3, size=200_000, p=policy)
    exact = float((policy * np.log(policy / base)).sum())
    assert drift.kl_per_token(np.log(policy)[tokens], np.log(base)[tokens]) == pytest.approx(exact, abs=0.005)
    assert all(drift.kl_per_token([math.log(policy[t])], [math.log(base[t])]) >= 0 for t in range(3))
    assert drift.kl_per_token([], []) is None
    with pytest.raises(InputError, match="one log-probability a token"):
        drift.kl_per_token([-1.0], [-1.0, -2.0])


def test_distinct_without_each_is_leaving_out() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 6, size=n).tolist() for n in rng.integers(0, 12, size=15)]
    groups = [str(i // 2) for i in range(15)]
    expected = [drift.distinct([t for t, g in zip(texts, groups) if g != out]) for out in dict.fromkeys(groups)]
    assert drift.distinct_without_each(texts, groups) == expected


def test_distinct_interval_covers() -> None:
    """The jackknife interval of two equal sources holds 0 in about 95 % of 200 trials."""
    rng, held = np.random.default_rng(1), 0
    weights = 1 / np.arange(1, 201)
    for _ in range(200):
        texts = [
            [" ".join(map(str, rng.choice(200, size=30, p=weights / weights.sum()))) for _ in range(40)]
            for _ in range(2)
        ]
        base, steered = ([row(i, [True], completion=t) for i, t in enumerate(own)] for own in texts)
        low, high = assemble(base, steered, trained_kinds=set(), metrics=["diversity"])["metrics"][0]["interval"]
        held += low <= 0 <= high
    assert held >= 0.9 * 200


def test_longer_answers_alone_are_told_from_repetition() -> None:
    words = [f"w{i}" for i in range(30)]
    rng = np.random.default_rng(2)
    base = [row(i, [True], completion=" ".join(rng.choice(words, 10))) for i in range(80)]
    steered = [row(i, [True], completion=" ".join(rng.choice(words, 40))) for i in range(80)]
    found = assemble(base, steered, trained_kinds=set())
    assert figure(found, "distinct_2")["ratio"] < 0.9 < figure(found, "distinct_2")["ratio_at_equal_length"]
    assert "grew longer" in next(w for w in found["warnings"] if w["code"] == "diversity")["message"]


def test_table_of_metrics_names_what_exists() -> None:
    from optative.core.config import look_up

    for name in METRICS:
        options, measure = look_up(METRICS, name, "metric")
        assert options().level == 0.95
        assert callable(measure)


def test_examples_in_docstrings() -> None:
    from optative.evaluation import independence

    for module in (drift, independence):
        assert doctest.testmod(module).failed == 0


def test_documentation_names_every_figure_and_warning() -> None:
    """docs/evaluation.md lists what the code can write."""
    root = Path(__file__).resolve().parents[1]
    text = (root / "docs" / "evaluation.md").read_text("utf-8")
    sources = [(root / "src/optative/evaluation" / f"{name}.py").read_text("utf-8") for name in ("assemble", "ranking")]
    written = {code for source in sources for code in re.findall(r'warning\(\s*"(\w+)"', source)}
    base, steered = sides(10)
    found = assemble(base, steered, trained_kinds=set(), kl_values={r["id"]: 0.1 for r in base})
    missing = [name for name in {*written, *METRICS, *(f["name"] for f in found["metrics"])} if f"`{name}`" not in text]
    assert len(written) > 10
    assert missing == []
