"""Key phrases of a text by RAKE: what stands between stop words and punctuation, the weightiest first.

Knows: words, a list of stop words. Does not know: which text is an answer, what is done with its phrases. The list is
that of scikit-learn (318 English words); languages that it is not for have no phrases here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache

from optative.core.errors import missing_extra

_PIECE = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|_")  # a word, numbers included, or a mark
Phrase = tuple[str, ...]


@cache
def stop_words() -> frozenset[str]:
    """scikit-learn's English stop words; an InputError that names the package where it is not installed."""
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    except ImportError:
        raise missing_extra("scikit-learn", "systems") from None
    return frozenset(ENGLISH_STOP_WORDS)


def candidates(text: str, stop: Collection[str]) -> list[Phrase]:
    """The runs of words, in lower case, between stop words and marks; as often as they occur, in their order.

    >>> candidates("The cat of Mr Blue-Eyes sat, and cost 20 crowns.", {"the", "of", "and"})
    [('cat',), ('mr', 'blue-eyes', 'sat'), ('cost', '20', 'crowns')]
    """
    found: list[list[str]] = [[]]
    for piece in _PIECE.findall(text):
        word = piece.lower()
        if word in stop or not word[0].isalnum():
            found.append([])
        else:
            found[-1].append(word)
    return [tuple(words) for words in found if words]


def key_phrases(
    text: str, stop: Collection[str] | None = None, documents: Mapping[str, int] | None = None
) -> list[tuple[Phrase, float]]:
    """Different phrases with their scores, the highest first, equal ones in their order in the text.

    A word scores its degree, the lengths of all phrases that hold it added up, over its frequency; a phrase the sum of
    its words (Rose et al. 2010, "Automatic keyword extraction from individual documents"). Numbers are words: they are
    often what an answer is about. A text of stop words alone has no phrase; its words stand in, the rarest in
    `documents` (word -> texts that hold it) first, with 1 / (1 + count) as the score.
    """
    stop = stop_words() if stop is None else stop
    phrases = candidates(text, stop)
    if not phrases and documents is not None:
        words = dict.fromkeys(word for phrase in candidates(text, ()) for word in phrase)
        scores: dict[Phrase, float] = {(word,): 1.0 / (1 + documents.get(word, 0)) for word in words}
    else:
        frequency, degree = Counter[str](), Counter[str]()
        for phrase in phrases:
            for word in phrase:
                frequency[word] += 1
                degree[word] += len(phrase)
        scores = {phrase: sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    return sorted(scores.items(), key=lambda item: -item[1])
