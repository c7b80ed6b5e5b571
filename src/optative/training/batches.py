"""Which units make which step: fixed and seeded before anything is trained.

Knows: counts and seeds. Does not know: lengths, packing, micro-batches; those live inside a step and never change it.
"""

from __future__ import annotations

from optative.core.rng import stream


def step_plan(num_units: int, units_per_step: int, epochs: int, seed: int) -> list[tuple[int, ...]]:
    """Indices of the units of each step. Every epoch is a fresh keyed permutation; its last step may be smaller.

    >>> [len(step) for step in step_plan(5, 2, 2, seed=0)]
    [2, 2, 1, 2, 2, 1]
    """
    plan = []
    for epoch in range(epochs):
        order = stream(seed, "step-plan", epoch).permutation(num_units)
        plan += [tuple(int(i) for i in order[at : at + units_per_step]) for at in range(0, num_units, units_per_step)]
    return plan
