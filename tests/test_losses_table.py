"""Every loss of the table: against a slow scalar formula, and the properties that all of them share.

`agrees` is the check; the planted faults at the end show that it can fail.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from loss_inputs import FORMULAS, KINDS, NUMBERS, STEP_FORMULAS, formula, units
from optative.optimizers.losses.bind import bind, function_of, tensors_of
from optative.optimizers.losses.reduction import step_mean
from optative.optimizers.options import LOSSES, OPTIMIZERS, VARIANTS, own_fields
from optative.optimizers.terms import implicit_beta, terms

NAMES = [name for name in LOSSES if name != "mixture"]
COUPLED = ["aot", "aot_unpaired"]
LEARNT = ("chosen_B", "rejected_B", "logps_B", "logps_BK")
SAMPLE = range(50)


def numbers_of(name: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {field: NUMBERS[field](rng) for field in own_fields(LOSSES[name].config)}


def given(name: str, seed: int, **options: Any) -> dict[str, torch.Tensor]:
    return {k: v for k, v in units(LOSSES[name].kind, seed, **options).items() if k in tensors_of(function_of(name))}


def agrees(name: str, function: Any, seeds: Any = SAMPLE) -> bool:
    """Does `function` equal the scalar formula in value, and in gradient by central differences of the formula?"""
    for seed in seeds:
        tensors, numbers = given(name, seed), numbers_of(name, seed)
        learnt = [key for key in tensors if key in LEARNT]
        for key in learnt:
            tensors[key].requires_grad_()
        values_B = function(**tensors, **numbers)
        values_B.sum().backward()
        plain = {key: tensor.detach() for key, tensor in tensors.items()}
        if not np.allclose(values_B.detach(), formula(name, plain, numbers), rtol=1e-8, atol=1e-8):
            return False
        for key in learnt:
            slope = torch.zeros_like(plain[key])
            for index in np.ndindex(*slope.shape):
                around = []
                for step in (1e-5, -1e-5):
                    moved = plain[key].clone()
                    moved[index] += step
                    around.append(sum(formula(name, {**plain, key: moved}, numbers)))
                slope[index] = (around[0] - around[1]) / 2e-5
            if not torch.allclose(tensors[key].grad, slope, rtol=1e-4, atol=1e-5):
                return False
    return True


def test_every_loss_has_a_formula():
    assert FORMULAS.keys() | STEP_FORMULAS.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_scalar_formula(name):
    assert agrees(name, function_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_function_is(name):
    """The Config's own fields are the function's keyword numbers; tensors are those of the kind; `ref_` says it all."""
    loss, function = LOSSES[name], function_of(name)
    keyword = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(keyword) == sorted(own_fields(loss.config))
    assert set(tensors_of(function)) <= set(KINDS[loss.kind])
    assert loss.reference == any(key.startswith("ref_") for key in tensors_of(function))
    assert loss.coupled == (name in COUPLED)
    assert ("margin_per_strength" in loss.config.model_fields) == ("margin_B" in tensors_of(function))
    bound = bind(name, loss.config())
    assert (bound.kind, bound.coupled, bound.reference) == (loss.kind, loss.coupled, loss.reference)
    assert bound(**given(name, 0)).shape == (5,)
    assert OPTIMIZERS[name][0] is loss.config
    assert function.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_defaults_of_the_functions_are_those_of_the_options(name):
    for parameter in inspect.signature(function_of(name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            assert parameter.default == LOSSES[name].config.model_fields[parameter.name].default


@pytest.mark.parametrize("variant", VARIANTS)
def test_named_variants_are_settings_that_parse(variant):
    name, settings, _ = VARIANTS[variant]
    assert variant not in LOSSES
    LOSSES[name].config(**settings)


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_of_a_wrong_shape_is_an_error(name):
    right = given(name, 0)
    for key, tensor in right.items():
        for wrong in (tensor[None], tensor[:1] if tensor.ndim else torch.zeros(5)):
            with pytest.raises(ValueError, match=f"{key}|has shape"):
                function_of(name)(**{**right, key: wrong}, **numbers_of(name, 0))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_units_does_not_matter(name):
    tensors, numbers = given(name, 3), numbers_of(name, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {key: tensor[order] if tensor.ndim else tensor for key, tensor in tensors.items()}
    values, again = function_of(name)(**tensors, **numbers), function_of(name)(**moved, **numbers)
    torch.testing.assert_close(again, values if name in COUPLED else values[order])


@pytest.mark.parametrize("name", NAMES)
def test_a_split_step_adds_up_unless_the_loss_is_coupled(name):
    tensors, numbers = given(name, 4), numbers_of(name, 4)
    whole = step_mean(function_of(name)(**tensors, **numbers), 5)
    parts = sum(
        step_mean(function_of(name)(**{k: v[s] if v.ndim else v for k, v in tensors.items()}, **numbers), 5)
        for s in (slice(0, 2), slice(2, 5))
    )
    assert (abs(whole - parts) < 1e-12) == (name not in COUPLED)


RATIOS_ONLY = [name for name in NAMES if LOSSES[name].reference and name not in ("gamma_dpo", "aot")]


@pytest.mark.parametrize("name", RATIOS_ONLY)
def test_only_log_ratios_to_the_reference_matter(name):
    tensors, numbers = given(name, 5), numbers_of(name, 5)
    moved = dict(tensors)
    for own in LEARNT:
        if own in tensors:
            moved[own], moved[f"ref_{own}"] = tensors[own] - 7.0, tensors[f"ref_{own}"] - 7.0
    torch.testing.assert_close(function_of(name)(**moved, **numbers), function_of(name)(**tensors, **numbers))


@pytest.mark.parametrize(
    "name", ["dpo", "hinge", "exo_pair", "robust", "discopop", "gamma_dpo", "rao_kupper", "davidson", "cpo", "aot"]
)
def test_only_the_difference_within_a_pair_matters(name):
    tensors, numbers = given(name, 6), numbers_of(name, 6)
    if "divergence" in numbers:
        numbers["divergence"] = "reverse_kl"
    moved = {**tensors, "chosen_B": tensors["chosen_B"] + 2.5, "rejected_B": tensors["rejected_B"] + 2.5}
    torch.testing.assert_close(function_of(name)(**moved, **numbers), function_of(name)(**tensors, **numbers))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_huge_log_ratios_give_finite_values_and_gradients(name, size):
    """Also log-probabilities of exactly 0, where 1 - p is 0."""
    for seed in range(8):
        tensors, numbers = given(name, seed, dtype=torch.float32), numbers_of(name, seed)
        for place, key in enumerate(k for k in tensors if k in LEARNT):
            tensors[key] = (torch.full_like(tensors[key], size * (1, -1)[place])).requires_grad_()
        values = function_of(name)(**tensors, **numbers)
        values.sum().backward()
        assert values.isfinite().all(), (seed, values)
        for key in tensors:
            if key in LEARNT:
                assert tensors[key].grad.isfinite().all(), (seed, key)


@pytest.mark.parametrize("name", [n for n in NAMES if LOSSES[n].kind == "pair"])
def test_at_the_start_the_chosen_answer_is_drawn_up_and_the_rejected_one_down(name):
    """`apo_down` leaves the chosen answer alone there, and draws it down later; `discopop` starts the wrong way."""
    tensors = given(name, 0)
    for side in ("chosen", "rejected"):
        tensors[f"{side}_B"] = torch.full((5,), -20.0, dtype=torch.float64).requires_grad_()
        for key, value in ((f"ref_{side}_B", -20.0), (f"{side}_tokens_B", 10.0)):
            if key in tensors:
                tensors[key] = torch.full((5,), value, dtype=torch.float64)
    tensors |= {"confidence_B": torch.ones(5, dtype=torch.float64)} if "confidence_B" in tensors else {}
    tensors |= {"tied_B": torch.zeros(5, dtype=torch.bool)} if "tied_B" in tensors else {}
    bind(name, LOSSES[name].config())(**tensors).sum().backward()
    up, down = tensors["chosen_B"].grad, tensors["rejected_B"].grad
    if name == "discopop":  # a property of the published loss (arXiv:2406.08414, section 5), not of this code
        up, down = -up, -down
    assert (down > 0).all()
    assert torch.allclose(up, torch.zeros_like(up)) if name == "apo_down" else (up < 0).all()


FAULTS = {
    "the sign flipped": lambda function, t, n: function(**t, **{**n, "beta": -n["beta"]}),
    "twice the scale": lambda function, t, n: 2 * function(**t, **n),
    "the sides swapped": lambda function, t, n: function(
        **{**t, "chosen_B": t["rejected_B"], "rejected_B": t["chosen_B"]}, **n
    ),
    "the reference left out": lambda function, t, n: function(
        **{k: torch.zeros_like(v) if k.startswith("ref_") else v for k, v in t.items()}, **n
    ),
    "sums for means": lambda function, t, n: function(
        **{k: torch.ones_like(v) if "tokens" in k else v for k, v in t.items()}, **n
    ),
    "means for sums": lambda function, t, n: function(
        **{k: v / 7 if k in LEARNT or k.startswith("ref_") else v for k, v in t.items()}, **n
    ),
    "the mean for each unit": lambda function, t, n: function(**t, **n).mean().expand(5),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_planted_fault_is_found(name, fault):
    tensors = tensors_of(function_of(name))
    acts = {
        "the sign flipped": "beta" in own_fields(LOSSES[name].config),
        "the sides swapped": "chosen_B" in tensors,
        "the reference left out": LOSSES[name].reference,
        "sums for means": any("tokens" in key for key in tensors),
    }
    if acts.get(fault, True):

        def planted(**arguments: Any) -> torch.Tensor:
            own = {key: value for key, value in arguments.items() if key in tensors}
            numbers = {key: value for key, value in arguments.items() if key not in tensors}
            return FAULTS[fault](function_of(name), own, numbers)

        assert not agrees(name, planted, range(3))


def test_a_mixture_is_its_terms_with_their_numbers_and_weights():
    options = LOSSES["mixture"].config(
        terms=[
            {"simpo": {}},
            {"dpo": {"weight": 0.8, "beta": 0.3}},
            {"aot": {"weight": 2}},
            {"davidson": {}},
            {"kto": {}},
        ],
        nll_weight=0.5,
    )
    found = terms("mixture", options)
    assert [(term.loss.name, term.kind, term.weight, term.added) for term in found] == [
        ("simpo", "pair", 1.0, False),
        ("dpo", "pair", 0.8, False),
        ("aot", "pair", 2.0, False),
        ("davidson", "tied pair", 1.0, False),
        ("kto", "completion", 1.0, False),
        ("sft", "good completion", 0.5, True),
    ]
    assert found[1].loss.numbers["beta"] == 0.3
    assert implicit_beta(found) == found[0].loss.numbers["beta"]
    tensors = given("dpo", 1)
    torch.testing.assert_close(found[1].loss(**tensors), bind("dpo", LOSSES["dpo"].config(beta=0.3))(**tensors))


def test_a_mixture_without_a_reference_asks_for_none():
    options = LOSSES["mixture"].config(terms=[{"simpo": {}}, {"orpo": {"weight": 0.5}}])
    assert not any(term.loss.reference for term in terms("mixture", options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": []}, "at least 1"),
        ({"terms": [{"mixture": {}}]}, "unknown loss 'mixture'"),
        ({"terms": [{"dpo": {}}, {"aot": {}}], "units_per_step": 1}, "nothing to sort"),
        ({"terms": [{"dpoo": {}}]}, "the nearest is 'dpo'"),
        ({"terms": [{"dpo": {}}, {"kto": {}}], "length_desensitise": 0.5}, "length_desensitise cannot act"),
        ({"terms": [{"dpo": {}, "ipo": {}}]}, "exactly one name"),
        ({"terms": [{"dpo": {"bta": 1}}]}, "the nearest is 'beta'"),
        ({"terms": [{"dpo": {"learning_rate": 1e-3}}]}, "unknown option of a term 'learning_rate'"),
        ({"terms": [{"dpo": {"weight": 0}}]}, "above 0"),
        ({"terms": [{"dpo": {"weight": True}}]}, "above 0"),
        ({"terms": [{"dpo": {"beta": -1}}]}, "greater than 0"),
        ({"terms": [{"simpo": {}}], "reference_every": 5}, "reference_every cannot act"),
        ({"terms": [{"simpo": {}}], "length_desensitise": 0.5}, "length_desensitise cannot act"),
        ({"terms": [{"ipo": {}}], "margin_per_strength": 1}, "margin_per_strength cannot act"),
        ({"terms": [{"dpo": {}}, {"aot": {}}], "weighting": "wpo"}, "weighting cannot act"),
    ],
)
def test_a_mixture_that_cannot_be_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES["mixture"].config(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"divergence_alpha": 0.3}, "cannot act with divergence reverse_kl"),
        ("dpo", {"reference_mix": 0.5}, "the reference does not move"),
        ("simpo", {"length_desensitise": 0.5}, "[Ee]xtra"),
        ("simpo", {"reference_every": 5}, "[Ee]xtra"),
        ("aot", {"weighting": "wpo"}, "[Ee]xtra"),
        ("sft", {"nll_weight": 0.5}, "[Ee]xtra"),
        ("ipo", {"margin_per_strength": 0.5}, "[Ee]xtra"),
        ("nca_pair", {"divergence": "forward_kl"}, "[Ee]xtra"),
        ("alphapo", {"alpha": 0}, "alpha = 0 is SimPO"),
        ("kto", {"units_per_step": 1}, "use at least 2"),
        ("aot", {"units_per_step": 1}, "nothing to sort"),
        ("exo_pair", {"label_smoothing": 0}, "greater than 0"),
        ("robust", {"label_smoothing": 0.5}, "less than 0.5"),
        ("rao_kupper", {"nu": 1}, "greater than 1"),
    ],
)
def test_an_option_that_cannot_act_is_an_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name].config(**options)


@pytest.mark.parametrize("name", LOSSES)
def test_options_survive_being_written_and_read(name):
    config = LOSSES[name].config
    options = config(terms=[{"dpo": {}}]) if name == "mixture" else config()
    assert config.model_validate(options.model_dump(mode="json")) == options


def test_tensors_that_a_loss_does_not_know_are_an_error():
    bound = bind("simpo", LOSSES["simpo"].config())
    with pytest.raises(TypeError, match=r"does not take \['ref_chosen_B'\] and lacks \['rejected_B'\]"):
        bound(**{k: v for k, v in given("simpo", 0).items() if k != "rejected_B"}, ref_chosen_B=torch.zeros(5))
