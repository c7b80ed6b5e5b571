"""One instruction of each kind, with parameters drawn as prompts draw them."""

from __future__ import annotations

from optative.core.rng import stream
from optative.objectives.instructions.check import Instruction, make_instruction
from optative.objectives.instructions.kinds import KINDS
from optative.objectives.instructions.kinds.base import Topic

TOPIC = Topic("Write a short poem about rivers.", ("water", "fish", "bridge", "sea"))


def one_of_each(seed: int = 0) -> list[Instruction]:
    return [make_instruction(k, KINDS[k].draw(stream("sample", seed, k), TOPIC), seed) for k in KINDS]
