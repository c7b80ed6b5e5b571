"""The losses against formulas written in another way, and their edge values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optative.optimizers.losses.pairs import dpo, implicit_rewards
from optative.optimizers.losses.reduction import step_mean
from optative.optimizers.losses.supervised import nll


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
