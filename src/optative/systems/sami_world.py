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
WEAKLY, NEW_TOKENS = 0.6, 40


class Seen(NamedTuple):
    """What one policy does on the held-out queries."""

    following: np.ndarray  # of each query, over its constitutions and their principles
    held_combinations: np.ndarray
    bound: float
    perplexity: float  # of its answers, under the base
    words: float


def prompt(query: str, stated: str) -> str:
    return f"{stated}\n{query}"


def base(folder: Path, model: Mapping[str, Any], documents: int, queries: Sequence[str], seed: int) -> tuple[Any, Path]:
    """The base of a seed, made once for all arms, and the file of its weights; a pretraining cut off goes on."""
    import math

    from optative.core.ids import content_hash
    from optative.core.rng import stream
    from optative.generators.language import tiny
    from optative.generators.language.trained import load_trained, save_trained
    from optative.generators.options import Tiny
    from optative.objectives import checked_principles as world

    texts = world.documents(documents, queries, WEAKLY, stream(seed, "documents"))
    prompts = [prompt(query, stated) for query, stated, _ in texts]
    tokenizer = tiny.train_tokenizer(
        [f"{p} {text}" for p, (_, _, text) in zip(prompts, texts)][:4000], model["vocabulary"]
    )
    lm = tiny.build(Tiny.model_validate(model), tokenizer, seed)
    place = folder / content_hash([VERSION, seed, model, texts])[:12]
    weights = place / "base.safetensors"
    if not weights.exists():
        groups = [tiny.document(tokenizer, f" {text}", before) for before, (_, _, text) in zip(prompts, texts)]
        steps = math.ceil(sum(group.num_tokens for group in groups) / 4096)
        tiny.pretrain(lm, groups, steps=steps, tokens_per_step=4096, learning_rate=2e-3, seed=seed, folder=place)
        save_trained(lm, weights)
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
