"""System 57 on the published constitutions and summaries, scored by a real model; nothing is trained.

Knows: one bound and how an answer is put to a model. Does not know: the files (`objectives.published_summaries`). Each
summary was written under the desired constitution only, so that just the columns can be told: for an answer, which of
the two constitutions. The model that scores is not the one that wrote, and the figure no bound on its information.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optative.core.errors import InputError
from optative.objectives.published_summaries import WRITERS, clean, kept, read

if TYPE_CHECKING:
    import numpy as np

    from optative.runs.study import Measured

GAIN = "column bound on published summaries, iteration 3 minus base, nats"
METRICS = (
    *(f"column bound on published summaries, {writer}, nats" for writer in WRITERS),
    GAIN,
    f"{GAIN} a token",
    *(f"words, {writer}" for writer in WRITERS),
    *(f"share that the published filter keeps, {writer}" for writer in WRITERS),
)


def column_bound(logps_PK: np.ndarray) -> np.ndarray:
    """log pi(y | c_0) - log mean_k pi(y | c_k) of each answer, [P]; at most log K. Constitution 0 is the true one."""
    import numpy as np

    logps_PK = np.asarray(logps_PK, float)
    return logps_PK[:, 0] - np.logaddexp.reduce(logps_PK, axis=1) + np.log(logps_PK.shape[1])


def prompt(constitution: str, post: str) -> str:
    return f"Summarise the post below. Keep to these principles:\n{constitution}\n\n{post}"


def score_outputs(folder: Path, num_posts: int, seed: int) -> Measured:
    """The column bound of every writer on the same posts, drawn with the seed; each has one negative constitution."""
    from optative.generators.language.load import DEFAULT, load_language_model

    return score_with(load_language_model(DEFAULT), folder, num_posts, seed)


def score_with(lm: Any, folder: Path, num_posts: int, seed: int) -> Measured:
    import numpy as np

    from optative.core.rng import stream
    from optative.generators.language.packing import Group
    from optative.generators.language.score import summed
    from optative.generators.language.tokens import encode_completion, encode_prompt
    from optative.runs.study import Measured

    negatives, written = read(folder)
    texts = {writer: {i: clean(t) for i, t in written[writer]["response"].items()} for writer in WRITERS}
    posts = [i for i in written["base"]["question"] if all(texts[writer].get(i) for writer in WRITERS)]
    if num_posts > len(posts):
        raise InputError("more posts than there are", field="posts", found=num_posts, expected=f"at most {len(posts)}")
    rng = stream(seed, "published posts")
    groups = []
    for i in (posts[at] for at in rng.choice(len(posts), num_posts, replace=False)):
        positive = _same_constitution(written, i, folder)
        negative = str(rng.choice(_matching(negatives, positive, folder)))
        for stated in (positive, negative):
            turn = [{"role": "user", "content": prompt(stated, written["base"]["question"][i])}]
            answers = [[{"role": "assistant", "content": texts[writer][i]}] for writer in WRITERS]
            ids = tuple(encode_completion(lm, turn, answer, end=False) for answer in answers)
            groups.append(Group(encode_prompt(lm, turn), ids))
    sums_PKW = np.array(summed(lm, groups)).reshape(num_posts, 2, len(WRITERS))
    tokens_PW = np.array([[len(ids) for ids in group.completion_ids] for group in groups[::2]])
    bound = {writer: column_bound(sums_PKW[:, :, w]) for w, writer in enumerate(WRITERS)}
    a_token = [column_bound(sums_PKW[:, :, w] / tokens_PW[:, w, None]) for w in range(len(WRITERS))]
    values: dict[str, Any] = {GAIN: bound["iteration-3"] - bound["base"], f"{GAIN} a token": a_token[1] - a_token[0]}
    for writer in WRITERS:
        values[f"column bound on published summaries, {writer}, nats"] = bound[writer]
        values[f"words, {writer}"] = [len(text.split()) for text in texts[writer].values()]
        values[f"share that the published filter keeps, {writer}"] = [kept(text) for text in texts[writer].values()]
    return Measured(values)


def _same_constitution(written: Mapping[str, Mapping[str, Mapping[str, str]]], post: str, folder: Path) -> str:
    stated = {written[writer]["constitution"].get(post) for writer in WRITERS}
    asked = {written[writer]["question"].get(post) for writer in WRITERS}
    if len(stated) != 1 or len(asked) != 1:
        raise InputError("the writers were not given the same post and constitution", file=folder, field=post)
    return str(stated.pop())


def _matching(negatives: Mapping[tuple[str, ...], list[str]], positive: str, folder: Path) -> list[str]:
    """The negative constitutions whose positive one states the same in the same order."""
    from optative.objectives.principles import statements

    if statements(positive) not in negatives:
        raise InputError("no constitution file states these principles in this order", file=folder, found=positive[:80])
    return negatives[statements(positive)]
