"""Short texts as first words and what follows them: prompts and answers for small language models.

Knows: words, paragraphs. Does not know: tokens, models, which part is held out.
"""

from __future__ import annotations

from collections.abc import Iterable

from optative.data.corpora import Document


def openings(
    documents: Iterable[Document], *, words: int, least: int = 5, most: int = 40, characters: int = 40
) -> list[tuple[str, str, str]]:
    """First paragraphs of `least` to `most` words as (first words, the rest behind a space, source).

    White space becomes single spaces. Of equal first words only the first text is taken, and none whose first words
    have more than so many `characters` (addresses, tables).
    """
    found: dict[str, tuple[str, str]] = {}
    for document in documents:
        own = document.text.split("\n\n")[0].split()
        first = " ".join(own[:words])
        if max(least, words + 1) <= len(own) <= most and len(first) <= characters:
            found.setdefault(first, (" " + " ".join(own[words:]), document.source))
    return [(first, *rest) for first, rest in found.items()]
