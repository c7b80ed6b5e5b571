"""Packed scoring against one plain Transformers forward per sequence, in value and in gradient."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from language_models import FAMILIES, VOCABULARY, chain, family, wrap
from optative.core.errors import InputError
from optative.generators.language import heads
from optative.generators.language.attention import base_of, why_no_layout
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import divergence, kl_pack, score, score_pack

OUTPUTS = ("logps", "entropy", "sum_p2", "log1m")


def random_pack(seed: int, *, lowest: int = 0, highest: int = VOCABULARY - 1) -> Pack:
    """Groups of 1 to 8 completions; prompts and completions of one token are among them, end tokens anywhere."""
    rng = random.Random(seed)

    def ids(*lengths: int) -> tuple[int, ...]:
        return tuple(rng.randint(lowest, highest) for _ in range(rng.choice(lengths)))

    counts = [1, rng.randint(2, 7), 8]
    groups = tuple(Group(ids(1, 5, 30), tuple(ids(1, 2, 17) for _ in range(n))) for n in counts)
    return Pack(groups, tuple(range(len(groups))))


def plain_logits(model: Any, pack: Pack) -> torch.Tensor:
    """Logits that predict each completion token, from a forward of the model itself for each sequence alone."""
    rows = []
    for group in pack.groups:
        for completion in group.completion_ids:
            ids = torch.tensor([group.prompt_ids + completion])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            rows.append(logits[0, len(group.prompt_ids) - 1 : -1].float())
    return torch.cat(rows)


def plain(model: Any, pack: Pack, temperature: float = 1.0) -> dict[str, torch.Tensor]:
    targets = torch.tensor([t for g in pack.groups for c in g.completion_ids for t in c])
    logps = (plain_logits(model, pack) / temperature).log_softmax(-1)
    chosen = logps.gather(-1, targets[:, None])[:, 0]
    return {
        "logps": chosen,
        "entropy": -(logps.exp() * logps).sum(-1),
        "sum_p2": (logps.exp() ** 2).sum(-1),
        "log1m": torch.log1p(-chosen.exp()),
    }


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])


def weights_like(values: torch.Tensor) -> torch.Tensor:
    return torch.randn(len(values), generator=torch.Generator().manual_seed(1))


def assert_same_gradient(found: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert float((found - right).norm()) <= tolerance * float(right.norm())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_equals_one_plain_forward_per_sequence(name, packed):
    model, pack = family(name), random_pack(0)
    right = plain(model, pack)["logps"]
    scores = score_pack(model, pack, packed=packed)
    torch.testing.assert_close(scores.logps, right, atol=1e-5, rtol=0)
    weights = weights_like(right)
    assert_same_gradient(gradients(model, scores.logps @ weights), gradients(model, right @ weights))


def test_which_families_are_packed():
    """The plain path would also pass the parity test, so that the fast one is taken has to be seen."""
    reasons = {name: why_no_layout(family(name)) for name in FAMILIES}
    assert {name for name, reason in reasons.items() if reason is None} == set(FAMILIES) - {"bloom", "mamba"}


@pytest.mark.parametrize("seed", range(1, 6))
def test_random_packs_and_every_output(seed):
    model, pack = family("llama", seed=seed), random_pack(seed)
    temperature = (1.0, 0.7)[seed % 2]
    right = plain(model, pack, temperature)
    scores = score_pack(model, pack, OUTPUTS, temperature=temperature)
    for name in OUTPUTS:
        found = getattr(scores, name)
        torch.testing.assert_close(found, right[name], atol=1e-5, rtol=1e-5)
        weights = weights_like(found)
        slope = torch.autograd.grad(right[name] @ weights, list(model.parameters()), retain_graph=True)
        own = torch.autograd.grad(found @ weights, list(model.parameters()), retain_graph=True)
        for a, b in zip(own, slope):
            assert float((a - b).norm()) <= 1e-3 * max(float(b.norm()), 1e-3)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down_proj"], ["q_proj", "lm_head"]])
def test_adapter_gradients(targets):
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(family("qwen2"), config).eval()
    pack = random_pack(3)
    right, scores = plain(model, pack)["logps"], score_pack(model, pack)
    torch.testing.assert_close(scores.logps, right, atol=1e-5, rtol=0)
    weights = weights_like(right)
    assert_same_gradient(gradients(model, scores.logps @ weights), gradients(model, right @ weights))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }


def test_logits_in_chunks_and_checkpointed_layers_change_nothing(monkeypatch):
    model, pack = family("llama"), random_pack(4)
    model.get_output_embeddings().weight.requires_grad_(False)
    right = score_pack(model, pack, OUTPUTS)
    wanted = [gradients(model, getattr(right, n).sum()) for n in OUTPUTS[:1]]
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 3 * VOCABULARY)
    model.gradient_checkpointing_enable()
    model.train()
    found = score_pack(model, pack, OUTPUTS)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(found, name), getattr(right, name), atol=1e-6, rtol=1e-6)
    assert_same_gradient(gradients(model, found.logps.sum()), wanted[0], 1e-5)


def test_no_logits_are_kept_for_the_backward():
    model, pack = family("llama"), Pack((Group((1,), ((5,) * 100,)),), (0,))
    model.get_output_embeddings().weight.requires_grad_(False)

    def kept(compute: Callable[[], torch.Tensor]) -> list[tuple[int, ...]]:
        saved: list[weakref.ref[torch.Tensor]] = []

        def record(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(weakref.ref(tensor))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
            result = compute()
        shapes = [tuple(tensor.shape) for ref in saved if (tensor := ref()) is not None]
        result.sum().backward()
        return shapes

    logits = (100, VOCABULARY)
    assert logits in kept(lambda: plain(model, pack)["logps"]), "the plain way keeps them"
    assert logits not in kept(lambda: score_pack(model, pack).logps)


def test_log1m_where_the_probability_rounds_to_one():
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    lse, target = logits.logsumexp(-1), torch.tensor([0])
    right = torch.log(2 / (torch.exp(torch.tensor(40.0, dtype=torch.float64)) + 2))
    assert float(heads.STATISTICS["log1m"](logits, lse, target)) == pytest.approx(float(right), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_from_a_teacher(temperature):
    student, teacher, pack = family("llama"), family("gpt2"), random_pack(5)
    p, q = ((plain_logits(m, pack) / temperature).log_softmax(-1) for m in (student, teacher))
    right = (p.exp() * (p - q)).sum(-1)
    found = kl_pack(student, teacher, pack, temperature=temperature)
    torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    weights = weights_like(found)
    assert_same_gradient(gradients(student, found @ weights), gradients(student, right @ weights))


def test_divergence_from_the_base_of_an_adapter():
    import peft

    torch.manual_seed(0)
    base = family("llama")
    pack = random_pack(6)
    before = plain_logits(base, pack).detach().log_softmax(-1)
    lm = wrap(
        peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    )
    lm.model.eval()
    after = plain_logits(lm.model, pack).detach().log_softmax(-1)
    right = (after.exp() * (after - before)).sum(-1)
    found = divergence(lm, pack.groups, token_budget=60)
    flat = torch.cat([torch.from_numpy(c) for group in found for c in group])
    torch.testing.assert_close(flat, right, atol=1e-5, rtol=1e-4)


def test_scores_do_not_depend_on_the_packing():
    model = family("llama")
    groups = [g for seed in range(3) for g in random_pack(seed).groups]
    right = score(model, groups, token_budget=10_000)
    for budget, order in ((1, 1), (90, -1), (200, 1)):
        found = score(model, groups[::order], token_budget=budget)[::order]
        for a, b in zip(found, right):
            assert len(a) == len(b)
            for x, y in zip(a, b):
                assert x.logps == pytest.approx(y.logps, abs=1e-5)


def test_padding_equal_to_the_end_token_is_only_a_number():
    """Case 10: uniform logits over 16 ids; the end token counts, the padding does not."""
    model = chain({}, 16)
    rows = [Group((5, 2, 6), ((7, 2),)), Group((5, 2, 6), ((8, 9, 10, 2),))]
    for packed in (True, False):
        both = score_pack(model, Pack(tuple(rows), (0, 1)), packed=packed)
        assert both.offsets == (0, 2, 6)
        assert both.logps[:2].sum().item() == pytest.approx(-5.545177, abs=1e-5)
        assert both.logps[2:].sum().item() == pytest.approx(-11.090355, abs=1e-5)
        alone = score_pack(model, Pack((rows[0],), (0,)), packed=packed)
        assert alone.logps.tolist() == pytest.approx(both.logps[:2].tolist(), abs=1e-6)


def test_masks_travel_with_the_scores():
    group = Group((1,), ((3, 4, 5), (6,)), ((True, False, True), (True,)))
    scores = score_pack(family("llama"), Pack((group, Group((1,), ((2, 2),))), (0, 1)))
    assert scores.mask_N.tolist() == [True, False, True, True, True, True]


def test_bfloat16_stays_close():
    model, pack = family("llama"), random_pack(7)
    right = score_pack(model, pack).logps
    found = score_pack(model.bfloat16(), pack).logps
    assert found.dtype == torch.float32
    assert float((found - right).detach().abs().mean()) < 0.05


def test_dropout_is_drawn_when_the_model_trains():
    model, pack = family("gpt2").train(), random_pack(8)
    torch.manual_seed(0)
    one, two = score_pack(model, pack).logps, score_pack(model, pack).logps
    assert not torch.equal(one, two)
    one.sum().backward()


def test_what_cannot_be_scored_is_refused():
    model = family("llama")
    with pytest.raises(InputError, match="longer than the model's context"):
        score_pack(model, Pack((Group((1,) * 100, ((2,) * 29,)),), (0,)))
    with pytest.raises(InputError, match="nearest is 'entropy'"):
        score_pack(model, random_pack(0), ["entrop"])

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    model = family("llama")
    model.__class__ = Odd
    with pytest.raises(InputError, match="in a way that scoring does not know"):
        score_pack(model, random_pack(0))


def test_generate_still_works_after_the_switch_of_attention():
    right, switched = family("mistral"), family("mistral")
    assert why_no_layout(base_of(switched)) is None
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(switched.generate(ids, **settings), right.generate(ids, **settings))


@pytest.mark.model
def test_the_default_model(default_model_folder: Path):
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from optative.generators.language.template import ChatTemplate
    from optative.generators.language.tokens import encode_group

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(default_model_folder, dtype=torch.float32)
    lm = wrap(model, AutoTokenizer.from_pretrained(default_model_folder))
    lm.template = ChatTemplate.of(default_model_folder)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    lm.model = peft.get_peft_model(model, config).eval()
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(0.01)
    texts = [["Paris.", "I", "La capitale est Paris 🙂, n'est-ce pas ?"], ["- one\n- two\n- three"]]
    asked = ["What is the capital of France?", "List three numbers, one a line. " * 12]
    groups = [
        encode_group(lm, [{"role": "user", "content": q}], [[{"role": "assistant", "content": a}] for a in answers])
        for q, answers in zip(asked, texts)
    ]
    (pack,) = plan(groups, 2048)
    right, scores = plain(lm.model, pack)["logps"], score_pack(lm, pack)
    torch.testing.assert_close(scores.logps, right, atol=1e-4, rtol=0)
    weights = weights_like(right)
    assert_same_gradient(gradients(lm.model, scores.logps @ weights), gradients(lm.model, right @ weights), 1e-3)
