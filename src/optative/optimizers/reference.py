"""Log-probabilities of pairs under the reference policy, cached on disk by content.

Knows: which tokens were scored and under which weights. Does not know: losses.
The reference is where the policy started: the adapter off, or the adapter that it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from optative.core.files import read_json, write_json
from optative.core.ids import content_hash
from optative.generators.language.adapters import reference_mode
from optative.generators.language.model import LanguageModel
from optative.optimizers.preference import Pairs, pair_logps, windows


@torch.no_grad()
def reference_logps(
    lm: LanguageModel,
    pairs: Pairs,
    *,
    weights: str,
    cache: Path,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, float]]:
    """Summed log-probabilities (chosen, rejected) of each pair with the reference weights.

    weights: fingerprint of the reference weights, dtype and template, part of the cache's key. cache: its folder.
    """
    path = cache / f"reference-{content_hash([weights, token_budget, [p.key for p in pairs]])[:16]}.json"
    if path.exists():
        return [tuple(pair) for pair in read_json(path)]
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(pairs)
    training = lm.model.training
    lm.model.eval()
    done = 0
    with reference_mode(lm):
        for micro in windows(pairs, token_budget):
            logps_B2, _ = pair_logps(lm, micro)
            for i, (chosen, rejected) in zip(micro.pairs, logps_B2.tolist()):
                found[i] = (chosen, rejected)
            done += len(micro.pairs)
            if progress:
                progress(done, len(pairs))
    lm.model.train(training)
    write_json(path, found, indent=None)
    return found
