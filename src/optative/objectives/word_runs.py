"""A task on free text with an exact judge: how many different words of a vocabulary come before the first other one.

Knows: words. Does not know: models, where texts come from. A text is judged by itself, its prompt plays no part. Text
that is no language stops the run at once, and so does a word that was there already, so that neither noise nor
repetition pays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")


def vocabulary(texts: Iterable[str], least: int = 3) -> frozenset[str]:
    """The words, in lower case, that occur at least so often."""
    counts = Counter(word.lower() for text in texts for word in _WORD.findall(text))
    return frozenset(word for word, count in counts.items() if count >= least)


def run_of_words(text: str, known: frozenset[str]) -> int:
    """Length of the run of different known words at the beginning of a text.

    >>> run_of_words(" the name of a file, or of a folder", frozenset("a file folder name of or the".split()))
    6
    """
    seen: set[str] = set()
    for word in _WORD.findall(text):
        word = word.lower()
        if word not in known or word in seen:
            break
        seen.add(word)
    return len(seen)
