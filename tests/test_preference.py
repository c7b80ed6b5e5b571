"""The preference trainer on a tiny model: packing never changes a step, masks count, warnings say what they see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from optative.core.files import read_jsonl
from optative.generators.language.adapters import add_lora, lora_parameters
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group
from optative.generators.options import LoraOptions
from optative.optimizers.losses.pairs import dpo
from optative.optimizers.options import DPO
from optative.optimizers.preference import EncodedPair, measure_pairs, pack_pairs, pair_logps, train_preferences
from optative.optimizers.reference import reference_logps
from optative.optimizers.watch import selection_warnings, training_warnings
from tiny_models import save_tiny_model


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


def pairs(n: int, masked: bool = False) -> list[EncodedPair]:
    rng = np.random.default_rng(1)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 250, rng.integers(low, high)).tolist())

    made = []
    for i in range(n):
        completions = (ids(1, 20), ids(1, 20))
        masks = tuple(tuple(j % 3 != 1 for j in range(len(c))) for c in completions) if masked else None
        made.append(EncodedPair(str(i), Group(ids(3, 30), completions, masks), strength=float(i % 3), confidence=0.9))
    return made


def test_packs_give_the_log_probabilities_of_plain_forwards(tiny: Path) -> None:
    lm, own = model(tiny), pairs(6, masked=True)
    for micro in pack_pairs(own, range(6), token_budget=90):
        logps_B2, counts_B2 = pair_logps(lm, micro)
        for i, sums, counts in zip(micro.pairs, logps_B2.tolist(), counts_B2.tolist()):
            group = own[i].group
            for side in (0, 1):
                ids = torch.tensor([group.prompt_ids + group.completion_ids[side]])
                logps = lm.model(input_ids=ids).logits[0].log_softmax(-1).detach()
                at = len(group.prompt_ids)
                each = [float(logps[at + k - 1, t]) for k, t in enumerate(group.completion_ids[side])]
                assert sums[side] == pytest.approx(sum(v for v, m in zip(each, group.masks[side]) if m), abs=1e-3)
                assert counts[side] == sum(group.masks[side])


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
def test_the_token_budget_never_changes_a_step(tiny: Path, tmp_path: Path, nll_weight: float) -> None:
    own, found = pairs(7), []
    for budget in (16, 100, 5000):
        lm = model(tiny)
        reference = reference_logps(lm, own, weights="w", cache=tmp_path / str(budget), token_budget=budget)
        options = DPO(
            learning_rate=0.01, units_per_step=4, token_budget=budget, nll_weight=nll_weight, margin_per_strength=0.1
        )
        path = tmp_path / f"{budget}.jsonl"
        train_preferences(
            lm,
            own,
            reference,
            options=options,
            seed=1,
            key="k",
            journal_path=path,
            journal_start=0,
            checkpoints=tmp_path / f"c{budget}",
        )
        found.append((list(read_jsonl(path)), {k: v.detach().clone() for k, v in lora_parameters(lm).items()}))
    for lines, weights in found[1:]:
        for line, other in zip(lines, found[0][0]):
            for name in ("loss", "grad_norm", "rewards/margins", "nll_loss", "num_tokens", "rewards/accuracies"):
                assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
        for name, value in weights.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=2e-3, atol=2e-5)


def test_the_step_is_dpo_on_the_sums(tiny: Path, tmp_path: Path) -> None:
    lm, own = model(tiny), pairs(5)
    reference = reference_logps(lm, own, weights="w", cache=tmp_path, token_budget=64)
    sums = torch.zeros(5, 2)
    with torch.no_grad():
        for micro in pack_pairs(own, range(5), 64):
            sums[list(micro.pairs)] = pair_logps(lm, micro)[0]
    ref = torch.tensor(reference)
    right = dpo(sums[:, 0], sums[:, 1], ref[:, 0], ref[:, 1], beta=0.3).mean()
    assert measure_pairs(lm, own, reference, options=DPO(beta=0.3))["loss"] == pytest.approx(float(right), rel=1e-4)


def test_the_reference_is_cached_by_content_and_free_of_dropout(tiny: Path, tmp_path: Path) -> None:
    lm, own = model(tiny, dropout=0.5), pairs(4)
    lm.model.train()
    first = reference_logps(lm, own, weights="w", cache=tmp_path, token_budget=64)
    assert lm.model.training
    calls: list[int] = []
    again = reference_logps(
        lm, own, weights="w", cache=tmp_path, token_budget=64, progress=lambda d, t: calls.append(d)
    )
    assert again == first
    assert not calls
    assert reference_logps(lm, own, weights="w", cache=tmp_path / "n", token_budget=64) == first
    reference_logps(lm, own[:3], weights="w", cache=tmp_path, token_budget=64)
    reference_logps(lm, own, weights="other", cache=tmp_path, token_budget=64)
    assert len(list(tmp_path.glob("*.json"))) == 3


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


def test_selection_warns_of_ties_and_of_few_pairs() -> None:
    assert [w["code"] for w in selection_warnings(1, 10, 6, 40)] == ["zero_variance"]
    assert [w["code"] for w in selection_warnings(1, 10, 5, 15)] == ["few_pairs"]
