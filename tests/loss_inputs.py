"""Random units of each kind for the tests of losses, and a slow scalar formula of every loss, in plain `math`.

The formulas are written per unit, from the papers, without the helpers of `optative.optimizers.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

KINDS = {  # the tensors that a loss of each kind may ask for
    "pair": (
        "chosen_B",
        "rejected_B",
        "ref_chosen_B",
        "ref_rejected_B",
        "chosen_tokens_B",
        "rejected_tokens_B",
        "margin_B",
        "confidence_B",
        "tied_B",
    ),
    "completion": ("logps_B", "ref_logps_B", "tokens_B", "desirable_B", "confidence_B", "kl"),
    "list": ("logps_BK", "ref_logps_BK", "tokens_BK", "ranks_BK", "confidence_B"),
}


def units(kind: str, seed: int, B: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Every tensor of a kind: log-ratios of a few nats, unequal lengths, some ties and doubtful labels."""
    rng = np.random.default_rng([seed, len(kind)])

    def reals(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    def logps(tokens: Any) -> Any:
        return -tokens * rng.uniform(0.2, 3.0, tokens.shape)

    if kind == "pair":
        chosen, rejected = rng.integers(1, 30, (2, B))
        c, r = logps(chosen), logps(rejected)
        found = [c, r, c + rng.normal(0, 3, B), r + rng.normal(0, 3, B), chosen, rejected]
        found += [rng.uniform(0, 2, B), rng.choice([1.0, 0.9, 0.6, 0.5], B)]
        return dict(zip(KINDS[kind], [*map(reals, found), torch.tensor(rng.random(B) < 0.4)]))
    if kind == "completion":
        tokens = rng.integers(1, 30, B)
        own = logps(tokens)
        found = [own, own + rng.normal(0, 3, B), tokens]
        return dict(
            zip(
                KINDS[kind],
                [
                    *map(reals, found),
                    torch.tensor(rng.random(B) < 0.5),
                    reals(rng.choice([1.0, 0.8, 0.5], B)),
                    reals(rng.uniform(0, 3)),
                ],
            )
        )
    tokens = rng.integers(1, 30, (B, 4))
    own = logps(tokens)
    ranks = rng.integers(0, 3, (B, 4))
    ranks[rng.random((B, 4)) < 0.2] = -1
    reference = own + rng.normal(0, 3, (B, 4))
    return dict(zip(KINDS[kind], [reals(own), reals(reference), reals(tokens), torch.tensor(ranks), reals(np.ones(B))]))


NUMBERS: dict[str, Callable[[np.random.Generator], Any]] = {
    "beta": lambda rng: float(rng.choice([0.02, 0.1, 0.5, 2.0])),
    "label_smoothing": lambda rng: float(rng.choice([0.001, 0.1, 0.3])),
    "divergence": lambda rng: str(rng.choice(["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])),
    "divergence_alpha": lambda rng: float(rng.uniform(0.1, 0.9)),
    "gamma": lambda rng: float(rng.uniform(0, 2)),
    "alpha": lambda rng: float(rng.choice([-0.5, 0.1, 0.25])),
    "tau": lambda rng: float(rng.choice([0.05, 0.5, 1.0])),
    "desirable_weight": lambda rng: float(rng.uniform(0.5, 2)),
    "undesirable_weight": lambda rng: float(rng.uniform(0.5, 2)),
    "places": lambda rng: int(rng.integers(0, 3)),
    "nu": lambda rng: float(rng.uniform(1.1, 4)),
}


def softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def score(c: float, n: dict[str, Any]) -> float:
    """f'(u) of Wang et al. 2023, table 1, with u the probability ratio."""
    u, a = math.exp(c), n["divergence_alpha"]
    return {
        "reverse_kl": math.log(u) + 1,
        "forward_kl": -1 / u,
        "js_divergence": math.log(2 * u / (1 + u)),
        "alpha_divergence": (1 - u**-a) / a,
    }[n["divergence"]]


def sure(u: dict[str, float], n: dict[str, Any]) -> float:
    e, p = n.get("label_smoothing", 0.0), u["confidence"]
    return p * (1 - e) + (1 - p) * e


def both(f: Callable[[float], float], z: float, p: float) -> float:
    return p * f(z) + (1 - p) * f(-z)


def ratios(u: dict[str, float]) -> tuple[float, float]:
    return u["chosen"] - u["ref_chosen"], u["rejected"] - u["ref_rejected"]


def scored(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = ratios(u)
    return n["beta"] * (score(w, n) - score(l, n))


def means(u: dict[str, float]) -> tuple[float, float]:
    return u["chosen"] / u["chosen_tokens"], u["rejected"] / u["rejected_tokens"]


def per_token_scores(u: dict[str, float], n: dict[str, Any]) -> float:
    (w, l), constant = ratios(u), score(0.0, n)  # the constant of f' would not cancel between unequal lengths
    return (score(w, n) - constant) / u["chosen_tokens"] - (score(l, n) - constant) / u["rejected_tokens"]


def exo(u: dict[str, float], n: dict[str, Any]) -> float:
    z, p = scored(u, n), sure(u, n)
    log_q, log_not_q = -softplus(-z), -softplus(z)
    return math.exp(log_q) * (log_q - math.log(p)) + math.exp(log_not_q) * (log_not_q - math.log(1 - p))


def discopop(u: dict[str, float], n: dict[str, Any]) -> float:
    z = scored(u, n)
    log_m = -softplus(-z / n["tau"])
    return (1 - math.exp(log_m)) * softplus(-z) + math.exp(log_m - z)


def orpo(u: dict[str, float], n: dict[str, Any]) -> float:
    p, q = (math.exp(x) for x in means(u))
    return n["beta"] * both(lambda z: softplus(-z), math.log((p / (1 - p)) / (q / (1 - q))), sure(u, n))


def alphapo(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = ((1 - math.exp(x) ** -n["alpha"]) / n["alpha"] for x in means(u))
    return both(lambda z: softplus(-z), n["beta"] * (w - l) - n["gamma"] - u["margin"], sure(u, n))


def simpo(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = means(u)
    return both(lambda z: softplus(-z), n["beta"] * (w - l) - n["gamma"] - u["margin"], sure(u, n))


def strengths(u: dict[str, float], n: dict[str, Any]) -> tuple[float, float]:
    w, l = ratios(u)
    return math.exp(n["beta"] * w), math.exp(n["beta"] * l)


def rao_kupper(u: dict[str, float], n: dict[str, Any]) -> float:
    (w, l), nu = strengths(u, n), n["nu"]
    tie = (nu**2 - 1) * w * l / ((w + nu * l) * (l + nu * w))
    return -math.log(tie if u["tied"] else w / (w + nu * l))


def davidson(u: dict[str, float], n: dict[str, Any]) -> float:
    (w, l), nu = strengths(u, n), n["nu"]
    tie = 2 * nu * math.sqrt(w * l)
    return -math.log((tie if u["tied"] else w) / (w + l + tie))


def kto(u: dict[str, float], n: dict[str, Any]) -> float:
    v = sigmoid(n["beta"] * (u["logps"] - u["ref_logps"] - u["kl"]))
    p = u["confidence"] if u["desirable"] else 1 - u["confidence"]
    return p * n["desirable_weight"] * (1 - v) + (1 - p) * n["undesirable_weight"] * (1 - (1 - v))


def apo_zero_unpaired(u: dict[str, float], n: dict[str, Any]) -> float:
    v = sigmoid(n["beta"] * (u["logps"] - u["ref_logps"]))
    p = u["confidence"] if u["desirable"] else 1 - u["confidence"]
    return p * (1 - v) + (1 - p) * v


def plackett_luce(u: dict[str, Any], n: dict[str, Any]) -> float:
    """The product of softmax choices, best first; of tied ones, each chooses from all that were there before it."""
    items = [(k, n["beta"] * (x - y)) for x, y, k in zip(u["logps"], u["ref_logps"], u["ranks"]) if k >= 0]
    items.sort(key=lambda item: item[0])
    total = 0.0
    for rank, reward in items:
        left = [r for k, r in items if k >= rank]
        if not n["places"] or len(items) - len(left) < n["places"]:
            total -= math.log(math.exp(reward) / sum(map(math.exp, left)))
    return total


def sppo(u: dict[str, float], n: dict[str, Any]) -> float:
    (w, l), eta, p = ratios(u), 1 / n["beta"], u["confidence"]
    return (w - eta * (p - 0.5)) ** 2 + (l - eta * ((1 - p) - 0.5)) ** 2


def rewards(u: dict[str, float], n: dict[str, Any]) -> tuple[float, float]:
    w, l = ratios(u)
    return n["beta"] * w, n["beta"] * l


def nca(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = rewards(u, n)
    return -math.log(sigmoid(w)) - 0.5 * math.log(sigmoid(-w)) - 0.5 * math.log(sigmoid(-l))


def bco(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = rewards(u, n)
    return -math.log(sigmoid(w)) - math.log(1 - sigmoid(l))


def apo_zero(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = rewards(u, n)
    return (1 - sigmoid(w)) + sigmoid(l)


def apo_down(u: dict[str, float], n: dict[str, Any]) -> float:
    w, l = rewards(u, n)
    return sigmoid(w) + (1 - sigmoid(w - l))


def robust(u: dict[str, float], n: dict[str, Any]) -> float:
    z, e = scored(u, n), n["label_smoothing"]
    return ((1 - e) * softplus(-z) - e * softplus(z)) / (1 - 2 * e)


def ipo(u: dict[str, float], n: dict[str, Any]) -> float:
    return both(lambda h: (h - 0.5 / n["beta"]) ** 2, per_token_scores(u, n), sure(u, n))


def gamma_dpo(u: dict[str, float], n: dict[str, Any]) -> float:
    anchored = n["gamma"] * (u["ref_rejected"] - u["ref_chosen"])
    z = n["beta"] * (u["chosen"] - u["rejected"] + anchored) - u["margin"]
    return both(lambda z: softplus(-z), z, sure(u, n))


FORMULAS: dict[str, Callable[[dict[str, Any], dict[str, Any]], float]] = {
    "dpo": lambda u, n: both(lambda z: softplus(-z), scored(u, n) - u["margin"], sure(u, n)),
    "hinge": lambda u, n: both(lambda z: max(0.0, 1 - z), scored(u, n) - u["margin"], sure(u, n)),
    "ipo": ipo,
    "exo_pair": exo,
    "nca_pair": nca,
    "robust": robust,
    "bco_pair": bco,
    "sppo": sppo,
    "sppo_hard": lambda u, n: sppo({**u, "confidence": 1.0}, n),
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": lambda u, n: both(lambda z: softplus(-z), n["beta"] * per_token_scores(u, n), sure(u, n)),
    "gamma_dpo": gamma_dpo,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
    "simpo": simpo,
    "alphapo": alphapo,
    "orpo": orpo,
    "cpo": lambda u, n: both(
        lambda z: softplus(-z), n["beta"] * (u["chosen"] - u["rejected"]) - u["margin"], sure(u, n)
    ),
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
    "sft": lambda u, n: -u["logps"] / u["tokens"],
    "plackett_luce": plackett_luce,
}


def _transported(upper: list[float], lower: list[float], n: dict[str, Any]) -> list[float]:
    upper, lower = sorted(upper), sorted(lower)
    assert all(a <= b for a, b in pairwise(upper))
    e = n["label_smoothing"]
    return [both(lambda z: softplus(-z), n["beta"] * (a - b), 1 - e) for a, b in zip(upper, lower)]


STEP_FORMULAS: dict[str, Callable[[list[dict[str, float]], dict[str, Any]], list[float]]] = {
    "aot": lambda us, n: _transported(
        [u["chosen"] - u["rejected"] for u in us], [u["ref_chosen"] - u["ref_rejected"] for u in us], n
    ),
    "aot_unpaired": lambda us, n: _transported([ratios(u)[0] for u in us], [ratios(u)[1] for u in us], n),
}


def formula(name: str, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> list[float]:
    """The loss of every unit by its scalar formula."""
    plain = {key.partition("_B")[0]: value.tolist() for key, value in tensors.items()}
    B = len(next(value for value in plain.values() if isinstance(value, list)))
    each = [{k: v[i] if isinstance(v, list) else v for k, v in plain.items()} for i in range(B)]
    if name in STEP_FORMULAS:
        return STEP_FORMULAS[name](each, numbers)
    return [FORMULAS[name](u, numbers) for u in each]
