"""The layers written out by hand against the model's own forward, in value, in gradient, and in when they are used.

The plain path is one padded row for each completion through Transformers and PEFT as they are.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from language_models import FAMILIES, family, wrap
from optative.generators.language import adapters, attention, fused, heads
from optative.generators.language.attention import base_of
from optative.generators.language.packing import Group, Pack
from optative.generators.language.score import score_pack
from optative.generators.options import LoraOptions
from test_score import assert_same_gradient, gradients, random_pack, weights_like

TAKEN = {"llama", "qwen2", "mistral", "granite"}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles smaller than the tiny models, so that there are several and the last one is ragged."""
    monkeypatch.setattr(attention, "TILE", 7)
    monkeypatch.setattr(heads, "TILE", 40)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the fast path ran: the plain one would pass every test of equality."""
    runs: list[int] = []
    run = fused.run_fused

    def counted(*args: Any) -> torch.Tensor:
        runs.append(1)
        return run(*args)

    monkeypatch.setattr("optative.generators.language.score.run_fused", counted)
    return runs


def with_adapter(name: str, *, seed: int = 0, **options: Any) -> Any:
    """A frozen model with an adapter that is not at its start, where B is zero."""
    model = family(name, seed=seed)
    model.requires_grad_(False)
    lm = wrap(model)
    lm.device, lm.name, lm.hub_id = torch.device("cpu"), name, None
    adapters.add_lora(lm, LoraOptions(rank=4, **options), seed)
    shake(lm, seed)
    return lm


def shake(lm: Any, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.lora_parameters(lm).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))


def assert_equal_paths(lm: Any, pack: Pack, tolerance: float = 1e-4) -> None:
    module = lm.model if hasattr(lm, "model") and not isinstance(lm, torch.nn.Module) else lm
    fast, plain = score_pack(lm, pack), score_pack(lm, pack, packed=False)
    torch.testing.assert_close(fast.logps, plain.logps, atol=1e-4, rtol=0)
    weights = weights_like(plain.logps)
    right = gradients(module, plain.logps @ weights)
    assert float(right.norm()) > 0
    assert_same_gradient(gradients(module, fast.logps @ weights), right, tolerance)


def test_which_families_are_taken_and_why_the_others_are_not():
    reasons = {name: fused.why_not_fused(family(name)) for name in FAMILIES}
    assert {name for name, reason in reasons.items() if reason is None} == TAKEN
    assert reasons["gemma2"] == "its layers have other parts than Llama's"


@pytest.mark.parametrize("multiplier", ["embedding_multiplier", "residual_multiplier"])
def test_a_number_that_the_parts_do_not_show(multiplier):
    """Granite has Llama's parts and these two factors, which are 1 by default."""
    from transformers import GraniteConfig, GraniteForCausalLM

    for dtype in (torch.float32, torch.bfloat16):
        model = GraniteForCausalLM(GraniteConfig(**FAMILIES["granite"][1], **{multiplier: 0.9})).to(dtype)
        assert fused.why_not_fused(model) == "its layers compute something else than Llama's"


@pytest.mark.parametrize("name", sorted(TAKEN))
@pytest.mark.parametrize("seed", [0, 1])
def test_adapters_of_all_linear_layers(name, seed, taken):
    assert_equal_paths(with_adapter(name, seed=seed), random_pack(seed))
    assert taken


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_all_weights_trained(name, taken):
    """Norms, biases, the embedding and a head of its own or tied to it are among them."""
    assert_equal_paths(family(name), random_pack(2))
    tied = family(name)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert_equal_paths(tied, random_pack(3))
    assert taken


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",), ("o_proj", "up_proj")])
def test_adapters_of_some_layers(targets, taken):
    assert_equal_paths(with_adapter("qwen2", targets=targets), random_pack(1))
    assert taken


def test_groups_of_one_token_and_of_many():
    groups = (Group((1,), ((2,),)), Group(tuple(range(40)), (tuple(range(30)), (4, 5), tuple(range(50, 70)))))
    assert_equal_paths(with_adapter("llama"), Pack(groups, (0, 1)), 1e-3)


def test_layers_that_are_computed_twice(monkeypatch, taken):
    lm, pack = with_adapter("llama"), random_pack(4)
    kept = score_pack(lm, pack).logps
    right = gradients(lm.model, kept @ weights_like(kept))
    monkeypatch.setattr(fused, "KEPT_BYTES", 1)
    assert fused._kept_layers([fused._layer(base_of(lm), i) for i in range(2)], torch.zeros(9, 32)) == 1
    again = score_pack(lm, pack).logps
    assert torch.equal(gradients(lm.model, again @ weights_like(again)), right)
    assert len(taken) == 2


def test_what_is_kept_is_what_was_counted():
    """No more than the widths that `_kept_layers` counts, the stream, and 4 numbers of each adapter."""
    lm = with_adapter("llama")
    pack = Pack((Group((1, 2, 3), ((4,) * 60, (5,) * 60)),), (0,))
    saved: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        score_pack(lm, pack)
    found = sum(size for pointer, size in saved.items() if pointer not in weights)
    per_token = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32 + 7 * 4) + 4 * 32  # numbers in two layers, norm and head
    assert found <= 4 * per_token * pack.num_tokens


def test_the_adapter_off_merged_and_as_it_was(taken):
    lm, pack = with_adapter("llama"), random_pack(5)
    with torch.no_grad():
        plain = {"on": score_pack(lm, pack, packed=False).logps}
        with adapters.adapter_off(lm):
            plain["off"] = score_pack(lm, pack, packed=False).logps
            torch.testing.assert_close(score_pack(lm, pack).logps, plain["off"], atol=1e-4, rtol=0)
        with adapters.merged(lm):
            torch.testing.assert_close(score_pack(lm, pack).logps, plain["on"], atol=1e-4, rtol=0)
        adapters.freeze_reference(lm)
        shake(lm, 7)
        with adapters.reference_mode(lm):
            torch.testing.assert_close(score_pack(lm, pack).logps, plain["on"], atol=1e-4, rtol=0)
        assert float((score_pack(lm, pack).logps - plain["on"]).abs().max()) > 1e-2
    assert len(taken) == 4
    assert_equal_paths(lm, pack)


def test_an_adapter_from_disk(tmp_path, taken):
    lm, pack = with_adapter("mistral"), random_pack(6)
    lm.fingerprint = "0"
    adapters.save_adapter(lm, tmp_path / "adapter")
    other = wrap(family("mistral"))
    other.device, other.name, other.hub_id = torch.device("cpu"), "mistral", None
    adapters.load_adapter(other, tmp_path / "adapter")
    torch.testing.assert_close(score_pack(other, pack).logps, score_pack(lm, pack).logps, atol=0, rtol=0)
    assert_equal_paths(other, pack)
    assert taken


def test_the_plain_layers_run_where_something_else_is_computed(taken):
    lm, pack = with_adapter("llama", dropout=0.5), random_pack(7)
    base = base_of(lm)
    assert fused.why_not_fused(base) is None  # dropout is off outside training
    lm.model.train()
    assert fused.why_not_fused(base) == "its adapter has dropout in training"
    first, second = score_pack(lm, pack).logps, score_pack(lm, pack).logps
    assert not torch.equal(first, second)
    lm.model.eval()
    handle = base.model.layers[0].register_forward_pre_hook(lambda module, args: None)
    assert fused.why_not_fused(base) == "hooks are attached to its layers"
    handle.remove()
    lm.model.add_adapter("second", lm.model.peft_config["default"])
    lm.model.base_model.set_adapter(["default", "second"])
    assert fused.why_not_fused(base) == "several adapters are active"
    assert not taken


def test_half_precision_is_as_close_to_float32_as_the_plain_path():
    """Over several models: the rounding of one alone is a matter of luck."""
    errors = {True: 0.0, False: 0.0}
    slopes = {True: 0.0, False: 0.0}
    for seed in range(6):
        lm, pack = with_adapter("llama", seed=seed, alpha=1.0), random_pack(8)
        right = score_pack(lm, pack).logps
        slope = gradients(lm.model, right.sum())
        for parameter in lm.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        assert fused.why_not_fused(base_of(lm)) is None
        for packed in (True, False):
            found = score_pack(lm, pack, packed=packed).logps
            errors[packed] += float((found - right).detach().norm() / right.detach().norm())
            slopes[packed] += float((gradients(lm.model, found.sum()) - slope).norm() / slope.norm())
    assert errors[True] < 1.3 * errors[False]
    assert slopes[True] < 1.3 * slopes[False]


def test_a_head_in_tiles_with_temperature():
    model, pack = family("llama"), random_pack(9)
    for trained in (True, False):
        model.lm_head.weight.requires_grad_(trained)
        fast = score_pack(model, pack, temperature=0.7).logps
        plain = score_pack(model, pack, ("logps", "entropy"), temperature=0.7).logps  # not by tiles
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
        weights = weights_like(fast)
        assert_same_gradient(gradients(model, fast @ weights), gradients(model, plain @ weights))


def test_a_fault_in_the_layers_is_seen_at_the_first_use(monkeypatch):
    monkeypatch.setattr(fused, "_rotate", lambda x, cos, sin: x.clone())
    assert fused.why_not_fused(family("llama")) == "its layers compute something else than Llama's"


@pytest.mark.parametrize("part", ["_rotate", "_norm_backward"])
def test_a_fault_in_the_backward_is_seen_by_these_tests(part, monkeypatch):
    lm = with_adapter("llama")
    assert fused.why_not_fused(base_of(lm)) is None
    right = getattr(fused, part)
    if part == "_rotate":
        monkeypatch.setattr(fused, part, lambda x, cos, sin: right(x, cos, sin.abs()))
    else:
        monkeypatch.setattr(fused, part, lambda d, x, w, eps, needs: right(d, 1.1 * x, w, eps, needs))
    with pytest.raises(AssertionError):
        assert_equal_paths(lm, random_pack(0))


@pytest.mark.model
def test_the_default_model(default_model_folder, taken):
    from optative.generators.language.load import load_language_model

    lm = load_language_model(str(default_model_folder), dtype="float32")
    adapters.add_lora(lm, LoraOptions(rank=16), 0)
    shake_a_little = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapters.lora_parameters(lm).items():
            if "lora_B" in name:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=shake_a_little).to(parameter.device))
    ids = torch.randint(1000, 9000, (90,), generator=shake_a_little).tolist()
    pack = Pack((Group(tuple(ids[:30]), (tuple(ids[30:60]), tuple(ids[60:]))),), (0,))
    assert_equal_paths(lm, pack, 1e-3)
    assert taken
