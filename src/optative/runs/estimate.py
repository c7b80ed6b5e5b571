"""How long a training will take and how much memory it needs, measured on some of its own units before it begins.

Knows: packs, seconds, the process's peak. Does not know: losses, files of a run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optative.core.memory import release
from optative.generators.language.model import LanguageModel
from optative.generators.language.trained import trained_parameters
from optative.optimizers.options import Preference
from optative.optimizers.preference import micro_loss, reference_sums, step_micros
from optative.optimizers.terms import Term
from optative.optimizers.units import Units
from optative.runs.environment import peak_memory_bytes, resident_bytes
from optative.training.distribution import world

SAMPLE = 24  # units that are timed; they are spread evenly over the lengths


@dataclass(frozen=True)
class Estimate:
    """Seconds of the training with its reference pass, and the peak of the process until its end."""

    seconds: float
    peak_memory_bytes: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        words = f"{minutes:.0f} min" if minutes >= 2 else f"{self.seconds:.0f} s"
        return f"about {words} of training, and {self.peak_memory_bytes / 1e9:.1f} GB of memory at the peak"


def estimate(
    lm: LanguageModel, units: Units, tokens: Sequence[int], options: Preference, losses: Sequence[Term]
) -> Estimate:
    """Time the steps of a few units, forward and backward, and scale by tokens; no weight changes.

    tokens: of each unit, prompt and completions. What is added for steps: two moments for each trained number. At the
    end the model is written in float32, from a copy, and read back: the peak may be there.
    """
    at_the_end = resident_bytes() + 2 * 4 * sum(p.numel() for p in lm.model.parameters())
    by_length = sorted(range(len(units)), key=lambda i: tokens[i])
    places = {round(k * (len(units) - 1) / max(1, SAMPLE - 1)) for k in range(SAMPLE)}
    some = [by_length[place] for place in sorted(places)]
    needed = any(term.loss.reference for term in losses)
    sampled = sum(tokens[i] for i in some)
    reference_sums(lm, units, some[:2], options)  # what is set up at the first call does not count
    started = time.perf_counter()
    values = reference_sums(lm, units, some, options)
    scoring = time.perf_counter() - started
    lm.model.train()
    with torch.random.fork_rng():
        started = time.perf_counter()
        for micro in step_micros(lm, units, some, some, dict(zip(some, values)), options, losses):
            micro_loss(lm, units, micro, len(some), options, losses).loss.backward()
        training = time.perf_counter() - started
    peak = peak_memory_bytes()
    parameters = trained_parameters(lm).values()
    lm.model.zero_grad(set_to_none=True)
    lm.model.eval()
    release()
    scale = sum(tokens) / sampled
    moments = sum(2 * p.numel() * p.element_size() for p in parameters)
    steps = options.epochs * training / world().size  # the reference pass was shared out already
    return Estimate(scale * (steps + (scoring if needed else 0.0)), max(peak + moments, at_the_end))
