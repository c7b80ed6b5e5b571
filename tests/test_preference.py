"""The trainer on a tiny model: all losses on all kinds of records, and packing never changes a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.core.errors import InputError
from optative.core.files import read_jsonl
from optative.generators.language.adapters import add_lora, lora_parameters
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group, Pack
from optative.generators.language.trained import prepare_training, starting_point, trained_parameters
from optative.generators.options import LoraOptions
from optative.optimizers.losses.pairs import dpo
from optative.optimizers.options import DPO, LOSSES, Preference
from optative.optimizers.preference import (
    completion_sums,
    measure,
    micro_loss,
    mismatched_groups,
    pack_units,
    reference_sums,
    step_micros,
    sums_of,
    train_preferences,
)
from optative.optimizers.terms import Sums, terms, usable
from optative.optimizers.units import Unit, rows
from optative.optimizers.watch import selection_warnings, training_warnings
from tiny_models import save_tiny_model

MIXTURE = {  # of each kind of record one, and one that looks at the whole step
    "terms": [
        {"dpo": {"weight": 0.8}},
        {"kto": {"weight": 0.2}},
        {"plackett_luce": {}},
        {"davidson": {"weight": 0.5}},
        {"aot": {}},
        {"sft": {"weight": 0.1}},
    ]
}
REFERENCE_FREE = {"simpo", "alphapo", "orpo", "cpo", "sft"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def model(tiny: Path, dropout: float = 0.0):
    lm = load_language_model(str(tiny), dtype="float32")
    add_lora(lm, LoraOptions(rank=4, dropout=dropout), seed=0)
    rng = np.random.default_rng(3)
    with torch.no_grad():  # a policy that is not its reference, or every margin would be zero
        for name, parameter in lora_parameters(lm).items():
            if "lora_B" in name:
                parameter.copy_(torch.from_numpy(rng.normal(0, 0.05, tuple(parameter.shape))))
    return lm


def pairs(n: int, masked: bool = False) -> list[Unit]:
    rng = np.random.default_rng(1)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 250, rng.integers(low, high)).tolist())

    made = []
    for i in range(n):
        completions = (ids(1, 20), ids(1, 20))
        masks = tuple(tuple(j % 3 != 1 for j in range(len(c))) for c in completions) if masked else None
        made.append(Unit(str(i), Group(ids(3, 30), completions, masks), strength=float(i % 3), confidence=0.9))
    return made


def mixed() -> list[Unit]:
    """Pairs, a tie, lists with and without ties, labelled answers: all that a file may hold at once."""
    rng = np.random.default_rng(2)

    def group(k: int) -> Group:
        lengths = rng.integers(2, 15, k + 1)
        prompt, *completions = (tuple(rng.integers(0, 250, n).tolist()) for n in lengths)
        return Group(prompt, tuple(completions))

    return [
        Unit("pair", group(2), strength=2.0),
        Unit("tie", group(2), (1.0, 1.0)),
        Unit("list", group(4), (0.0, 3.0, 1.0, 3.0), strength=None, confidence=0.8),
        Unit("good", group(1), (1.0,), labelled=True),
        Unit("bad", group(1), (0.0,), labelled=True),
        Unit("other pair", group(2), (0.0, 1.0)),
        Unit("both bad", group(2), (0.0, 0.0), labelled=True),
    ]


def config(name: str, **more: Any) -> Preference:
    given = {"token_budget": 60, "units_per_step": 7, **(MIXTURE if name == "mixture" else {}), **more}
    return LOSSES[name].config.model_validate(given)


def plain_sums(lm, units: list[Unit]) -> Sums:
    """One forward of Transformers' own for each completion."""
    logps, tokens = [], []
    for unit in units:
        group = unit.group
        for side, completion in enumerate(group.completion_ids):
            ids = torch.tensor([group.prompt_ids + completion], device=lm.device)
            all_logps = lm.model(input_ids=ids).logits[0].log_softmax(-1)
            at = len(group.prompt_ids)
            mask = group.masks[side] if group.masks else (True,) * len(completion)
            each = [all_logps[at + k - 1, t] for k, t in enumerate(completion) if mask[k]]
            logps.append(torch.stack(each).sum())
            tokens.append(float(len(each)))
    return Sums(torch.stack(logps), None, torch.tensor(tokens, device=lm.device))


def plain_gradient(lm, units: list[Unit], name: str, options: Preference, kl: torch.Tensor | None) -> dict[str, Any]:
    own = plain_sums(lm, units)
    with torch.no_grad(), starting_point(lm):
        start = plain_sums(lm, units).logps_C
    sums = Sums(own.logps_C, start, own.tokens_C)
    value = torch.stack([term.total(units, sums, kl=kl) for term in terms(name, options)]).sum() / len(units)
    parameters = trained_parameters(lm)
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {"": value.detach(), **dict(zip(parameters, gradients))}


def fast_gradient(lm, units: list[Unit], name: str, options: Preference) -> tuple[dict[str, Any], torch.Tensor | None]:
    losses = terms(name, options)
    reference = reference_sums(lm, units, range(len(units)), options)
    lm.model.zero_grad(set_to_none=True)
    total = torch.zeros(())
    step = range(len(units))
    micros = step_micros(lm, units, step, step, reference, options, losses)
    assert len(micros) > 1
    for micro in micros:
        result = micro_loss(lm, units, micro, len(units), options, losses)
        result.loss.backward()
        total = total + result.loss.detach()
    found = {"": total, **{n: p.grad for n, p in trained_parameters(lm).items()}}
    return found, micros[0].kl


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_on_mixed_records_has_the_plain_value_and_gradient(tiny: Path, name: str) -> None:
    """Packed, prompts shared, chunked, reference from the cache, accumulated over packs: against plain forwards."""
    lm, units = model(tiny), mixed()
    more = {"nll_weight": 0.3} if "nll_weight" in LOSSES[name].config.model_fields else {}
    options = config(name, **more)
    fast, kl = fast_gradient(lm, units, name, options)
    plain = plain_gradient(lm, units, name, options, kl)
    assert float(plain[""]) != 0
    for key, value in plain.items():
        if value is not None:
            scale = float(value.abs().max())
            torch.testing.assert_close(fast[key], value, rtol=1e-3, atol=1e-4 * scale + 1e-7)


@pytest.mark.parametrize("name", ["dpo", "kto", "plackett_luce", "aot", "sft"])
def test_all_weights_can_be_trained(tiny: Path, name: str) -> None:
    lm, units = load_language_model(str(tiny), dtype="float32"), mixed()
    prepare_training(lm, None, 0, keep_start=True)
    with torch.no_grad():
        for parameter in trained_parameters(lm).values():
            parameter.mul_(1.01)
    options = config(name)
    before = {n: p.clone() for n, p in trained_parameters(lm).items()}
    fast, kl = fast_gradient(lm, units, name, options)
    assert all(torch.equal(p, before[n]) for n, p in trained_parameters(lm).items())
    plain = plain_gradient(lm, units, name, options, kl)
    for key, value in plain.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(fast[key], value, rtol=1e-3, atol=1e-4 * scale + 1e-7)


def test_packs_give_the_log_probabilities_of_plain_forwards(tiny: Path) -> None:
    lm, own = model(tiny), pairs(6, masked=True)
    for micro in pack_units(own, range(6), 90):
        sums = completion_sums(lm, micro.pack, DPO())
        plain = plain_sums(lm, [own[i] for i in micro.units])
        torch.testing.assert_close(sums.logps_C, plain.logps_C, rtol=0, atol=1e-3)
        torch.testing.assert_close(sums.tokens_C, plain.tokens_C)


def test_the_tail_of_the_longer_answer_weighs_less(tiny: Path) -> None:
    lm = model(tiny)
    (unit,) = pairs(1, masked=True)
    whole = [scores_of(lm, unit, side) for side in (0, 1)]
    shared = min(map(len, whole))
    expected = [sum(own[:shared]) + 0.25 * sum(own[shared:]) for own in whole]
    found = completion_sums(lm, Pack((unit.group,), (0,)), DPO(length_desensitise=0.25)).logps_C
    assert found.tolist() == pytest.approx(expected, abs=1e-3)


def scores_of(lm, unit: Unit, side: int) -> list[float]:
    ids = torch.tensor([unit.group.prompt_ids + unit.group.completion_ids[side]], device=lm.device)
    logps, at = lm.model(input_ids=ids).logits[0].log_softmax(-1), len(unit.group.prompt_ids)
    completion = unit.group.completion_ids[side]
    return [float(logps[at + k - 1, t]) for k, t in enumerate(completion) if unit.group.masks[side][k]]


def test_wpo_weighs_answers_by_how_likely_the_policy_would_write_them(tiny: Path) -> None:
    lm, (unit,) = model(tiny), pairs(1)
    expected = []
    for completion in unit.group.completion_ids:
        ids = torch.tensor([unit.group.prompt_ids + completion], device=lm.device)
        logps = lm.model(input_ids=ids).logits[0].log_softmax(-1)
        at, each = len(unit.group.prompt_ids), []
        for k, token in enumerate(completion):
            row = logps[at + k - 1]
            each.append(float(row[token] - (2 * row).exp().sum().log()))
        expected.append(np.exp(np.mean(each)))
    sums = completion_sums(lm, Pack((unit.group,), (0,)), DPO(weighting="wpo"))
    assert sums.weights_C.tolist() == pytest.approx(expected, rel=1e-3)
    start = sums_of(lm, [unit], [0], DPO())
    sums = Sums(sums.logps_C, torch.tensor(start[0], device=lm.device) - 1.0, sums.tokens_C, sums.weights_C)
    (term,) = terms("dpo", DPO(weighting="wpo"))
    plain = term.total([unit], Sums(sums.logps_C, sums.ref_logps_C, sums.tokens_C))
    assert float(term.total([unit], sums).detach()) == pytest.approx(
        float(plain.detach()) * np.prod(expected), rel=1e-3
    )


def run(lm, units: list[Unit], name: str, options: Preference, folder: Path) -> list[dict[str, Any]]:
    reference = None if name in REFERENCE_FREE else reference_sums(lm, units, range(len(units)), options)
    path = folder / "metrics.jsonl"
    train_preferences(
        lm,
        units,
        reference,
        loss=name,
        options=options,
        seed=1,
        key="k",
        journal_path=path,
        journal_start=0,
        checkpoints=folder / "checkpoints",
    )
    return list(read_jsonl(path))


@pytest.mark.parametrize("name", ["dpo", "kto", "plackett_luce", "aot_unpaired", "simpo"])
def test_the_token_budget_never_changes_a_step(tiny: Path, tmp_path: Path, name: str) -> None:
    units = mixed() if name in ("kto", "plackett_luce") else pairs(7)
    found = []
    for budget in (16, 100, 5000):
        lm = model(tiny)
        options = config(name, learning_rate=0.01, units_per_step=4, token_budget=budget)
        lines = run(lm, units, name, options, tmp_path / str(budget))
        found.append((lines, {k: v.detach().clone() for k, v in lora_parameters(lm).items()}))
    for lines, weights in found[1:]:
        for line, other in zip(lines, found[0][0]):
            assert line.keys() == other.keys()
            for key in ("loss", "grad_norm", "rewards/margins", "nll_loss", "num_tokens", "rewards/accuracies"):
                assert key not in line or line[key] == pytest.approx(other[key], rel=2e-3, abs=1e-4), key
        for key, value in weights.items():
            torch.testing.assert_close(value, found[0][1][key], rtol=2e-2, atol=2e-4)


def test_the_first_step_starts_where_the_reference_is(tiny: Path, tmp_path: Path) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    prepare_training(lm, LoraOptions(rank=4), 0)
    (line,) = run(lm, pairs(5), "dpo", DPO(units_per_step=5), tmp_path)
    assert line["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert line["rewards/accuracies"] == 0.5
    assert line["grad_norm"] > 0


def test_the_measured_loss_is_dpo_on_the_sums(tiny: Path) -> None:
    lm, own, options = model(tiny), pairs(5), DPO(beta=0.3, units_per_step=2)
    reference = reference_sums(lm, own, range(5), options)
    sums, ref = torch.tensor(sums_of(lm, own, range(5), options)), torch.tensor(reference)
    right = dpo(sums[:, 0], sums[:, 1], ref[:, 0], ref[:, 1], confidence_B=torch.full((5,), 0.9), beta=0.3).mean()
    found, each = measure(lm, own, reference, losses=terms("dpo", options), options=options)
    torch.testing.assert_close(torch.tensor(each), sums)
    assert found["loss"] == pytest.approx(float(right), rel=1e-4)


def test_the_reference_is_free_of_dropout(tiny: Path) -> None:
    lm, own = model(tiny, dropout=0.5), pairs(4)
    lm.model.train()
    first = reference_sums(lm, own, range(4), DPO())
    assert lm.model.training
    assert reference_sums(lm, own, range(4), DPO()) == first


def test_what_each_kind_of_loss_takes_from_a_record() -> None:
    pair, tie, ranked, good, bad, _, both_bad = mixed()

    def members(unit: Unit, kind: Any) -> list[tuple[int, ...]]:
        return [row.members for row in rows(unit, 0, kind)]

    assert members(pair, "pair") == [(0, 1)]
    assert members(ranked, "pair") == [(1, 2), (1, 0), (3, 2), (3, 0), (2, 0)]
    assert [row.strength for row in rows(ranked, 0, "pair")] == [2.0, 3.0, 2.0, 3.0, 1.0]
    assert [(r.members, r.tied) for r in rows(tie, 0, "tied pair")] == [((0, 1), True)]
    assert members(tie, "pair") == members(tie, "completion") == members(tie, "list") == []
    assert [(r.members, r.desirable) for r in rows(ranked, 0, "completion")] == [
        ((1,), True),
        ((3,), True),
        ((0,), False),
    ]
    assert rows(ranked, 0, "list")[0].ranks == (2, 0, 1, 0)
    assert [r.desirable for u in (good, bad, both_bad) for r in rows(u, 0, "completion")] == [True, False, False, False]
    assert members(bad, "good completion") == [] != members(good, "good completion")
    assert [usable(u, terms("dpo", DPO())) for u in mixed()] == [True, False, True, False, False, True, False]
    assert all(usable(u, terms("mixture", config("mixture"))) for u in mixed())
    twice = Unit("same", Group((1,), ((2,), (2,))))
    assert members(twice, "pair") == []


def test_kto_never_takes_an_answer_of_the_same_prompt_or_text_for_a_mismatched_one() -> None:
    """Case 15: an odd batch, a last batch of one, two records that are alike."""

    def record(name: str, prompt: int, answer: int) -> Unit:
        return Unit(name, Group((prompt,), ((answer,),)), (1.0,), labelled=True)

    own = [record(f"r{i}", i, 100 + i) for i in range(7)]
    own[4] = record("r4", 1, 101)

    def pairing(units: list[Unit], step: list[int]) -> list[tuple[int, int]]:
        return [(g.prompt_ids[0], g.completion_ids[0][0] - 100) for g in mismatched_groups(units, step, 512)]

    assert pairing(own, [0, 1, 2]) == [(0, 1), (1, 2), (2, 0)]
    assert pairing(own, [6]) == [(6, 0)]  # borrowed from the data
    assert pairing(own, [1, 4]) == [(1, 2), (1, 5)]  # r1 and r4 are alike, so neither stands in for the other
    with pytest.raises(InputError, match="answers of other prompts"):
        mismatched_groups([own[1], own[4]], [0, 1], 512)


def test_a_step_of_ties_alone_in_a_mixture_with_kto_has_no_reference_point(tiny: Path, tmp_path: Path) -> None:
    options = LOSSES["mixture"].config(terms=[{"kto": {}}, {"davidson": {}}], units_per_step=2)
    tie = mixed()[1]
    found = run(model(tiny), [tie, replace(tie, id="again")], "mixture", options, tmp_path)
    assert [line["kl"] for line in found] == [0.0]
    assert all(np.isfinite(line["loss"]) for line in found)


def lines(n: int = 10, **values: float) -> list[dict]:
    usual = {"grad_norm": 1.0, "rewards/chosen": 0.2, "rewards/rejected": -0.3, "rewards/accuracies": 0.8}
    return [{"step": i, "round": 1, "rewards/margins": 0.5, **usual, **values} for i in range(n)]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({}, None),
        ({"rewards/chosen": -1.0, "rewards/rejected": -1.5}, "likelihood_displacement"),
        ({"rewards/chosen": -0.05, "rewards/rejected": -0.55}, None),
        ({"rewards/accuracies": 1.0, "rewards/margins": 5.0}, "margins_saturated"),
        ({"grad_norm": 30.0}, "gradient_spikes"),
        ({"eval_rewards/accuracies": 0.5}, "overfitting"),
    ],
)
def test_warnings_say_what_goes_wrong(values: dict[str, float], code: str | None) -> None:
    assert [w["code"] for w in training_warnings(lines(**values))] == ([code] if code else [])


def test_metrics_that_a_loss_does_not_have_warn_of_nothing() -> None:
    assert training_warnings([{"step": i, "grad_norm": 1.0, "loss": 2.0} for i in range(10)]) == []


def test_selection_warns_of_ties_and_of_few_pairs() -> None:
    assert [w["code"] for w in selection_warnings(1, 10, 6, 40)] == ["zero_variance"]
    assert [w["code"] for w in selection_warnings(1, 10, 5, 15)] == ["few_pairs"]
    assert [w["code"] for w in selection_warnings(1, 10, 5, 40, 9)] == ["cut_winners"]
    assert selection_warnings(1, 10, 5, 40, 8) == []
