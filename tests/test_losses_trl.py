"""The losses that TRL has too: equal to TRL's own code in value and in gradient, on random inputs.

TRL's loss methods are called as they are. A stand-in for the trainer carries the attributes that they read, and a
stand-in for the model returns random token log-probabilities, by which both sides are differentiated. One test at the
end goes through a real `DPOTrainer` and a real (tiny) model.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optative.optimizers.losses.bind import bind
from optative.optimizers.losses.supervised import nll
from optative.optimizers.losses.unpaired import reference_point
from optative.optimizers.losses.weights import alignment, desensitise, wpo
from optative.optimizers.options import LOSSES
from optative.optimizers.terms import terms
from tiny_models import save_tiny_model

CASES, FEW = 50, 12  # of each loss; of each loss with something that does not depend on which loss it is
TRL_NAMES = {"dpo": "sigmoid"}  # the others have TRL's name
PAIRS = (
    "dpo",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
DIVERGENT = [name for name in PAIRS if "divergence" in LOSSES[name].config.model_fields]
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # those that TRL's DPO trainer smooths


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL's trainers; the import takes seconds."""
    from trl import DPOTrainer, KTOTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    return SimpleNamespace(dpo=DPOTrainer, kto=KTOTrainer, cpo=CPOTrainer, orpo=ORPOTrainer)


class Model(torch.nn.Module):
    """Stand-in for a model: returns what was prepared for a batch, which it knows by its first token."""

    is_gradient_checkpointing = False

    def __init__(self, outputs: dict[int, torch.Tensor], log_sum_p2: torch.Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.log_sum_p2 = outputs, log_sum_p2

    def forward(self, **inputs: Any) -> SimpleNamespace:
        log_probs = self.outputs[int(inputs["input_ids"][0, 0])]
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=self.log_sum_p2,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


class Accelerator:
    """Stand-in for one process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, tensor: Any) -> Any:
        return tensor

    gather = gather_for_metrics


def trainer(model: Model, ref_model: Model, **attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model=model,
        ref_model=ref_model,
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{
            "args": SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=attributes.pop("tau", 0.05)),
            **attributes,
        },
    )


class Batch:
    """B pairs of random lengths: a prompt of 3 tokens, then the answer, then padding; chosen first, as TRL wants."""

    def __init__(self, seed: int, B: int = 4, dtype: torch.dtype = torch.float64, same_length: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.B, T = B, 14
        lengths = torch.randint(1, 11, (2 * B,), generator=generator)
        if same_length:
            lengths[:B] = 7
        place = torch.arange(T)
        self.completion_mask = ((place >= 3) & (place < 3 + lengths[:, None])).long()
        self.mask = self.completion_mask[:, 1:].to(dtype)
        self.tokens = self.mask.sum(dim=1)
        shape = (2 * B, T - 1)
        self.raw = -4 * torch.rand(shape, generator=generator, dtype=dtype)
        self.ref_raw = self.raw + 0.5 * torch.randn(shape, generator=generator, dtype=dtype)
        self.sum_p2 = torch.rand(shape, generator=generator, dtype=dtype)
        self.inputs = {
            "input_ids": torch.zeros((2 * B, T), dtype=torch.long),
            "attention_mask": (place < 3 + lengths[:, None]).long(),
            "completion_mask": self.completion_mask,
        }

    def theirs(self, trl: Any, **attributes: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.raw.clone().requires_grad_()
        model = Model({0: raw * self.mask}, self.sum_p2.log())
        own = trainer(model, Model({0: self.ref_raw * self.mask}), **attributes)
        loss = trl.dpo._compute_loss(own, model, self.inputs, False)
        loss.backward()
        return loss.detach(), raw.grad

    def ours(self, name: str, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        config = LOSSES[name].config(**options)
        raw = self.raw.clone().requires_grad_()
        weight = self.mask
        alpha = getattr(config, "length_desensitise", 1.0)
        if alpha != 1.0:
            shared = torch.minimum(*self.tokens.chunk(2)).repeat(2)
            inside = self.mask.bool()
            places = (self.mask.cumsum(dim=1) - 1)[inside]
            shared_N = shared[:, None].expand_as(self.mask)[inside]
            weight = torch.zeros_like(self.mask).masked_scatter(
                inside, desensitise(places, shared_N, alpha=alpha).to(self.mask)
            )
        chosen, rejected = (raw * weight).sum(dim=1).chunk(2)
        ref_chosen, ref_rejected = (self.ref_raw * weight).sum(dim=1).chunk(2)
        tokens = self.tokens.chunk(2)
        tensors = {
            "chosen_B": chosen,
            "rejected_B": rejected,
            "ref_chosen_B": ref_chosen,
            "ref_rejected_B": ref_rejected,
            "chosen_tokens_B": tokens[0],
            "rejected_tokens_B": tokens[1],
        }
        values_B = sum(
            term.weight * term.loss(**{key: value for key, value in tensors.items() if key in term.loss.takes})
            for term in terms(name, config)
            if not term.added
        )
        if config.nll_weight:
            values_B = values_B + config.nll_weight * nll((raw * self.mask).sum(dim=1)[: self.B], tokens[0])
        if getattr(config, "weighting", "none") == "wpo":
            aligned = torch.stack(
                [
                    alignment(raw[i][row], self.sum_p2[i][row]).sum()
                    for i, row in enumerate(self.mask.bool().unbind(dim=0))
                ]
            )
            values_B = values_B * wpo(aligned, self.tokens).reshape(2, -1).prod(dim=0)
        loss = values_B.mean()
        loss.backward()
        return loss.detach(), raw.grad


def settings(
    draw: random.Random, names: dict[str, float], divergence: str = "reverse_kl"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random settings in TRL's words and in ours: (attributes of the trainer, options of one loss)."""
    beta, smoothing, tau, alpha = (
        draw.choice((0.02, 0.1, 0.5, 2.0)),
        draw.choice((0.001, 0.1, 0.3)),
        draw.choice((0.05, 0.5)),
        draw.uniform(0.1, 0.9),
    )
    theirs = {
        "beta": beta,
        "label_smoothing": smoothing,
        "tau": tau,
        "loss_types": [TRL_NAMES.get(name, name) for name in names],
        "loss_weights": list(names.values()),
        "f_divergence_type": divergence,
        "f_alpha_divergence_coef": 1 - alpha,  # TRL counts alpha from the other end
        "ld_alpha": None,
        "use_weighting": False,
    }
    ours: dict[str, dict[str, Any]] = {}
    for name in names:
        ours[name] = {"beta": beta}
        ours[name] |= {"label_smoothing": smoothing} if name in SMOOTHED else {}
        ours[name] |= {"tau": tau} if name == "discopop" else {}
        if divergence != "reverse_kl":
            ours[name] |= {"divergence": divergence}
            ours[name] |= {"divergence_alpha": alpha} if divergence == "alpha_divergence" else {}
    return theirs, ours


def assert_same(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Equal up to float32, in which TRL keeps some of its constants."""
    single = ours[0].dtype == torch.float32
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=2e-4 if single else 1e-6, atol=1e-5 if single else 1e-8)


@pytest.mark.parametrize("name", PAIRS)
def test_losses_on_pairs(trl, name):
    draw = random.Random(name)
    for seed in range(CASES):
        theirs, ours = settings(draw, {name: 1.0})
        batch = Batch(seed)
        assert_same(batch.ours(name, ours[name]), batch.theirs(trl, **theirs))


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", DIVERGENT)
def test_divergences(trl, name, divergence):
    """Alpha in float32: TRL's branch knows no other full precision. Alpha of the paper is 1 minus TRL's."""
    draw = random.Random(name + divergence)
    for seed in range(CASES):
        theirs, ours = settings(draw, {name: 1.0}, divergence)
        if name == "discopop" and divergence != "js_divergence":
            theirs["tau"] = ours[name]["tau"] = 0.5  # TRL's exp overflows where its weight is 0: 0 * inf
            theirs["beta"] = ours[name]["beta"] = 0.02
        batch = Batch(seed, dtype=torch.float32 if divergence == "alpha_divergence" else torch.float64)
        assert_same(batch.ours(name, ours[name]), batch.theirs(trl, **theirs))


@pytest.mark.parametrize("name", PAIRS)
def test_length_desensitised(trl, name):
    draw = random.Random(name)
    for seed in range(FEW):
        theirs, ours = settings(draw, {name: 1.0})
        alpha = draw.choice((0.0, 0.3, 0.7))
        batch = Batch(seed)
        assert_same(
            batch.ours(name, ours[name] | {"length_desensitise": alpha}),
            batch.theirs(trl, **theirs | {"ld_alpha": alpha}),
        )


@pytest.mark.parametrize("name", [n for n in PAIRS if "weighting" in LOSSES[n].config.model_fields])
def test_wpo_weights(trl, name):
    draw = random.Random(name)
    for seed in range(FEW):
        theirs, ours = settings(draw, {name: 1.0})
        batch = Batch(seed)
        mine = batch.ours(name, ours[name] | {"weighting": "wpo"})
        if name == "hinge":  # TRL 1.16 multiplies the output of relu in place, which its own backward needs
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                batch.theirs(trl, **theirs | {"use_weighting": True})
        else:
            assert_same(mine, batch.theirs(trl, **theirs | {"use_weighting": True}))


def test_lists_of_losses(trl):
    """TRL's `loss_type` list, MPO's with its term on the chosen answer (equally long ones: see the next test)."""
    draw = random.Random(0)
    for seed in range(CASES):
        names = {name: draw.uniform(0.1, 2) for name in draw.sample(PAIRS, 3)}
        theirs, ours = settings(draw, names)
        terms = [{name: {"weight": names[name], **ours[name]}} for name in names]
        sft = draw.uniform(0.1, 1)
        theirs["loss_types"].append("sft")
        theirs["loss_weights"].append(sft)
        batch = Batch(seed, same_length=True)
        assert_same(batch.ours("mixture", {"terms": terms, "nll_weight": sft}), batch.theirs(trl, **theirs))


def test_sft_term_is_a_mean_per_answer_and_in_trl_one_over_all_tokens(trl):
    """Pang et al. 2024, arXiv:2404.19733, eq. 1, divide by the length of each answer; TRL by the batch's tokens."""
    theirs, _ = settings(random.Random(0), {"sft": 1.0})
    for seed in range(CASES):
        batch = Batch(seed)
        loss, _ = batch.theirs(trl, **theirs)
        tokens_B = batch.tokens[: batch.B]
        values_B = nll((batch.raw * batch.mask).sum(dim=1)[: batch.B], tokens_B)
        torch.testing.assert_close((values_B * tokens_B).sum() / tokens_B.sum(), loss)
        one = Batch(seed, B=1)
        torch.testing.assert_close(
            nll((one.raw * one.mask).sum(dim=1)[:1], one.tokens[:1])[0], one.theirs(trl, **theirs)[0]
        )


def test_trl_puts_wpo_weights_on_other_pairs_after_aot_has_sorted(trl):
    """So its value depends on the order of the pairs in a batch; here AOT takes no weights."""
    theirs, _ = settings(random.Random(0), {"aot": 1.0})
    batch = Batch(0)
    value, _ = batch.theirs(trl, **theirs | {"use_weighting": True})
    order = torch.tensor([1, 2, 3, 0, 5, 6, 7, 4])
    for field in ("raw", "ref_raw", "mask", "sum_p2"):
        setattr(batch, field, getattr(batch, field)[order])
    batch.inputs = {key: tensor[order] for key, tensor in batch.inputs.items()}
    moved, _ = batch.theirs(trl, **theirs | {"use_weighting": True})
    assert abs(moved - value) > 1e-3
    assert "weighting" not in LOSSES["aot"].config.model_fields


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_losses_on_single_answers(trl, name):
    draw = random.Random(name)
    for seed in range(CASES):
        batch, mismatched = Batch(seed), Batch(1000 + seed)
        desirable = torch.tensor([draw.random() < 0.5 for _ in range(8)])
        beta, good, bad = draw.choice((0.02, 0.1, 1.0)), draw.uniform(0.5, 2), draw.uniform(0.5, 2)
        if name != "kto":
            good = bad = 1.0
        inputs = batch.inputs | {
            "label": desirable,
            "KL_input_ids": torch.ones_like(batch.inputs["input_ids"]),
            "KL_attention_mask": mismatched.inputs["attention_mask"],
            "KL_completion_mask": mismatched.completion_mask,
        }
        raw = batch.raw.clone().requires_grad_()
        model = Model({0: raw * batch.mask, 1: mismatched.raw * mismatched.mask})
        reference = Model({0: batch.ref_raw * batch.mask, 1: mismatched.ref_raw * mismatched.mask})
        own = trainer(
            model,
            reference,
            loss_type=name,
            beta=beta,
            desirable_weight=good,
            undesirable_weight=bad,
            calculate_KL=name == "kto",
        )
        own._compute_kl_logps = lambda model, batch, own=own: trl.kto._compute_kl_logps(own, model, batch)
        theirs = trl.kto._compute_loss(own, model, inputs, False)
        theirs.backward()

        mine = batch.raw.clone().requires_grad_()
        tensors = {
            "logps_B": (mine * batch.mask).sum(dim=1),
            "ref_logps_B": (batch.ref_raw * batch.mask).sum(dim=1),
            "desirable_B": desirable,
        }
        options: dict[str, Any] = {"beta": beta}
        if name == "kto":
            own_kl, ref_kl = ((x * mismatched.mask).sum(dim=1) for x in (mismatched.raw, mismatched.ref_raw))
            tensors["kl"] = reference_point(own_kl, ref_kl)
            options |= {"desirable_weight": good, "undesirable_weight": bad}
        loss = bind(name, LOSSES[name].config(**options))(**tensors).mean()
        loss.backward()
        assert_same((loss.detach(), mine.grad), (theirs.detach(), raw.grad))


@pytest.mark.parametrize("name", ["simpo", "alphapo", "cpo", "orpo"])
def test_losses_without_a_reference(trl, name):
    """TRL's CPO trainer has SimPO and AlphaPO too. ORPO's and CPO's NLL is `nll_weight` here."""
    draw = random.Random(name)
    for seed in range(CASES):
        batch = Batch(seed)
        beta, gamma, alpha = draw.choice((0.1, 0.5, 2.0)), draw.uniform(0, 1.5), draw.choice((0.1, 0.25, -0.5))
        smoothing = draw.choice((0.0, 0.1, 0.3))
        sides = (batch.raw * batch.mask).sum(dim=1).chunk(2)
        tokens = batch.tokens.chunk(2)
        own = SimpleNamespace(
            accelerator=Accelerator(),
            beta=beta,
            label_smoothing=smoothing,
            alpha=alpha if name == "alphapo" else 0.0,
            simpo_gamma=gamma,
            loss_type="sigmoid" if name == "cpo" else "simpo",
        )
        given = [side.clone().requires_grad_() for side in sides]
        asked = given if name == "cpo" else [side / count for side, count in zip(given, tokens)]
        if name == "orpo":
            smoothing = 0.0
            theirs = -trl.orpo.odds_ratio_loss(own, *asked)[0].mean()  # theirs is subtracted from the NLL
        else:
            theirs = trl.cpo.cpo_loss(own, *asked)[0].mean()
        theirs.backward()

        mine = [side.clone().requires_grad_() for side in sides]
        options = {"beta": beta, "label_smoothing": smoothing}
        options |= {"gamma": gamma} if name in ("simpo", "alphapo") else {}
        options |= {"alpha": alpha} if name == "alphapo" else {}
        bound = bind(name, LOSSES[name].config(**options))
        tensors = dict(
            zip(("chosen_B", "rejected_B", "chosen_tokens_B", "rejected_tokens_B"), (*mine, *tokens), strict=True)
        )
        loss = bound(**{key: value for key, value in tensors.items() if key in bound.takes}).mean()
        loss.backward()
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if name == "orpo" else {}  # TRL's goes through float32
        torch.testing.assert_close(loss.detach(), theirs.detach().to(loss), **tolerance)
        for a, b in zip(mine, given):
            torch.testing.assert_close(a.grad, b.grad, **tolerance)


def test_a_real_trainer_with_a_real_model(trl, tmp_path: Path):
    """Value and gradient by all weights, from TRL's trainer and from plain logits with the losses here."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    folder = save_tiny_model(tmp_path / "tiny")
    words = ("red", "a long blue line", "no", "yes, and more than that", "green")
    rows = [
        {"prompt": f"Say {i}: ", "chosen": words[i], "rejected": words[(i + 2) % 5] + " then"}
        for i in range(len(words))
    ]
    args = DPOConfig(
        str(tmp_path / "out"), per_device_train_batch_size=5, report_to=[], bf16=False, use_cpu=True, use_weighting=True
    )
    own = trl.dpo(
        str(folder),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    plain, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one, other in zip(own.model.parameters(), plain.parameters()):
            other += 0.02 * torch.randn(other.shape, generator=generator)
            one.copy_(other)
    own.model.eval()
    own._metrics["eval"] = defaultdict(list)
    inputs = next(iter(own.get_train_dataloader()))

    def logps(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        log_p = logits.log_softmax(dim=-1)
        return log_p.gather(2, inputs["input_ids"][:, 1:, None])[..., 0], log_p.detach().exp().square().sum(dim=-1)

    for weighting in ("none", "wpo"):
        for name, options in (("dpo", {"beta": 0.5}), ("ipo", {"beta": 0.2}), ("apo_zero", {"beta": 1.0})):
            batch = Batch(0, B=5, dtype=torch.float32)
            batch.completion_mask = inputs["completion_mask"]
            batch.mask = batch.completion_mask[:, 1:].float()
            batch.tokens = batch.mask.sum(dim=1)
            own_logps, batch.sum_p2 = logps(plain)
            batch.raw = own_logps.detach()
            with torch.no_grad():
                batch.ref_raw, _ = logps(reference)
            value, slope = batch.ours(name, options | {"weighting": weighting})
            plain.zero_grad()
            own_logps.backward(slope)

            own.loss_types, own.loss_weights = [TRL_NAMES.get(name, name)], [1.0]
            own.beta, own.use_weighting = options["beta"], weighting == "wpo"
            own.model.zero_grad()
            theirs = own.compute_loss(own.model, inputs)
            theirs.backward()
            torch.testing.assert_close(value, theirs.detach(), rtol=1e-5, atol=1e-6)
            for mine, other in zip(plain.parameters(), own.model.parameters()):
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)
