"""What single losses promise: published values, limits in which one is another, probabilities that add up to 1.

All losses against scalar formulas: test_losses_table.py; against TRL: test_losses_trl.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loss_inputs import units
from optative.optimizers.losses.divergence import LARGEST, bounded_expm1, scores
from optative.optimizers.losses.listwise import plackett_luce
from optative.optimizers.losses.pairs import dpo, gamma_dpo, implicit_rewards, ipo, robust, sppo, sppo_hard
from optative.optimizers.losses.reduction import step_mean
from optative.optimizers.losses.reference_free import alphapo, log_odds, simpo
from optative.optimizers.losses.supervised import nll
from optative.optimizers.losses.ties import davidson, rao_kupper
from optative.optimizers.losses.unpaired import kto, reference_point
from optative.optimizers.losses.weights import alignment, desensitise, wpo


def numpy_dpo(c, r, rc, rr, beta, margin=0.0, confidence=1.0):
    """-log of the Bradley-Terry probability of the label, as log(exp(0) + exp(-z)) in NumPy."""
    z = beta * ((c - rc) - (r - rr)) - margin
    return confidence * np.logaddexp(0, -z) + (1 - confidence) * np.logaddexp(0, z)


@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0, 2), st.floats(0.5, 1))
def test_dpo_equals_the_numpy_formula(seed, beta, margin, confidence):
    rng = np.random.default_rng(seed)
    values = rng.normal(-20, 5, (4, 6))
    tensors = [torch.tensor(v) for v in values]
    got = dpo(*tensors, beta=beta, margin_B=margin, confidence_B=confidence)
    np.testing.assert_allclose(got.numpy(), numpy_dpo(*values, beta, margin, confidence), rtol=1e-9)


def test_dpo_gradient_is_beta_times_the_wrong_probability():
    chosen = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    dpo(chosen, rejected, zero, zero, beta=0.5).sum().backward()
    wrong = 1 / (1 + math.exp(0.5 * (-3.0 + 2.0)))
    assert chosen.grad.item() == pytest.approx(-0.5 * wrong)
    assert rejected.grad.item() == pytest.approx(0.5 * wrong)


def test_dpo_sums_log_probabilities_and_ignores_padding():
    """Case 13: chosen 4 tokens at -0.5, rejected 8 at -0.5; reference -0.6 and -0.55: margin 0, loss ln 2."""
    one = torch.ones(1)
    loss = dpo(-2.0 * one, -4.0 * one, -2.4 * one, -4.4 * one, beta=0.1)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert -2.0 / 4 == -4.0 / 8 == -0.5  # the reported mean per token of both sides


def test_swapping_the_sides_mirrors_the_loss():
    c, r, rc, rr = (torch.tensor([x]) for x in (-1.0, -2.5, -1.2, -2.0))
    z = (c - rc) - (r - rr)
    assert dpo(r, c, rr, rc, beta=1.0).item() - dpo(c, r, rc, rr, beta=1.0).item() == pytest.approx(z.item(), abs=1e-6)
    assert dpo(c, r, rc, rr, beta=1.0, confidence_B=0.0).item() == pytest.approx(dpo(r, c, rr, rc, beta=1.0).item())


def test_wrong_shapes_are_errors_not_broadcasts():
    flat = torch.zeros(4)
    with pytest.raises(ValueError, match=r"chosen_B has shape \(4, 7\), expected \[B\]; sum the token"):
        dpo(torch.zeros(4, 7), flat, flat, flat, beta=0.1)
    with pytest.raises(ValueError, match=r"ref_chosen_B has shape \(1,\)"):
        dpo(flat, flat, torch.zeros(1), flat, beta=0.1)


def test_nll_refuses_an_empty_completion():
    assert nll(torch.tensor([-6.0, -1.0]), torch.tensor([3.0, 1.0])).tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="has no tokens"):
        nll(torch.tensor([-6.0]), torch.tensor([0.0]))


def test_rewards_have_the_documented_sign():
    assert implicit_rewards(torch.tensor([-1.0]), torch.tensor([-3.0]), beta=0.5).item() == 1.0


def test_any_split_into_micro_batches_adds_up():
    values = torch.arange(7.0)
    parts = sum(step_mean(part, 7) for part in values.split(3))
    assert parts.item() == pytest.approx(values.mean().item())


def pair(*names: str, seed: int = 0) -> list[torch.Tensor]:
    tensors = units("pair", seed)
    return [tensors[f"{name}_B"] for name in names]


FOUR = ("chosen", "rejected", "ref_chosen", "ref_rejected")


def test_means_are_over_an_answers_own_tokens():
    """Case 13: IPO aims at 5 nats per token, SimPO with gamma 1; sums or padded means give other values."""
    one, tokens = torch.ones(1), (torch.tensor([4.0]), torch.tensor([8.0]))
    sums = (-2.0 * one, -4.0 * one)
    assert ipo(*sums, -2.4 * one, -4.4 * one, *tokens, beta=0.1).item() == pytest.approx(24.5025)
    assert simpo(*sums, *tokens, beta=2.0, gamma=1.0).item() == pytest.approx(1.313262, abs=1e-6)


def test_losses_meet_where_one_is_a_limit_of_the_other():
    four = pair(*FOUR)
    tokens = pair("chosen_tokens", "rejected_tokens")
    torch.testing.assert_close(gamma_dpo(*four, beta=0.1, gamma=1.0), dpo(*four, beta=0.1))
    torch.testing.assert_close(sppo(*four, 1.0, beta=0.1), sppo_hard(*four, beta=0.1))
    torch.testing.assert_close(robust(*four, beta=0.1, label_smoothing=0.0), dpo(*four, beta=0.1))
    numbers = {"beta": 2.0, "gamma": 1.0}
    near = alphapo(*four[:2], *tokens, alpha=1e-6, **numbers)
    torch.testing.assert_close(near, simpo(*four[:2], *tokens, **numbers), rtol=1e-4, atol=1e-5)
    nearly = {"divergence": "alpha_divergence", "beta": 0.1}
    torch.testing.assert_close(dpo(*four, divergence_alpha=1e-8, **nearly), dpo(*four, beta=0.1))
    torch.testing.assert_close(
        dpo(*four, divergence_alpha=1 - 1e-9, **nearly), dpo(*four, beta=0.1, divergence="forward_kl")
    )


def test_the_robust_loss_is_unbiased_under_flipped_labels():
    c, r, rc, rr = pair(*FOUR)
    clean, numbers = dpo(c, r, rc, rr, beta=0.1), {"beta": 0.1, "label_smoothing": 0.2}
    mean = 0.8 * robust(c, r, rc, rr, **numbers) + 0.2 * robust(r, c, rr, rc, **numbers)
    torch.testing.assert_close(mean, clean)


@pytest.mark.parametrize(("divergence", "slope"), [("reverse_kl", 1), ("forward_kl", 1), ("js_divergence", 0.5)])
def test_scores_are_zero_at_the_reference_and_rise(divergence, slope):
    c = torch.linspace(-20, 20, 41, dtype=torch.float64, requires_grad=True)
    s = scores(c, divergence, 0.5)
    s.sum().backward()
    assert s[20].item() == pytest.approx(0)
    assert c.grad[20].item() == pytest.approx(slope)
    assert (c.grad > 0).all()
    with pytest.raises(ValueError, match="unknown divergence"):
        scores(c, "kl", 0.5)


def test_the_bounded_exponential_goes_on_as_its_tangent():
    x = torch.tensor([LARGEST - 1, LARGEST, LARGEST + 2], dtype=torch.float64, requires_grad=True)
    y = bounded_expm1(x)
    y.sum().backward()
    top = math.exp(LARGEST)
    assert y.tolist() == pytest.approx([math.expm1(LARGEST - 1), top, 3 * top])
    assert x.grad.tolist() == pytest.approx([math.exp(LARGEST - 1), top, top])


@pytest.mark.parametrize(("model", "nu"), [(rao_kupper, 3.0), (davidson, 1.0), (rao_kupper, 1.2), (davidson, 0.3)])
def test_win_loss_and_tie_add_up_to_one(model, nu):
    c, r, rc, rr = pair(*FOUR)
    tied, decided = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    numbers = {"beta": 0.3, "nu": nu}
    three = [model(c, r, rc, rr, tied, **numbers), model(c, r, rc, rr, decided, **numbers)]
    three.append(model(r, c, rr, rc, decided, **numbers))
    torch.testing.assert_close(sum(x.neg().exp() for x in three), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(three[0], model(r, c, rr, rc, tied, **numbers))
    with pytest.raises(ValueError, match="expected bool"):
        model(c, r, rc, rr, tied.float(), **numbers)


def test_a_tie_draws_the_answers_together():
    for model, nu in ((rao_kupper, 3.0), (davidson, 1.0)):
        c, r = torch.tensor([-1.0, -5.0]).requires_grad_(), torch.tensor([-3.0, -3.0])
        model(c, r, r, r, torch.tensor([True, True]), beta=1.0, nu=nu).sum().backward()
        assert c.grad[0] > 0 > c.grad[1]


def test_a_list_of_two_is_a_pair_and_padding_is_nothing():
    four = pair(*FOUR)
    own, reference = torch.stack(four[:2], dim=1), torch.stack(four[2:], dim=1)
    ranks = torch.tensor([[0, 1]] * 5)
    torch.testing.assert_close(plackett_luce(own, reference, ranks, beta=0.1), dpo(*four, beta=0.1))
    torch.testing.assert_close(
        plackett_luce(own.flip(1), reference.flip(1), ranks.flip(1), beta=0.1), dpo(*four, beta=0.1)
    )
    pad = torch.full((5, 3), -torch.inf, dtype=torch.float64)
    own = own.requires_grad_()
    padded = plackett_luce(
        torch.cat([own, pad], dim=1),
        torch.cat([reference, 0 * reference, pad[:, :1]], dim=1),
        torch.cat([ranks, torch.full((5, 3), -1)], dim=1),
        beta=0.1,
    )
    torch.testing.assert_close(padded, dpo(*four, beta=0.1))
    padded.sum().backward()
    assert own.grad.isfinite().all()
    alone = plackett_luce(own[:, :1], reference[:, :1], torch.zeros((5, 1), dtype=torch.long), beta=0.1)
    assert alone.abs().max() == 0


def test_first_place_only_is_softmax_dpo():
    """S-DPO: -log sigmoid(-log sum over rejected of exp(reward - chosen reward))."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn((6, 4), generator=generator, dtype=torch.float64)
    got = plackett_luce(rewards, 0 * rewards, torch.tensor([[0, 1, 2, 3]] * 6), beta=1.0, places=1)
    z = -(rewards[:, 1:] - rewards[:, :1]).exp().sum(dim=1).log()
    torch.testing.assert_close(got, -torch.nn.functional.logsigmoid(z))


def test_only_the_order_of_ranks_matters_and_equal_ranks_are_symmetric():
    rewards = torch.tensor([[0.3, -1.0, 2.0, 0.5]], dtype=torch.float64)

    def loss(rewards: torch.Tensor, ranks: list[int]) -> float:
        return plackett_luce(rewards, 0 * rewards, torch.tensor([ranks]), beta=1.0).item()

    assert loss(rewards, [0, 1, 1, 2]) == loss(rewards, [0, 3, 3, 7])
    assert loss(rewards, [0, 1, 1, 2]) == pytest.approx(loss(rewards[:, [0, 2, 1, 3]], [0, 1, 1, 2]))
    assert loss(0 * rewards, [0, 0, 0, 0]) == pytest.approx(4 * math.log(4))


def test_the_reference_point_is_a_clamped_constant():
    """Case 15: clamped at 0 and without gradient."""
    own = torch.tensor([-3.0, -5.0]).requires_grad_()
    point = reference_point(own, torch.tensor([-4.0, -5.0]))
    assert point.item() == 0.5
    assert not point.requires_grad
    assert reference_point(own, torch.tensor([-1.0, -1.0])).item() == 0
    with pytest.raises(ValueError, match="no mismatched answer"):
        reference_point(own[:0], own[:0])
    kl = torch.tensor(0.5, requires_grad=True)
    kto(own, own.detach(), torch.tensor([True, False]), kl, beta=0.1).sum().backward()
    assert kl.grad is None
    with pytest.raises(ValueError, match="expected bool"):
        kto(own, own, torch.tensor([1.0, 0.0]), kl, beta=0.1)


@pytest.mark.parametrize("p", [1e-30, 1e-3, 0.25, 0.5, 0.75, 1 - 1e-12])
def test_log_odds_are_exact_at_both_ends(p):
    got = log_odds(torch.tensor([math.log(p)], dtype=torch.float64)).item()
    assert got == pytest.approx(math.log(p) - math.log1p(-p), rel=1e-4 if p > 0.9 else 1e-12)


def test_weights_of_wpo():
    """A token as likely as a draw from the policy weighs 1; the mean is over the answer's own tokens; no gradient."""
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    logps = p[:, 0].log().requires_grad_()
    aligned = alignment(logps, p.square().sum(dim=1))
    expected = [math.log(0.5 / 0.375), math.log(0.1 / 0.66)]
    assert aligned.tolist() == pytest.approx(expected)
    weight = wpo(aligned.sum()[None], torch.tensor([2.0]))
    assert weight.item() == pytest.approx(math.sqrt(0.5 / 0.375 * 0.1 / 0.66))
    assert not weight.requires_grad


def test_length_desensitised_tokens():
    places = torch.tensor([0, 1, 2, 0, 1])  # a chosen answer of 3 tokens, a rejected one of 2
    weights = desensitise(places, torch.tensor([2] * 5), alpha=0.25)
    assert weights.tolist() == [1, 1, 0.25, 1, 1]
