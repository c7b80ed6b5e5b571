"""Options of the step engine."""

from __future__ import annotations

from typing import Literal

from optative.core.config import Config, Field


class StepOptions(Config):
    """How parameters move in one step; what a unit is and what the loss is belong to the optimizer."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Decay after the warm-up.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises linearly.")
    final_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the peak that a linear or cosine decay ends at, in place of zero."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="The global gradient norm is clipped to this.")
    units_per_step: int = Field(
        16, ge=1, description="Units (pairs, rows) in one optimizer step; never changed by packing."
    )
    epochs: int = Field(1, ge=1, description="Passes over the units.")
    checkpoint_every: int = Field(10, ge=1, description="Steps between checkpoints; a crash loses at most these.")
    early_stopping: int = Field(
        0, ge=0, description="Stop after so many evaluations without a smaller held-out loss; 0: never."
    )
    keep_best: bool = Field(
        False, description="End with the weights of the evaluation whose held-out loss was the smallest."
    )
    shard: bool = Field(
        False,
        description="Under torchrun: split each layer's weights over the processes (FSDP2); else each has a copy.",
    )
