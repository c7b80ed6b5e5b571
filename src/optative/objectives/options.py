"""Options of the objectives, without torch.

Knows: option names. Does not know: how an objective is made or judged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from optative.core.config import Config, Field, Table


class VerifiableInstructions(Config):
    """Follow instructions that a rule can check."""

    train: int = Field(160, ge=1, description="Prompts to learn from.")
    validation: int = Field(
        0, ge=0, description="Prompts on which the policy is measured after each round; a fixed set. 0: none."
    )
    held_out: int = Field(
        250,
        ge=0,
        description="Prompts for the evaluation; a fixed set, each kind equally often. 0: settings are being chosen, "
        "and the evaluation is made on the validation prompts instead, so that these ones stay unseen.",
    )
    unseen_kinds: int = Field(64, ge=1, description="Prompts with kinds that are never trained on; a fixed set.")
    kinds: tuple[str, ...] | None = Field(None, description="Only these of the trained kinds; all when left out.")
    mode: Literal["strict", "published"] = Field(
        "strict", description="Rule of the checkers: as the instruction is written, or the public benchmark's."
    )

    @model_validator(mode="after")
    def _something_to_measure_on(self) -> VerifiableInstructions:
        if not self.held_out and not self.validation:
            raise ValueError("held_out and validation are both 0: nothing would be measured")
        return self


OBJECTIVES: Table = {
    "verifiable_instructions": (VerifiableInstructions, "optative.objectives.instructions.compose:generate"),
}
