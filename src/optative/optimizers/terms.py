"""A configured loss as something that can be added up over the units of a step.

Knows: how rows are cut out of the log-probabilities of all completions, under the names that losses ask for.
Does not know: formulas, models, steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optative.optimizers.losses.bind import Bound, bind
from optative.optimizers.options import LOSSES, SFT, Mixture, Preference
from optative.optimizers.units import Kind, Row, Unit, rows


@dataclass(frozen=True)
class Sums:
    """Of the completions of some units, in their order.

    logps_C, ref_logps_C: summed log-probabilities. tokens_C: how many count. starts: where each unit's completions
    begin. weights_C: what each completion's weight multiplies into its rows.
    """

    logps_C: torch.Tensor
    ref_logps_C: torch.Tensor | None
    tokens_C: torch.Tensor
    weights_C: torch.Tensor | None = None


@dataclass(frozen=True)
class Term:
    """A loss with its numbers, the records it takes, and its weight. added: it goes with the one asked for."""

    loss: Bound
    kind: Kind
    weight: float = 1.0
    margin_per_strength: float = 0.0
    added: bool = False

    @property
    def needs_kl(self) -> bool:
        return "kl" in self.loss.needs

    def rows(self, units: Sequence[Unit]) -> list[Row]:
        return [row for index, unit in enumerate(units) for row in rows(unit, index, self.kind)]

    def total(self, units: Sequence[Unit], sums: Sums, *, kl: torch.Tensor | None = None) -> torch.Tensor:
        """Sum over the units of the mean over their rows, times the term's weight; scalar. Units without rows add 0."""
        own = self.rows(units)
        if not own:
            return 0.0 * sums.logps_C.sum()  # on the graph, so that a pack without rows can go backward too
        starts, at = [], 0
        for unit in units:
            starts.append(at)
            at += len(unit.group.completion_ids)
        device = sums.logps_C.device
        counts: dict[int, int] = {}
        for row in own:
            counts[row.unit] = counts.get(row.unit, 0) + 1

        def pick(values_C: torch.Tensor, side: int) -> torch.Tensor:
            return values_C[torch.tensor([starts[r.unit] + r.members[side] for r in own], device=device)]

        def number(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, device=device, dtype=torch.float32)

        def grid(values_C: torch.Tensor, fill: float) -> torch.Tensor:
            width = max(len(r.members) for r in own)
            index = [[starts[r.unit] + m for m in r.members] + [-1] * (width - len(r.members)) for r in own]
            index_BK = torch.tensor(index, device=device)
            return torch.where(index_BK >= 0, values_C[index_BK.clamp(min=0)], values_C.new_full((), fill))

        reference_C = sums.ref_logps_C
        given: dict[str, Callable[[], Any]] = {
            "chosen_B": lambda: pick(sums.logps_C, 0),
            "rejected_B": lambda: pick(sums.logps_C, 1),
            "ref_chosen_B": lambda: pick(_known(reference_C), 0),
            "ref_rejected_B": lambda: pick(_known(reference_C), 1),
            "chosen_tokens_B": lambda: pick(sums.tokens_C, 0),
            "rejected_tokens_B": lambda: pick(sums.tokens_C, 1),
            "logps_B": lambda: pick(sums.logps_C, 0),
            "ref_logps_B": lambda: pick(_known(reference_C), 0),
            "tokens_B": lambda: pick(sums.tokens_C, 0),
            "margin_B": lambda: number([self.margin_per_strength * r.strength for r in own]),
            "confidence_B": lambda: number([units[r.unit].confidence for r in own]),
            "tied_B": lambda: torch.tensor([r.tied for r in own], device=device),
            "desirable_B": lambda: torch.tensor([r.desirable for r in own], device=device),
            "kl": lambda: kl,
            "logps_BK": lambda: grid(sums.logps_C, 0.0),
            "ref_logps_BK": lambda: grid(_known(reference_C), 0.0),
            "tokens_BK": lambda: grid(sums.tokens_C, 1.0),
            "ranks_BK": lambda: _ranks(own, device),
        }
        values_B = self.loss(**{name: given[name]() for name in self.loss.takes})
        if sums.weights_C is not None and self.loss.name != "sft":
            for side in range(len(own[0].members)) if self.kind != "list" else ():
                values_B = values_B * pick(sums.weights_C, side)
        if self.loss.coupled:  # sorted over the step: a value belongs to no row, so all rows weigh the same
            return self.weight * values_B.mean() * len(counts)
        shares_B = number([1.0 / counts[r.unit] for r in own])
        return self.weight * (values_B * shares_B).sum()


def terms(name: str, options: Preference) -> list[Term]:
    """The loss that an optimizer's options ask for, or the losses; and where they say so the NLL of the chosen answers.

    In a mixture a record adds the losses of those terms that have a use for it.
    """
    margin = getattr(options, "margin_per_strength", 0.0)
    if isinstance(options, Mixture):
        found = [
            _term(bind(part, LOSSES[part].config.model_validate(numbers)), weight, margin)
            for part, weight, numbers in options.parts
        ]
    else:
        found = [_term(bind(name, options), 1.0, margin)]
    nll_weight = getattr(options, "nll_weight", 0.0)
    return [*found, Term(bind("sft", SFT()), "good completion", nll_weight, added=True)] if nll_weight else found


def _term(loss: Bound, weight: float, margin_per_strength: float) -> Term:
    assert loss.kind != "any", "a mixture is its terms"
    kind: Kind = loss.kind
    if kind == "pair" and "tied_B" in loss.takes:
        kind = "tied pair"
    if kind == "completion" and "desirable_B" not in loss.takes:
        kind = "good completion"
    return Term(loss, kind, weight, margin_per_strength)


def implicit_beta(losses: Sequence[Term]) -> float:
    """The scale of the implicit reward: the first beta among the terms; 1 without any."""
    return next((float(term.loss.numbers["beta"]) for term in losses if "beta" in term.loss.numbers), 1.0)


def usable(unit: Unit, losses: Sequence[Term]) -> bool:
    """Does the loss that was asked for learn from this record? The NLL beside it is no reason to keep one."""
    return any(rows(unit, 0, term.kind) for term in losses if not term.added)


def _known(reference_C: torch.Tensor | None) -> torch.Tensor:
    assert reference_C is not None
    return reference_C


def _ranks(own: Sequence[Row], device: torch.device) -> torch.Tensor:
    width = max(len(r.ranks) for r in own)
    return torch.tensor([[*r.ranks, *[-1] * (width - len(r.ranks))] for r in own], device=device)
