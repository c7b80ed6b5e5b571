"""Grades of real summaries, told by one head on the last layer of a frozen real model, and real replies under it.

Knows: the published summaries (the layout is that of system 57's files), preference pairs of a file, what is cut. Does
not know: arms, criteria. The states do not depend on the seed and are computed once; the seed splits posts, so that
no held-out summary is of a post that the head has learnt on, and starts the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optative.generators.language.packing import Group
    from optative.runs.study import Measured

MODEL, GRADES = "smollm2-135m-instruct", 3
POST, REPLY = 64, 96  # most tokens of a post, its end, and of a reply
SUMMARY_WORDS = 40  # most words of a summary's sentences
STEPS, RATE = 300, 1e-2  # of the head, on standardised states
ACCURACY, ALONE = "degree accuracy on real summaries", "degree accuracy on real summaries of length alone"
BEYOND = "degree accuracy on real summaries beyond length alone"
ORDER = "Spearman correlation of expected grade and share deleted, real summaries"
REPLIES = "pairs whose chosen reply is graded as less degraded"


def summaries(folder: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Id of a post, the post, and the versions of a summary of it, cut to its first words; none without."""
    import numpy as np

    from optative.feedback.grades import graded
    from optative.objectives.published_summaries import clean, read

    found, unread = [], np.random.default_rng(0)
    for _, columns in sorted(read(folder)[1].items()):
        for post, text in sorted(columns["response"].items(), key=lambda item: int(item[0])):
            own = graded(first_sentences(clean(text)), GRADES, unread)
            if own:
                found.append((post, columns["question"][post], own))
    return found


def first_sentences(text: str) -> str:
    """Whole sentences up to the most words, at least one: cut at a word, all would be as long and tell their grade."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    number = 1
    while number < len(sentences) and len(" ".join(sentences[: number + 1]).split()) <= SUMMARY_WORDS:
        number += 1
    return " ".join(sentences[:number])


def cell(options: Mapping[str, Any], seed: int, folder: Path, files: tuple[Path, Path | None]) -> Measured:
    """Learn on the summaries of some posts, and measure on those of others, which are the clusters."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr

    from optative.core.errors import InputError
    from optative.core.rng import stream
    from optative.evaluation.grades import right_by_length
    from optative.evaluation.pairs import half_ties
    from optative.optimizers.degree import Degree, Graded, Heads, fit_heads, told
    from optative.optimizers.losses.degree import expected, most_likely
    from optative.runs.study import Measured

    texts = summaries(files[0])
    posts = sorted({post for post, _, _ in texts}, key=int)
    chosen = [posts[i] for i in stream(0, "posts").permutation(len(posts))[: options["posts"]]]
    if len(chosen) < options["posts"]:
        raise InputError("too few posts", file=files[0], field="posts", found=len(posts), expected=options["posts"])
    texts = [one for one in texts if one[0] in set(chosen)]
    groups, states, replies = measured(options, texts, folder, files[1])
    degree, roles, grades = Degree(roles="chosen", grades=GRADES), (0,) * GRADES, tuple(range(GRADES))
    versions = [Graded(group, roles, grades) for group in groups]
    order = stream(seed, "split").permutation(len(chosen))
    held_posts = {chosen[i] for i in order[: len(chosen) // 3]}
    own = [i for i, one in enumerate(texts) if one[0] not in held_posts]
    held = [i for i, one in enumerate(texts) if one[0] in held_posts]
    known = torch.cat([states[i] for i in own])
    mean, spread = known.mean(0), known.std(0) + 1e-6
    scaled = [(state - mean) / spread for state in states]
    heads = Heads(known.shape[1], degree, seed)
    fit_heads(heads, [versions[i] for i in own], [scaled[i] for i in own], steps=STEPS, rate=RATE, seed=seed)
    logits_CJ = told(heads, [versions[i] for i in held], [scaled[i] for i in held])
    grades_C = np.tile(grades, len(held))
    right = most_likely(logits_CJ, ordinal=False).numpy() == grades_C
    words = [[len(text.split()) for text in one[2]] for one in texts]
    seen, now = ([count for i in some for count in words[i]] for some in (own, held))
    alone = right_by_length(seen, np.tile(grades, len(own)), now, grades_C)
    gone = [1 - count / words[i][0] for i in held for count in words[i]]
    rank: Any = spearmanr(expected(logits_CJ, ordinal=False).numpy(), gone)
    values: dict[str, Any] = {ACCURACY: right, ALONE: alone, BEYOND: right.mean() - alone.mean()}
    values[ORDER] = float(rank.statistic)
    if replies:
        pairs = [Graded(group, (0, 0), (0, 0)) for group, _ in replies]
        logits_CJ = told(heads, pairs, [(state - mean) / spread for _, state in replies])
        grades_B2 = expected(logits_CJ, ordinal=False).view(-1, 2).numpy()
        values[REPLIES] = half_ties(grades_B2[:, 1] - grades_B2[:, 0])
    clusters = [texts[i][0] for i in held for _ in grades]
    return Measured(values, clusters={ACCURACY: clusters, ALONE: clusters})


def measured(
    options: Mapping[str, Any], texts: Sequence[tuple[str, str, tuple[str, ...]]], folder: Path, pairs: Path | None
) -> tuple[list[Group], list[Any], list[tuple[Group, Any]]]:
    """Groups of the summaries with their states, [K, D] each, and the same of replies, [2, D]; computed once."""
    import torch
    from safetensors.torch import load_file, save

    from optative.core.files import write_bytes
    from optative.core.ids import content_hash
    from optative.generators.language.load import load_language_model
    from optative.generators.language.tokens import encode_group, shorten
    from optative.optimizers.degree import features

    lm = load_language_model(MODEL, dtype="float32")
    told = [([{"role": "user", "content": post}], own) for _, post, own in texts]
    groups = [
        shorten(lm, encode_group(lm, prompt, [[{"role": "assistant", "content": text}] for text in own]), POST)
        for prompt, own in told
    ]
    replies = [
        shorten(lm, encode_group(lm, pair.prompt, (pair.chosen, pair.rejected)), POST, REPLY)
        for pair in (answered(pairs)[: options["replies"]] if pairs else ())
    ]
    keys = [[group.prompt_ids, group.completion_ids] for group in (*groups, *replies)]
    file = folder / f"states-{content_hash([lm.fingerprint, keys])[:12]}.safetensors"
    if not file.exists():
        found = features(lm, [*groups, *replies], "mean")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, save({"states": torch.cat(found).contiguous()}))
    sizes = [len(group.completion_ids) for group in (*groups, *replies)]
    states = load_file(file)["states"].split(sizes)
    return groups, list(states[: len(groups)]), list(zip(replies, states[len(groups) :]))


def answered(file: Path) -> list[Any]:
    """Strict pairs of a file whose two answers are one turn each, so that both belong to the same prompt."""
    from optative.data.readers import read
    from optative.data.records import pairs

    found = [pair for judgement in read(file, on_bad_record="skip") for pair in pairs(judgement)]
    return [p for p in found if all(isinstance(answer, str) or len(answer) == 1 for answer in (p.chosen, p.rejected))]
