"""The names of what an evaluation can measure. Knows: options. Does not know: models, files, how it is computed."""

from __future__ import annotations

from optative.core.config import Config, Field, Table


class Metric(Config):
    """Options that all metrics share."""

    level: float = Field(0.95, gt=0, lt=1, description="Confidence level of the intervals.")


class InstructionAccuracy(Metric):
    """Share of prompts, and of single instructions, that are followed; per kind of instruction too."""


class KL(Metric):
    """How far the steered model moved from the base: nats per token of its own answers."""


class Length(Metric):
    """Tokens an answer, and the ratio of the steered model's to the base's."""

    smallest_ratio: float = Field(0.5, gt=0, le=1, description="A warning below this ratio of the mean lengths.")
    largest_ratio: float = Field(2.0, ge=1, description="A warning above this ratio of the mean lengths.")


class Fluency(Metric):
    """Mean log-probability a token under the base model."""

    largest_fall: float = Field(0.3, ge=0, description="A warning when it falls by more than this, in nats.")


class NegativeFlips(Metric):
    """Share of prompts that the base answered right and the steered model answers wrong."""

    largest_share: float = Field(0.1, ge=0, le=1, description="A warning above this share of all prompts.")


class Diversity(Metric):
    """Distinct-2 and repeated 4-grams, where collapse shows."""

    smallest_ratio: float = Field(
        0.9, ge=0, le=1, description="A warning below this ratio of distinct-2 to the base's."
    )


METRICS: Table = {
    "instruction_accuracy": (InstructionAccuracy, "optative.evaluation.instructions:accuracy"),
    "kl": (KL, "optative.evaluation.drift:kl"),
    "length": (Length, "optative.evaluation.drift:length"),
    "fluency": (Fluency, "optative.evaluation.drift:fluency"),
    "negative_flips": (NegativeFlips, "optative.evaluation.flips:negative_flips"),
    "diversity": (Diversity, "optative.evaluation.drift:diversity"),
}
