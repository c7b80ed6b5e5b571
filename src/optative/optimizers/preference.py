"""The trainer of all losses on comparisons, labels and lists: units in, a trained model out.

Knows: encoded units, packs, terms of the loss, what is measured at each step. Does not know: where units come from,
files of a run, which objective is meant. The step engine owns the loop.

A step's loss is the sum over its units divided by their number. Losses that look at a whole step at once (`coupled`),
and the reference point of KTO, take one pass without gradients first; the second pass then goes back through the
packs one by one with dL/dlogp in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from optative.core.errors import InputError
from optative.generators.language.attention import backbone_of, base_of
from optative.generators.language.cost import Cost
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import score_pack
from optative.generators.language.trained import starting_point, trained_parameters
from optative.optimizers.losses.pairs import implicit_rewards
from optative.optimizers.losses.reduction import step_mean
from optative.optimizers.losses.unpaired import reference_point
from optative.optimizers.losses.weights import alignment, desensitise, wpo
from optative.optimizers.options import Preference
from optative.optimizers.reference import MovingReference
from optative.optimizers.terms import Sums, Term, implicit_beta, terms
from optative.optimizers.units import Unit, Units, rows
from optative.training.batches import step_plan
from optative.training.distribution import sharded, world
from optative.training.engine import MicroResult, train

# For each unit, by its index, the summed log-probabilities of its completions.
Reference = Sequence[Sequence[float]] | Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class Micro:
    """One packed forward and the units in it (indices into the training units, in the pack's order).

    reference: of its units, in that order. What a first pass over the whole step found: `kl`, KTO's reference point;
    for coupled losses `slopes_C`, dL/dlogp of the pack's completions, `value`, this pack's share of the step's loss,
    and `dropout_seed`, with which the second pass drops out what the first did.
    """

    pack: Pack
    units: tuple[int, ...]
    reference: tuple[float, ...] | None = None
    kl: torch.Tensor | None = None
    slopes_C: torch.Tensor | None = None
    value: float = 0.0
    dropout_seed: int | None = None


@dataclass(frozen=True)
class Beside:
    """A loss of another kind on the units of each pack, added to that on preferences, and the weights it brings along.

    loss: called with the indices of the units of a pack and the number of units of the whole step.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    loss: Callable[[Sequence[int], int], MicroResult]


def pack_units(units: Units, chosen: Sequence[int], how: int | Cost, reference: Reference | None = None) -> list[Micro]:
    """Pack some units, by a number of tokens or by cost; the completions of a unit stay with their prompt."""
    found = []
    groups = [units[i].group for i in chosen]
    for pack in how.plan(groups) if isinstance(how, Cost) else plan(groups, how):
        own = tuple(chosen[i] for i in pack.group_indices)
        values = None if reference is None else tuple(value for i in own for value in reference[i])
        found.append(Micro(pack, own, values))
    return found


def completion_sums(lm: LanguageModel, pack: Pack, options: Preference) -> Sums:
    """Summed log-probabilities of the completions of a pack and the number of tokens that count; no reference yet."""
    weighted = getattr(options, "weighting", "none") == "wpo"
    scores = score_pack(lm, pack, ("logps", "sum_p2") if weighted else ("logps",))
    assert scores.logps is not None
    counts_N = scores.mask_N.float()
    tokens_C = scores.totals(counts_N)
    weights_N = counts_N
    tail = getattr(options, "length_desensitise", 1.0)
    if tail != 1.0:
        owner_N = scores.owner_N
        first_N = torch.tensor(scores.offsets[:-1], device=owner_N.device)[owner_N]
        before_N = counts_N.cumsum(0) - counts_N  # tokens that count, in the pack before this one
        shared_N = _shortest(pack, tokens_C)[owner_N]
        weights_N = counts_N * desensitise(before_N - before_N[first_N], shared_N, alpha=tail)
    logps_C = scores.totals(scores.logps * weights_N)
    if not weighted:
        return Sums(logps_C, None, tokens_C)
    assert scores.sum_p2 is not None
    alignment_N = alignment(scores.logps, scores.sum_p2) * counts_N
    return Sums(logps_C, None, tokens_C, wpo(scores.totals(alignment_N), tokens_C))


def _shortest(pack: Pack, tokens_C: torch.Tensor) -> torch.Tensor:
    """For each completion the tokens of the shortest completion of its prompt."""
    parts = tokens_C.split([len(group.completion_ids) for group in pack.groups])
    return torch.cat([part.min().expand(len(part)) for part in parts])


@torch.no_grad()
def sums_of(lm: LanguageModel, units: Units, chosen: Sequence[int], options: Preference) -> list[list[float]]:
    """Log-probabilities of the completions of some units under the policy as it is now."""
    found: dict[int, list[float]] = {}
    for micro in pack_units(units, chosen, options.scoring_budget):
        values = iter(completion_sums(lm, micro.pack, options).logps_C.tolist())
        for i, group in zip(micro.units, micro.pack.groups):
            found[i] = [next(values) for _ in group.completion_ids]
    return [found[i] for i in chosen]


def reference_sums(lm: LanguageModel, units: Units, chosen: Sequence[int], options: Preference) -> list[list[float]]:
    """Log-probabilities of the completions of some units where the policy started: adapter off, or as it began.

    Processes share the work; all of them have to call it.
    """
    here = world()
    own = chosen[here.rank :: here.size]
    with starting_point(lm):
        found = dict(zip(own, sums_of(lm, units, own, options)))
    for others in here.every(found):
        found |= others
    return [found[i] for i in chosen]


def train_preferences(
    lm: LanguageModel,
    units: Units,
    reference: Reference | None,
    *,
    loss: str,
    options: Preference,
    seed: int,
    key: str,
    journal_path: Path,
    journal_start: int,
    checkpoints: Path,
    labels: dict[str, Any] | None = None,
    first_step: int = 0,
    held_out: tuple[Units, Reference | None] | None = None,
    cost: Cost | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
    on_held_out: Callable[[int, list[list[float]]], None] | None = None,
    beside: Beside | None = None,
) -> int:
    """Train the weights of `lm` that are trained on units, with a loss by its name.

    reference: `reference_sums` of all units in their order; None where no loss needs one.
    held_out: units and their reference that no step trains on; measured as `eval_...`.
    cost: what packs take here; with it each step is packed for the least time, else by the options' number of tokens.
    on_held_out: called at each measurement with the steps done and the log-probabilities of the held-out completions.
    beside: see there; it knows no held-out units, and `loss` of the metrics is the sum of both.
    Returns the metrics journal's offset.
    """
    losses = terms(loss, options)
    steps = step_plan(len(units), options.units_per_step, options.epochs, seed)
    moving = _moving_reference(lm, options, checkpoints, key)
    place, step = 0, tuple[int, ...]()

    def before_step(index: int) -> None:
        nonlocal place, step
        place, step = index, steps[index]
        if moving:
            moving.before(index)

    def micro_batches(own: Sequence[int]) -> list[Micro]:
        if not moving:
            return step_micros(lm, units, own, step, reference, options, losses, cost)
        with moving.in_place(lm):
            now = dict(zip(own, sums_of(lm, units, own, options)))
        return step_micros(lm, units, own, step, now, options, losses, cost)

    def evaluate() -> dict[str, float]:
        assert held_out is not None
        found, sums = measure(lm, *held_out, losses=losses, options=options)
        if on_held_out:
            on_held_out(place + 1, sums)
        return {f"eval_{k}": v for k, v in found.items()}

    def loss_of(micro: Micro, num_units: int) -> MicroResult:
        found = micro_loss(lm, units, micro, num_units, options, losses)
        if beside is None:
            return found
        more = beside.loss(micro.units, num_units)
        return MicroResult(found.loss + more.loss, found.sums | more.sums)

    if options.shard and (moving or beside or any(term.needs_kl or term.loss.coupled for term in losses)):
        raise InputError(
            "cannot act on a loss that looks at the whole step first or has another beside it, or on a reference that "
            "moves",
            field="shard",
            found=loss,
            hint="Without it every process holds all weights.",
        )
    backbone = backbone_of(base_of(lm))
    lm.model.train()
    try:
        with sharded(backbone, list(backbone.layers)) if options.shard else nullcontext():
            return train(
                trained_parameters(lm) | dict(beside.parameters if beside else {}),
                steps,
                micro_batches,
                loss_of,
                options=options,
                key=key,
                journal_path=journal_path,
                journal_start=journal_start,
                checkpoints=checkpoints,
                labels=labels,
                first_step=first_step,
                evaluate=evaluate if held_out and held_out[0] else None,
                evaluate_every=options.eval_every or len(steps),
                on_step=on_step,
                cost=lambda i: float(units[i].group.num_tokens),
                before_step=before_step,
            )
    finally:
        lm.model.eval()


def _moving_reference(lm: LanguageModel, options: Preference, checkpoints: Path, key: str) -> MovingReference | None:
    every = getattr(options, "reference_every", 0)
    if not every:
        return None
    mix = float(getattr(options, "reference_mix", 0.0))
    return MovingReference(lm, every=every, mix=mix, folder=checkpoints, key=key, keep=options.checkpoint_every)


def micro_loss(
    lm: LanguageModel, units: Units, micro: Micro, num_units: int, options: Preference, losses: Sequence[Term]
) -> MicroResult:
    """One pack's share of the step's loss, with its graph, and what is reported of it."""
    sums = _forward(lm, micro, options)
    own = [units[i] for i in micro.units]
    if micro.slopes_C is not None:
        value = (micro.slopes_C * sums.logps_C).sum()
        value = value - value.detach() + micro.value
    else:
        value = step_loss(losses, own, sums, num_units, micro.kl)
    measured = measures(own, replace(sums, logps_C=sums.logps_C.detach()), losses)
    measured["num_tokens"] = (float(micro.pack.num_tokens), 0.0)  # a total, not a mean
    if micro.kl is not None:
        measured["kl"] = (float(micro.kl), 1.0)
    return MicroResult(value, measured)


def step_micros(
    lm: LanguageModel,
    units: Units,
    own: Sequence[int],
    step: Sequence[int],
    reference: Reference | None,
    options: Preference,
    losses: Sequence[Term],
    cost: Cost | None = None,
) -> list[Micro]:
    """The packs of this process's units of a step, with what only a first pass over the whole step can tell."""
    micros = pack_units(units, own, cost or options.scoring_budget, reference)
    if any(term.needs_kl for term in losses):
        kl = mismatched_kl(lm, units, step, options)
        micros = [replace(micro, kl=kl) for micro in micros]
    if not any(term.loss.coupled for term in losses):
        return micros
    seed = torch.initial_seed()
    micros = [replace(micro, dropout_seed=seed + n) for n, micro in enumerate(micros)]
    found = _sums_of_units(lm, micros, options)
    for others in world().every(found):
        found |= others
    order = sorted(found)  # the same on every process and for every packing
    whole = _joined([found[i] for i in order])
    whole.logps_C.requires_grad_()
    value = step_loss(losses, [units[i] for i in order], whole, len(step), micros[0].kl if micros else None)
    (slopes_C,) = torch.autograd.grad(value, whole.logps_C)
    of_unit = dict(zip(order, slopes_C.split([len(units[i].group.completion_ids) for i in order])))
    first = world().is_main
    return [
        replace(
            micro,
            slopes_C=torch.cat([of_unit[i] for i in micro.units]),
            value=float(value) if first and n == 0 else 0.0,
        )
        for n, micro in enumerate(micros)
    ]


def step_loss(
    losses: Sequence[Term], units: Sequence[Unit], sums: Sums, num_units: int, kl: torch.Tensor | None = None
) -> torch.Tensor:
    """All terms added over some units of a step of `num_units`; scalar."""
    return step_mean(torch.stack([term.total(units, sums, kl=kl) for term in losses]), num_units)


def mismatched_kl(lm: LanguageModel, units: Units, step: Sequence[int], options: Preference) -> torch.Tensor:
    """KTO's reference point: how much likelier than the reference the policy finds answers of *other* prompts.

    Mean of log pi(y'|x) - log pi_ref(y'|x), at least 0, without gradient (Ethayarajh et al. 2024, arXiv:2402.01306,
    section 4.1). y' is the next answer in the step, then in the data, whose prompt and text are both different.
    """
    here = world()
    groups = mismatched_groups(units, step, lm.context_length)[here.rank :: here.size]
    training = lm.model.training
    lm.model.eval()
    own, start = list[float](), list[float]()
    with torch.no_grad():
        for pack in plan(groups, options.scoring_budget):
            own += completion_sums(lm, pack, options).logps_C.tolist()
            with starting_point(lm):
                start += completion_sums(lm, pack, options).logps_C.tolist()
    lm.model.train(training)
    if not any(found := here.every(list(zip(own, start)))):  # ties alone: no term that compares with it has a row here
        return torch.zeros((), device=lm.device)
    # In double precision, so that how many processes share the step does not show.
    everyone = torch.tensor([pair for part in found for pair in part], dtype=torch.float64)
    return reference_point(everyone[:, 0], everyone[:, 1]).float().to(lm.device)


def mismatched_groups(units: Units, chosen: Sequence[int], context_length: int) -> list[Group]:
    """For each completion of the step: its prompt with a completion that belongs to another prompt and differs.

    Raises InputError when all prompts or all answers of the data are the same.
    """
    answers = [(i, members) for i in chosen for members in [row.members[0] for row in rows(units[i], i, "completion")]]
    found = []
    for at, (i, own) in enumerate(answers):
        group = units[i].group
        later = [answers[(at + step) % len(answers)] for step in range(1, len(answers))]
        beyond = ((j % len(units), 0) for j in range(i + 1, i + len(units)))
        for j, other in [*later, *beyond]:
            candidate = units[j].group
            different = candidate.prompt_ids != group.prompt_ids and (
                candidate.completion_ids[other] != group.completion_ids[own]
            )
            if different and len(group.prompt_ids) + len(candidate.completion_ids[other]) <= context_length:
                found.append(Group(group.prompt_ids, (candidate.completion_ids[other],), control=group.control))
                break
        else:
            raise InputError(
                "KTO compares with answers of other prompts, and there is none",
                found=f"{len(units)} records",
                expected="at least two with different prompts and answers",
                hint="apo_zero_unpaired needs no such answers.",
            )
    return found


def measures(units: Sequence[Unit], sums: Sums, losses: Sequence[Term]) -> dict[str, tuple[float, float]]:
    """Sums and counts of what the field reports: rewards are beta * (log pi - log pi_ref), or beta * log pi.

    chosen, rejected: the two ends of each record. A margin of exactly zero is no decision: it counts half, so that
    accuracy at step 0 reads 0.5 and not 0 or 1.
    """
    reference_C = torch.zeros_like(sums.logps_C) if sums.ref_logps_C is None else sums.ref_logps_C
    rewards = implicit_rewards(sums.logps_C, reference_C, beta=implicit_beta(losses)).tolist()
    logps = sums.logps_C.tolist()
    tokens = sums.tokens_C.tolist()
    found: dict[str, tuple[float, float]] = {}

    def add(name: str, value: float) -> None:
        total, count = found.get(name, (0.0, 0.0))
        found[name] = (total + value, count + 1.0)

    start = 0
    for index, unit in enumerate(units):
        for row in rows(unit, index, "completion"):
            side = "chosen" if row.desirable else "rejected"
            add(f"rewards/{side}", rewards[start + row.members[0]])
            add(f"logps/{side}", logps[start + row.members[0]])
        for row in rows(unit, index, "good completion"):
            add("nll_loss", -logps[start + row.members[0]] / tokens[start + row.members[0]])
        for row in rows(unit, index, "pair"):
            margin = rewards[start + row.members[0]] - rewards[start + row.members[1]]
            add("rewards/margins", margin)
            add("rewards/accuracies", 0.5 if margin == 0 else float(margin > 0))
        start += len(unit.group.completion_ids)
    return found


@torch.no_grad()
def measure(
    lm: LanguageModel, units: Units, reference: Reference | None, *, losses: Sequence[Term], options: Preference
) -> tuple[dict[str, float], list[list[float]]]:
    """The loss and the field's metrics on units, in steps of the same size, and the sums of each unit's completions."""
    training = lm.model.training
    lm.model.eval()
    found: dict[str, tuple[float, float]] = {}
    total, sums = 0.0, dict[int, list[float]]()
    here = world()
    for at in range(0, len(units), options.units_per_step):
        chosen = range(at, min(at + options.units_per_step, len(units)))
        # Split weights are gathered at each forward, so that all processes have to make the same ones.
        mine = chosen if options.shard else chosen[here.rank :: here.size]
        parts = _sums_of_units(lm, pack_units(units, mine, options.scoring_budget, reference), options)
        for others in [] if options.shard else here.every(parts):
            parts |= others
        kl = mismatched_kl(lm, units, chosen, options) if any(term.needs_kl for term in losses) else None
        own = [units[i] for i in chosen]
        sums |= {i: parts[i].logps_C.tolist() for i in chosen}
        whole = _joined([parts[i] for i in chosen])
        total += float(step_loss(losses, own, whole, len(units), kl))
        for name, (value, count) in measures(own, whole, losses).items():
            old = found.get(name, (0.0, 0.0))
            found[name] = (old[0] + value, old[1] + count)
    lm.model.train(training)
    means = {name: value / count for name, (value, count) in found.items()}
    return {"loss": total, **means}, [sums[i] for i in range(len(units))]


@torch.no_grad()
def _sums_of_units(lm: LanguageModel, micros: Sequence[Micro], options: Preference) -> dict[int, Sums]:
    """The sums of each unit of some packs."""
    found: dict[int, Sums] = {}
    for micro in micros:
        found |= dict(zip(micro.units, _apart(_forward(lm, micro, options), micro.pack)))
    return found


def _forward(lm: LanguageModel, micro: Micro, options: Preference) -> Sums:
    if micro.dropout_seed is not None:
        torch.manual_seed(micro.dropout_seed)
    sums = completion_sums(lm, micro.pack, options)
    if micro.reference is None:
        return sums
    return replace(sums, ref_logps_C=torch.tensor(micro.reference, device=sums.logps_C.device, dtype=torch.float32))


def _apart(sums: Sums, pack: Pack) -> list[Sums]:
    """The sums of each unit of a pack."""
    sizes = [len(group.completion_ids) for group in pack.groups]

    def split(values_C: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        return [None] * len(sizes) if values_C is None else values_C.split(sizes)

    parts = zip(sums.logps_C.split(sizes), split(sums.ref_logps_C), sums.tokens_C.split(sizes), split(sums.weights_C))
    return [Sums(*part) for part in parts]


def _joined(parts: Sequence[Sums]) -> Sums:
    def join(values: list[torch.Tensor | None]) -> torch.Tensor | None:
        return None if values[0] is None else torch.cat([value for value in values if value is not None])

    return Sums(
        torch.cat([part.logps_C for part in parts]),
        join([part.ref_logps_C for part in parts]),
        torch.cat([part.tokens_C for part in parts]),
        join([part.weights_C for part in parts]),
    )
