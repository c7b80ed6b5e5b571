"""Judges of texts that no training saw: which class a text belongs to, and how offensive it is.

Knows: words of texts, scikit-learn. Does not know: who wrote a text, how it was made. Both need the extra `systems`.
`TextClasses`: TF-IDF of words and pairs of words, and a logistic regression on them. `profanity`: the classifier that
the package alt-profanity-check brings, a linear one on words of comments that people labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optative.core.errors import missing_extra


class TextClasses:
    """A classifier of texts. Equal texts in the same order give equal answers."""

    def __init__(self, texts: Sequence[str], classes: Sequence[str]) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
        except ImportError:
            raise missing_extra("scikit-learn", "systems") from None
        # Signs are words too: code is known by them.
        words = TfidfVectorizer(
            token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, max_features=50_000
        )
        self._model: Any = make_pipeline(words, LogisticRegression(C=10.0, max_iter=200)).fit(texts, classes)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The most likely class of each text."""
        return [str(found) for found in self._model.predict(texts)]


def profanity(texts: Sequence[str]) -> np.ndarray:
    """The probability, for each text, that somebody would call it offensive."""
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise missing_extra("alt-profanity-check", "systems") from None
    return np.asarray(predict_prob(list(texts)), float)
