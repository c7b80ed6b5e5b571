"""LoRA adapters: start, switches, reference, merging, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optative.core.errors import InputError
from optative.core.files import read_json, write_json
from optative.generators.language.adapters import (
    LoraOptions,
    adapter_off,
    add_lora,
    freeze_reference,
    load_adapter,
    load_weights,
    lora_parameters,
    merged,
    reference_mode,
    save_adapter,
    save_weights,
)
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from tiny_models import save_tiny_model

IDS = torch.tensor([[256, 10, 20, 30, 257, 40, 50, 60, 70, 258], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTATIVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def lm(tiny: Path) -> LanguageModel:
    return load_language_model(str(tiny), dtype="float32")


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(IDS.to(lm.device)).logits.cpu()


def train_a_little(lm: LanguageModel, scale: float = 0.3) -> None:
    """Random weights in both halves of the adapter, as if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora_parameters(lm).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * scale)


def trained(lm: LanguageModel, folder: Path, dropout: float = 0.0, **options: Any) -> Path:
    add_lora(lm, LoraOptions(rank=4, dropout=dropout, **options), seed=0)
    train_a_little(lm)
    save_adapter(lm, folder)
    return folder


def bits(lm: LanguageModel) -> dict[str, bytes]:
    return {n: p.detach().cpu().view(torch.uint8).numpy().tobytes() for n, p in lm.model.state_dict().items()}


def test_a_fresh_adapter_changes_nothing_and_alone_is_trainable(lm: LanguageModel) -> None:
    before = logits(lm)
    add_lora(lm, LoraOptions(rank=4), seed=0)
    assert torch.equal(logits(lm), before)
    trainable = {n for n, p in lm.model.named_parameters() if p.requires_grad}
    assert trainable == set(lora_parameters(lm))
    assert len(trainable) == 2 * 7 * 2  # A and B, seven linear layers, two blocks; not the head
    assert not any("lm_head" in n for n in trainable)


def test_the_start_is_keyed_by_seed_and_layer_not_by_the_global_state_or_the_choice_of_layers(tiny: Path) -> None:
    def start(seed: int, targets: Any, state: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(state)
        lm = load_language_model(str(tiny), dtype="float32")
        before = torch.get_rng_state()
        add_lora(lm, LoraOptions(rank=4, targets=targets), seed)
        assert torch.equal(before, torch.get_rng_state())
        return {n: p.detach() for n, p in lora_parameters(lm).items()}

    one, other_state = start(0, "all-linear", 1), start(0, "all-linear", 2)
    assert all(torch.equal(one[n], other_state[n]) for n in one)
    fewer = start(0, ("q_proj", "v_proj"), 3)
    assert len(fewer) == 8
    assert all(torch.equal(one[n], fewer[n]) for n in fewer)
    other_seed = start(1, "all-linear", 1)
    assert not any(torch.equal(one[n], other_seed[n]) for n in one if "lora_A" in n)
    for name, value in one.items():
        if "lora_B" in name:
            assert not value.any()
        else:  # uniform within 1/sqrt(inputs)
            bound = value.shape[1] ** -0.5
            assert value.abs().max() <= bound
            assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize("target", ["q_prj", "self_attn", "embed_tokens", "proj"])
def test_a_target_that_is_no_linear_layer_is_refused_with_the_names(lm: LanguageModel, target: str) -> None:
    with pytest.raises(InputError) as caught:
        add_lora(lm, LoraOptions(targets=("q_proj", target)), seed=0)
    message = str(caught.value)
    assert f"no linear layer is called '{target}'" in message
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in message


def test_options_that_adapt_nothing_are_refused() -> None:
    for given in ({"targets": []}, {"rank": 0}, {"alpha": 0}, {"dropout": 1}):
        with pytest.raises(ValueError):
            LoraOptions.model_validate(given)


def test_adapter_off_is_the_bare_base_and_everything_comes_back(lm: LanguageModel) -> None:
    base = logits(lm)
    add_lora(lm, LoraOptions(rank=4, dropout=0.5), seed=0)
    train_a_little(lm)
    steered = logits(lm)
    lm.model.train()
    flags = {n: p.requires_grad for n, p in lm.model.named_parameters()}
    with adapter_off(lm):
        assert torch.equal(logits(lm), base)
    assert lm.model.training
    assert all(module.training for module in lm.model.modules())
    assert {n: p.requires_grad for n, p in lm.model.named_parameters()} == flags
    lm.model.eval()
    assert torch.equal(logits(lm), steered)
    assert not torch.allclose(steered, base)


def test_switches_also_work_without_an_adapter(lm: LanguageModel) -> None:
    before = logits(lm)
    for switch in (adapter_off, reference_mode, merged):
        with switch(lm):
            assert torch.equal(logits(lm), before)


def test_switches_are_restored_after_an_error_and_cannot_be_nested(lm: LanguageModel) -> None:
    add_lora(lm, LoraOptions(rank=4), seed=0)
    train_a_little(lm)
    before, weights = logits(lm), bits(lm)
    for outer in (merged, adapter_off, reference_mode):
        for inner in (merged, adapter_off, reference_mode):
            with pytest.raises(RuntimeError, match=r"merged|nested"), outer(lm), inner(lm):
                pass
            assert torch.equal(logits(lm), before)
    assert bits(lm) == weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tie", [True, False])
def test_merged_is_the_same_model_and_leaves_the_same_bits(tmp_path: Path, dtype: str, tie: bool) -> None:
    lm = load_language_model(str(save_tiny_model(tmp_path / "m", tie=tie)), dtype=dtype)
    base = logits(lm)
    add_lora(lm, LoraOptions(rank=4, targets=("q_proj", "down_proj", "lm_head")), seed=0)
    train_a_little(lm, 0.1)
    steered, weights = logits(lm), bits(lm)
    objects = {n: id(p) for n, p in lm.model.named_parameters()}
    with merged(lm):
        inside = logits(lm)
        embedding = lm.model.get_input_embeddings().weight
        assert embedding.view(torch.uint8).numpy().tobytes() == weights["base_model.model.model.embed_tokens.weight"]
        for name, module in lm.model.named_modules():  # added in float32, rounded once
            if name.endswith("q_proj"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                before = torch.frombuffer(bytearray(weights[f"{name}.base_layer.weight"]), dtype=lm.dtype)
                expected = (before.view_as(module.base_layer.weight).float() + 8.0 * (b @ a)).to(lm.dtype)
                assert torch.equal(module.base_layer.weight, expected)
    assert bits(lm) == weights
    assert {n: id(p) for n, p in lm.model.named_parameters()} == objects
    assert torch.equal(logits(lm), steered)
    close = {"float32": 1e-4, "bfloat16": 0.15}[dtype]
    assert (inside.float() - steered.float()).abs().max() < close
    assert (inside.float() - base.float()).abs().max() > 3 * close


def test_merged_works_for_layers_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D keeps its weights transposed, and the model has dropout of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tiny_models import make_tokenizer

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")
    lm = load_language_model(str(tmp_path / "gpt2"), dtype="float32")
    assert lm.context_length == 64
    base = logits(lm)
    add_lora(lm, LoraOptions(rank=4), seed=0)
    train_a_little(lm)
    steered = logits(lm)
    with merged(lm):
        torch.testing.assert_close(logits(lm), steered, rtol=0, atol=1e-4)
    assert not torch.allclose(steered, base, atol=1e-2)
    lm.model.train()
    with adapter_off(lm):
        assert torch.equal(logits(lm), base), "the base's own dropout is off as well"


def log_probability(lm: LanguageModel) -> torch.Tensor:
    """Summed log-probability of each row: shape [B], with a gradient."""
    ids = IDS.to(lm.device)
    logps = lm.model(ids).logits[:, :-1].log_softmax(-1)
    return logps.gather(-1, ids[:, 1:, None]).sum((1, 2))


def test_case_14_the_reference_of_a_start_from_an_adapter_is_that_start(tiny: Path, tmp_path: Path) -> None:
    folder = trained(load_language_model(str(tiny), dtype="float32"), tmp_path / "sft", dropout=0.1)
    for _ in range(2):  # the same in a second run
        lm = load_language_model(str(tiny), adapter=folder, dtype="float32")
        lm.model.train()
        policy = log_probability(lm)
        with torch.no_grad(), reference_mode(lm):
            reference = log_probability(lm)
        margin = (policy - reference)[0] - (policy - reference)[1]
        assert torch.equal(policy.detach(), reference)
        loss = -torch.nn.functional.logsigmoid(0.1 * margin)
        assert loss.item() == pytest.approx(0.693147, abs=1e-6)
        loss.backward()
        gradients = [p.grad for p in lora_parameters(lm).values()]
        assert all(g is not None and g.abs().max() > 0 for g in gradients)
        with torch.no_grad(), adapter_off(lm):
            assert not torch.allclose(log_probability(lm), reference), "the bare base is another policy"
    train_a_little(lm)
    with torch.no_grad(), reference_mode(lm):
        assert torch.equal(log_probability(lm), reference), "training moves the policy, not its reference"
    assert not any(".reference." in n for n, p in lm.model.named_parameters() if p.requires_grad)


def test_the_reference_of_a_fresh_adapter_is_the_base_until_it_is_frozen_anew(lm: LanguageModel) -> None:
    base = logits(lm)
    add_lora(lm, LoraOptions(rank=4, dropout=0.3), seed=0)
    train_a_little(lm)
    with reference_mode(lm):
        assert torch.equal(logits(lm), base)
    steered = logits(lm)
    freeze_reference(lm)
    train_a_little(lm)
    lm.model.train()
    with reference_mode(lm):
        assert torch.equal(logits(lm), steered)
    assert all(p.requires_grad for p in lora_parameters(lm).values())
    freeze_reference(lm)
    lm.model.eval()
    with reference_mode(lm):
        inside = logits(lm)
    assert torch.equal(inside, logits(lm))


def test_saving_and_loading_give_the_same_bits(tiny: Path, tmp_path: Path) -> None:
    lm = load_language_model(str(tiny), dtype="float32")
    folder = trained(lm, tmp_path / "adapter")
    save_adapter(lm, tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    other = load_language_model(str(tiny), adapter=folder, dtype="float32")
    assert torch.equal(logits(other), logits(lm))
    save_weights(lm, tmp_path / "checkpoint.safetensors")
    train_a_little(lm)
    load_weights(lm, tmp_path / "checkpoint.safetensors")
    assert torch.equal(logits(other), logits(lm))
    assert all(p.requires_grad for p in lora_parameters(lm).values())


@pytest.mark.filterwarnings("ignore:The adapter was trained on other weights")
def test_an_adapter_for_another_shape_is_refused_with_the_first_tensor_and_both_shapes(
    tiny: Path, tmp_path: Path
) -> None:
    folder = trained(load_language_model(str(tiny), dtype="float32"), tmp_path / "adapter")
    wide = save_tiny_model(tmp_path / "wide", hidden=48)
    with pytest.raises(InputError) as caught:
        load_language_model(str(wide), adapter=folder, dtype="float32")
    message = str(caught.value)
    assert "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight" in message
    assert "(4, 64)" in message
    assert "(4, 96)" in message
    deep = save_tiny_model(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"lacks .*layers\.2"):
        load_language_model(str(deep), adapter=folder, dtype="float32")
    shallow = save_tiny_model(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"has .*layers\.1.*which the base lacks"):
        load_language_model(str(shallow), adapter=folder, dtype="float32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"use_dora": True}, "use_dora: not supported"),
        ({"bias": "all"}, "bias: not supported"),
        ({"target_modules": ["c_attn"]}, r"target_modules: does not fit tiny.*q_proj"),
    ],
)
def test_adapters_of_another_kind_are_refused(tiny: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = trained(load_language_model(str(tiny), dtype="float32"), tmp_path / "adapter")
    file = folder / "adapter_config.json"
    write_json(file, {**read_json(file), **changes})
    with pytest.raises(InputError, match=words):
        load_language_model(str(tiny), adapter=folder, dtype="float32")


def test_a_damaged_adapter_is_an_input_error(tiny: Path, tmp_path: Path) -> None:
    folder = trained(load_language_model(str(tiny), dtype="float32"), tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: damaged"):
        load_language_model(str(tiny), adapter=folder, dtype="float32")
    file.unlink()
    with pytest.raises(InputError, match=r"it has no adapter_model\.safetensors"):
        load_language_model(str(tiny), adapter=folder, dtype="float32")
    with pytest.raises(InputError, match=r"it has no adapter_config\.json"):
        load_language_model(str(tiny), adapter=tmp_path, dtype="float32")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_made_by_peft_alone_loads(tiny: Path, tmp_path: Path) -> None:
    """Head replaced as a whole (modules_to_save) beside low-rank layers: what other trainers write."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), config).eval()
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
        expected = model(IDS).logits
    model.save_pretrained(tmp_path / "theirs")
    lm = load_language_model(str(tiny), dtype="float32")
    base = logits(lm)
    load_adapter(lm, tmp_path / "theirs")
    torch.testing.assert_close(logits(lm), expected, rtol=0, atol=1e-5)
    assert any("modules_to_save" in n for n in lora_parameters(lm))
    with merged(lm):
        torch.testing.assert_close(logits(lm), expected, rtol=0, atol=1e-4)
    with adapter_off(lm):
        assert torch.equal(logits(lm), base)
    start = logits(lm)
    train_a_little(lm)
    with reference_mode(lm):
        assert torch.equal(logits(lm), start)
