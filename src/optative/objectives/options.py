"""Options of the objectives, without torch.

Knows: option names. Does not know: how an objective is made or judged.
"""

from __future__ import annotations

from typing import Literal

from optative.core.config import Config, Field, Table


class VerifiableInstructions(Config):
    """Follow instructions that a rule can check."""

    train: int = Field(160, ge=1, description="Prompts to learn from.")
    validation: int = Field(100, ge=1, description="Prompts to choose settings on; a fixed set.")
    held_out: int = Field(250, ge=1, description="Prompts for the evaluation; a fixed set, each kind equally often.")
    unseen_kinds: int = Field(64, ge=1, description="Prompts with kinds that are never trained on; a fixed set.")
    evaluate_on: Literal["held_out", "validation"] = Field(
        "held_out",
        description="validation: the prompts on which settings are chosen, so that held-out ones stay unseen.",
    )
    kinds: tuple[str, ...] | None = Field(None, description="Only these of the trained kinds; all when left out.")
    mode: Literal["strict", "published"] = Field(
        "strict", description="Rule of the checkers: as the instruction is written, or the public benchmark's."
    )


OBJECTIVES: Table = {
    "verifiable_instructions": (VerifiableInstructions, "optative.objectives.instructions.compose:generate"),
}
