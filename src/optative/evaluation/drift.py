"""What steering cost: length, variety, repetition, fluency under the base, distance from the base.

Knows: judged answers with their token counts and log-probabilities. Does not know: models; the caller computes the
log-probabilities.

- `completion_tokens`: tokens of an answer, with the ratio of the means.
- `distinct_2`: different word pairs over all word pairs of all answers of a split (Li et al. 2016, arXiv:1510.03055).
  Words are what white space separates. It falls when answers repeat themselves or each other, and also when they merely
  grow longer, so that the ratio at equal length (each pair of answers cut to the shorter) is given beside it.
- `repetition`: share of an answer's word 4-grams that occurred before in the same answer; 0 below 4 words.
- `logp_base_per_token`: mean log-probability a token of an answer under the base; nats. Empty answers have none.
- `kl`: divergence of the steered model from the base on its own answers, nats per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from optative.core import stats
from optative.core.errors import InputError
from optative.core.stats import Interval
from optative.evaluation.figures import Figure, score_figure
from optative.evaluation.independence import BASE_LOGPS, WORD_COUNTS, decide
from optative.evaluation.instructions import Context
from optative.evaluation.options import KL, Diversity, Fluency, Length
from optative.evaluation.results import Answers
from optative.objectives.repetition import ngrams, repetition

Words = Sequence[Any]  # words of an answer, or its token ids


def length(answers: Answers, options: Length, context: Context) -> list[Figure]:
    """completion_tokens, with `ratio` and `ratio_interval` of the means."""
    counts = {side: [float(row["num_tokens"]) for row in rows] for side, rows in answers.sides.items()}
    extra: dict[str, Any] = {}
    if "steered" in counts:
        ratio, interval = stats.paired_ratio(counts["base"], counts["steered"], level=options.level, seed=context.seed)
        extra = {"ratio": ratio, "ratio_interval": interval.to_list()}
    return [
        score_figure(
            "completion_tokens",
            answers.split,
            counts["base"],
            counts.get("steered"),
            clusters=answers.ids,
            bounds=None,
            level=options.level,
            seed=context.seed,
            measured_by="token counts",
            independence=decide({"token counts"}, context.trained_by),
            extra=extra,
        )
    ]


def fluency(answers: Answers, options: Fluency, context: Context) -> list[Figure]:
    """logp_base_per_token over the items where both answers have one. No figure when none has."""
    values = list(zip(*([row.get("logp_base") for row in rows] for rows in answers.sides.values())))
    kept = [i for i, v in enumerate(values) if None not in v]
    if not kept:
        return []
    sides = dict(zip(answers.sides, zip(*(values[i] for i in kept))))
    return [
        score_figure(
            "logp_base_per_token",
            answers.split,
            sides["base"],
            sides.get("steered"),
            clusters=[answers.ids[i] for i in kept],
            bounds=None,
            level=options.level,
            seed=context.seed,
            measured_by="log-probabilities of the base model",
            independence=decide({BASE_LOGPS}, context.trained_by),
        )
    ]


def kl(answers: Answers, options: KL, context: Context) -> list[Figure]:
    """kl over the prompts that have one. The base is at distance 0 from itself. No figure when none has."""
    ids = [i for i in dict.fromkeys(answers.ids) if context.kl is not None and context.kl.get(i) is not None]
    if answers.steered is None or not ids:
        return []
    found = stats.mean([(context.kl or {})[i] for i in ids], level=options.level, seed=context.seed)
    judged = "log-probabilities of both models", decide({BASE_LOGPS}, context.trained_by)
    return [Figure("kl", answers.split, 0.0, found.value, found.value, found.interval, found.n, *judged)]


def kl_per_token(policy_logps_T: Sequence[float], base_logps_T: Sequence[float]) -> float | None:
    """Estimate of KL(policy || base) per token from an answer that the policy sampled at temperature 1; nats.

    The mean of `r - 1 - log r` with `r = base / policy`: unbiased, never negative (Schulman 2020, "Approximating KL
    divergence", k3). For greedy answers it is a distance along the likeliest answer, not the divergence itself.
    None for an answer without tokens.

    >>> kl_per_token([-1.0, -2.0], [-1.0, -2.0])
    0.0
    """
    policy_T, base_T = np.asarray(policy_logps_T, dtype=float), np.asarray(base_logps_T, dtype=float)
    if policy_T.shape != base_T.shape or policy_T.ndim != 1:
        raise InputError(
            "kl_per_token: both sides need one log-probability a token", found=(policy_T.shape, base_T.shape)
        )
    if not len(policy_T):
        return None
    log_ratio_T = base_T - policy_T
    return float((np.expm1(log_ratio_T) - log_ratio_T).mean())


def diversity(answers: Answers, options: Diversity, context: Context) -> list[Figure]:
    """distinct_2 (with `ratio` and `ratio_at_equal_length`) and repetition."""
    words = {side: [row["completion"].split() for row in rows] for side, rows in answers.sides.items()}
    judged: dict[str, Any] = {
        "measured_by": WORD_COUNTS,
        "independence": decide({WORD_COUNTS}, context.trained_by),
    }
    repeated = {side: [repetition(w) for w in own] for side, own in words.items()}
    return [
        _distinct_figure(answers, words, options.level, judged),
        score_figure(
            "repetition",
            answers.split,
            repeated["base"],
            repeated.get("steered"),
            clusters=answers.ids,
            bounds=(0, 1),
            level=options.level,
            seed=context.seed,
            **judged,
        ),
    ]


def distinct(texts: Sequence[Words], n: int = 2) -> float | None:
    """Different n-grams over all n-grams of all texts; None where there is none.

    >>> distinct(["a b a b".split(), "a b".split()])
    0.5
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_without_each(texts: Sequence[Words], groups: Sequence[str], n: int = 2) -> list[float | None]:
    """`distinct` with each group of texts left out in turn, in the order of the groups' first text."""
    own: dict[str, Counter[tuple[Any, ...]]] = {}
    for text, group in zip(texts, groups):
        own.setdefault(group, Counter()).update(ngrams(text, n))
    holders = Counter(gram for counts in own.values() for gram in counts)
    different, total = len(holders), sum(counts.total() for counts in own.values())
    result = []
    for counts in own.values():
        rest = total - counts.total()
        result.append((different - sum(holders[gram] == 1 for gram in counts)) / rest if rest else None)
    return result


def at_equal_length(base: Sequence[Words], steered: Sequence[Words]) -> tuple[list[Words], list[Words]]:
    """Each pair of texts cut to the shorter of the two, so that length alone does not change `distinct`."""
    lengths = [min(len(a), len(b)) for a, b in zip(base, steered)]
    return [a[:m] for a, m in zip(base, lengths)], [b[:m] for b, m in zip(steered, lengths)]


def empty(rows: Sequence[Any]) -> int:
    """How many answers are blank."""
    return sum(not row["completion"].strip() for row in rows)


def _distinct_figure(answers: Answers, words: dict[str, list[Words]], level: float, judged: dict[str, Any]) -> Figure:
    base, steered = distinct(words["base"]), distinct(words["steered"]) if "steered" in words else None
    nothing = Interval(None, None, level, "undefined")
    n = len(answers.ids)
    if base is None or steered is None:
        return Figure("distinct_2", answers.split, base, steered, None, nothing, n, **judged)
    pairs = list(zip(*(distinct_without_each(words[side], answers.ids) for side in ("base", "steered"))))
    without = [b - a for a, b in pairs if a is not None and b is not None]
    interval = stats.jackknife(without, steered - base, level) if len(without) == len(pairs) else nothing
    matched = [distinct(texts) for texts in at_equal_length(words["base"], words["steered"])]
    extra = {
        "ratio": steered / base if base else None,
        "ratio_at_equal_length": matched[1] / matched[0] if matched[0] and matched[1] is not None else None,
    }
    return Figure("distinct_2", answers.split, base, steered, steered - base, interval, n, **judged, extra=extra)
