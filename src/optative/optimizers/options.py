"""Options of the optimizers, and their names."""

from __future__ import annotations

from optative.core.config import Field, Table
from optative.training.options import StepOptions


class DPO(StepOptions):
    """Direct preference optimisation on a LoRA adapter, with the starting policy as the reference."""

    beta: float = Field(
        0.1, gt=0, description="Pull towards the reference; larger stays closer. Paper: 0.1, and 0.5 for TL;DR."
    )
    nll_weight: float = Field(
        0.0, ge=0, description="Weight of the per-token NLL of the chosen answer (RPO); keeps its likelihood up."
    )
    margin_per_strength: float = Field(
        0.0, ge=0, description="Offset of the implicit reward difference for each unit of preference strength (ODPO)."
    )
    token_budget: int = Field(
        1024, ge=16, description="Tokens of one packed forward; a matter of speed and memory only."
    )
    eval_every: int = Field(
        0, ge=0, description="Steps between measurements on held-out pairs; 0: only at the end of a round."
    )


OPTIMIZERS: Table = {"dpo": (DPO, "optative.optimizers.preference:train_preferences")}
