"""How a real model ranks the pairs of a file, before any training of ours, and how well training could make it.

Knows: the default model, what is cut, which figures. Does not know: arms, criteria. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.systems.preference_rankings.worlds import ANSWER, PROMPT, answered_pairs

if TYPE_CHECKING:
    from optative.generators.language.packing import Group
    from optative.runs.study import Measured

MODEL, SHARE, BINS = "smollm2-135m-instruct", 0.75, 30
SLOW, AGAIN = "largest difference to scoring token by token, nats", "largest difference between two calls, nats"
RANKING, LENGTH, DIFFICULTY = "ranking accuracy", "ranking accuracy of length alone", "difficulty c, nats"
IDEAL, GAP = "idealised ranking accuracy, median over beta", "alignment gap"
SHARES = (LENGTH, *(name + words for name in (RANKING, IDEAL) for words in ("", " per token")))
NUMBERS = (SLOW, AGAIN, DIFFICULTY, GAP, f"{GAP} per token")


def scores(options: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Summed log-probabilities of the two answers of each pair: `sums`, once more `again`, the first ones `slow`."""
    from optative.generators.language.load import load_language_model
    from optative.generators.language.score import summed
    from optative.generators.language.tokens import encode_group, shorten

    lm = load_language_model(MODEL, dtype="float32")
    pairs = answered_pairs(file)[: options["real_pairs"]]
    groups = [shorten(lm, encode_group(lm, p.prompt, (p.chosen, p.rejected)), PROMPT, ANSWER) for p in pairs]
    return {
        "sums": summed(lm, groups),
        "again": summed(lm, groups),
        "slow": [token_by_token(lm, group) for group in groups[: options["slow_pairs"]]],
        "tokens": [group.counted for group in groups],
    }


def figures(found: Mapping[str, Any]) -> Measured:
    """What `scores` say. Items are pairs; whatever beta is, the share of voters for the label is taken to be SHARE."""
    import numpy as np

    from optative.evaluation.diagnosis import Scored
    from optative.evaluation.pairs import BETAS, difficulty, half_ties, idealised_right, median_row
    from optative.runs.study import Measured

    sums_B2, again_B2, slow_B2 = (np.array(found[name]) for name in ("sums", "again", "slow"))
    scored = Scored(*sums_B2.T, *np.array(found["tokens"]).T)
    values: dict[str, Any] = {
        SLOW: np.abs(slow_B2 - sums_B2[: len(slow_B2)]).max(),
        AGAIN: np.abs(again_B2 - sums_B2).max(),
        LENGTH: scored.shorter_B,
        DIFFICULTY: difficulty(scored.chosen_B, scored.rejected_B),
    }
    curves: dict[str, Any] = {}
    for variant, words in (("raw", ""), ("per_token", " per token")):
        right_B = half_ties(scored.margin(variant))
        ideal_KB = idealised_right(scored.margin(variant), np.full(len(right_B), SHARE), BETAS)
        values |= {
            RANKING + words: right_B,
            IDEAL + words: median_row(ideal_KB),
            GAP + words: median_row(ideal_KB) - right_B,
        }
        curves[f"{RANKING}, idealised, over log10 of beta{words}"] = (np.log10(BETAS), ideal_KB.mean(axis=1))
    counts, edges = np.histogram(values[DIFFICULTY], BINS)
    curves["pairs by difficulty c, nats"] = ((edges[:-1] + edges[1:]) / 2, counts)
    return Measured(values, curves=curves)


def token_by_token(lm: Any, group: Group) -> list[float]:
    """Summed log-probabilities of completions by one step of the model a token, with its own cache: slow, unpacked."""
    import torch

    found = []
    for completion in group.completion_ids:
        total, cache, ids = 0.0, None, torch.tensor([group.prompt_ids])
        for token in completion:
            with torch.no_grad():
                out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
            total += float(out.logits[0, -1].double().log_softmax(-1)[token])
            cache, ids = out.past_key_values, torch.tensor([[token]])
        found.append(total)
    return found
