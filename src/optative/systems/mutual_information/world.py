"""System 57's small world: a base model that follows principles weakly, and what a policy is watched for.

Knows: the grammar's prompts, pretraining, answers on held-out queries under held-out constitutions. Does not know:
iterations, who is trained on what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # raised when a change of code moves the base's weights
HELD_OUT = ((0, 0, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (1, 1, 1, 1))  # combinations that training never states
TRAINED = tuple(c for c in product((0, 1), repeat=4) if c not in HELD_OUT)
WEAKLY, NEW_TOKENS, TOKENS = 0.6, 40, 1024  # TOKENS: of a step of pretraining


class Seen(NamedTuple):
    """What one policy does on the held-out queries."""

    following: np.ndarray  # of each query, over its constitutions and their principles
    held_combinations: np.ndarray
    bound: float
    perplexity: float  # of its answers, under the base
    words: float


def prompt(query: str, stated: str) -> str:
    return f"{stated}\n{query}"


def base(
    folder: Path, model: Mapping[str, Any], documents: Sequence[int], queries: Sequence[str], seed: int
) -> tuple[Any, Path]:
    """The base of a seed, made once for all arms, and the file of its weights; a pretraining cut off goes on.

    documents: how many of each stage. The texts of the first follow their principles always, those of the second
    weakly: so the base knows what the words mean, as a large model does, and hardly acts on them.
    """
    import math

    from optative.core.ids import content_hash
    from optative.core.rng import stream
    from optative.generators.language import tiny
    from optative.generators.language.trained import load_trained, prepare_training, save_trained
    from optative.generators.options import Tiny
    from optative.objectives import checked_principles as world

    stages = [
        [
            (prompt(query, stated), f" {text}")
            for query, stated, text in world.documents(count, queries, follow, stream(seed, "documents", follow))
        ]
        for count, follow in zip(documents, (1.0, WEAKLY))
    ]
    tokenizer = tiny.train_tokenizer([before + text for before, text in stages[-1][:4000]], model["vocabulary"])
    lm = tiny.build(Tiny.model_validate(model), tokenizer, seed)
    place = folder / content_hash([VERSION, seed, model, stages])[:12]
    weights = place / "base.safetensors"
    if not weights.exists():
        plan = []
        for texts in stages:
            groups = [tiny.document(tokenizer, text, before) for before, text in texts]
            plan.append(tiny.Stage(groups, math.ceil(sum(group.num_tokens for group in groups) / TOKENS)))
        tiny.pretrain_stages(lm, plan, tokens_per_step=TOKENS, learning_rate=3e-3, seed=seed, folder=place)
        prepare_training(lm, None, seed)
        save_trained(lm, weights)
    prepare_training(lm, None, seed)
    load_trained(lm, weights)
    return lm, weights


def watch(lm: Any, queries: Sequence[str], seed: int) -> Seen:
    """Answers at temperature 1 on held-out queries, two constitutions each; the same constitutions for every policy."""
    import numpy as np

    from optative.generators.language.sample import SamplingSettings
    from optative.generators.language.trained import starting_point
    from optative.objectives import checked_principles as world
    from optative.optimizers.constitutions import draw_asked, squared
    from optative.optimizers.losses.mutual_information import bounds
    from optative.optimizers.mutual_information import measure

    settings, shares, answers = SamplingSettings(temperature=1, max_new_tokens=NEW_TOKENS), [], []
    for only in (HELD_OUT, TRAINED):
        asked = draw_asked(queries, world.PRINCIPLES, prompt, (seed, "watch", only), only=only)
        answers = asked.answers(lm, settings, seed)
        followed = [
            np.mean([world.followed(query, choice, answer.text) for choice, answer in zip(choices, found)])
            for query, choices, found in zip(queries, asked.choices, answers)
        ]
        shares.append(np.array(followed))
    squares = [squared(lm, own, found) for own, found in zip(asked.prompts, answers) if all(a.text for a in found)]
    sums_BCC, _ = measure(lm, squares)
    with starting_point(lm):
        base_BCC, tokens_BC = measure(lm, squares)
    nats = float(-base_BCC.diagonal(dim1=1, dim2=2).sum() / tokens_BC.sum())
    words = float(np.mean([len(answer.text.split()) for found in answers for answer in found]))
    return Seen(shares[1], shares[0], float(bounds(sums_BCC).mean_B.mean()), float(np.exp(nats)), words)
