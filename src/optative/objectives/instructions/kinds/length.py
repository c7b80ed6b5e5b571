"""How long the answer is, and how it is divided: words, sentences, paragraphs, lines.

Known faults of the published rules: `don't` is two words; a list without full stops is one sentence, `1.` another;
`***` inside a line divides paragraphs; blank paragraphs lower the count but are still counted through when the nth
one is looked up; quotes and bold hide a first word.
"""

from __future__ import annotations

import re

from optative.objectives.instructions.kinds.base import (
    Kind,
    Params,
    Verdict,
    between,
    compared,
    count,
    exactly,
    pick,
    relation,
    word,
)
from optative.objectives.instructions.text import (
    has_word,
    lines,
    paragraphs,
    published_sentences,
    published_words,
    sentences,
    words,
)

_FIRST_WORD = re.compile(r"[^\W_]+(?:['.-][^\W_]+)*")


def _words(answer: str, p: Params) -> Verdict:
    return compared(len(words(answer)), p["relation"], p["num_words"], "word")


def _words_published(answer: str, p: Params) -> Verdict:
    return compared(len(published_words(answer)), p["relation"], p["num_words"], "word")


def _sentences(answer: str, p: Params) -> Verdict:
    return compared(len(sentences(answer)), p["relation"], p["num_sentences"], "sentence")


def _sentences_published(answer: str, p: Params) -> Verdict:
    return compared(len(published_sentences(answer)), p["relation"], p["num_sentences"], "sentence")


def _paragraphs(answer: str, p: Params) -> Verdict:
    return _divided(re.split(r"(?m)^[^\S\n]*\*\*\*[^\S\n]*$", answer), p, has_word)


def _paragraphs_published(answer: str, p: Params) -> Verdict:
    return _divided(re.split(r"\s?\*\*\*\s?", answer), p, lambda part: bool(part.strip()))


def _divided(parts: list[str], p: Params, filled: object) -> Verdict:
    assert callable(filled)
    if any(not filled(part) for part in parts[1:-1]):
        return Verdict(False, "nothing stands between two *** dividers")
    ends = parts if len(parts) == 1 else [parts[0], parts[-1]]
    return exactly(len(parts) - sum(not filled(part) for part in ends), p["num_paragraphs"], "paragraph")


def _nth(answer: str, p: Params) -> Verdict:
    found = paragraphs(answer)
    if len(found) != p["num_paragraphs"]:
        return exactly(len(found), p["num_paragraphs"], "paragraph")
    match = _FIRST_WORD.search(found[p["nth_paragraph"] - 1])
    wanted = _FIRST_WORD.search(p["first_word"])
    assert match is not None  # a paragraph holds a word
    assert wanted is not None  # and so does the parameter
    return _first_word(match[0].casefold(), wanted[0].casefold(), p)


def _nth_published(answer: str, p: Params) -> Verdict:
    parts = answer.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if p["nth_paragraph"] > filled:
        return exactly(filled, p["num_paragraphs"], "paragraph")
    paragraph = parts[p["nth_paragraph"] - 1].strip()
    if not paragraph:
        return Verdict(False, f"paragraph {p['nth_paragraph']} is blank")
    first = paragraph.split()[0].lstrip("'").lstrip('"')
    first = re.split("[.,?!'\"]", first)[0].lower()
    if filled != p["num_paragraphs"]:
        return exactly(filled, p["num_paragraphs"], "paragraph")
    return _first_word(first, p["first_word"].lower(), p)


def _first_word(found: str, wanted: str, p: Params) -> Verdict:
    return Verdict(found == wanted, f"paragraph {p['nth_paragraph']} starts with {found!r}, needed {wanted!r}")


def _nth_fault(p: Params) -> tuple[str, str] | None:
    if p["nth_paragraph"] > p["num_paragraphs"]:
        return "nth_paragraph", f"at most num_paragraphs, {p['num_paragraphs']}"
    return None


def _lines(answer: str, p: Params) -> Verdict:
    return exactly(len(lines(answer)), p["num_lines"], "line")


def _longest(answer: str, p: Params) -> Verdict:
    longest = max((len(words(sentence)) for sentence in sentences(answer)), default=0)
    if not longest:
        return Verdict(False, "no sentence found")
    return Verdict(longest <= p["max_words"], f"the longest sentence has {longest} words, allowed {p['max_words']}")


KINDS = (
    Kind(
        id="length_constraints:number_words",
        params={"num_words": count(), "relation": relation()},
        wordings=(
            "Use {relation} {num_words:word}.",
            "Your answer should have {relation} {num_words:word}.",
            "Keep to this length: {relation} {num_words:word}.",
            "Write {relation} {num_words:word} in total.",
        ),
        draw=lambda rng, topic: pick(
            rng,
            (
                {"num_words": 10 * between(rng, 3, 7), "relation": "less than"},
                {"num_words": 10 * between(rng, 3, 6), "relation": "at least"},
            ),
        ),
        strict=_words,
        published=_words_published,
    ),
    Kind(
        id="length_constraints:number_sentences",
        params={"num_sentences": count(), "relation": relation()},
        wordings=(
            "Use {relation} {num_sentences:sentence}.",
            "Your answer should consist of {relation} {num_sentences:sentence}.",
            "Answer in {relation} {num_sentences:sentence}.",
            "Write {relation} {num_sentences:sentence}.",
        ),
        draw=lambda rng, topic: pick(
            rng,
            (
                {"num_sentences": between(rng, 3, 5), "relation": "less than"},
                {"num_sentences": between(rng, 2, 4), "relation": "at least"},
            ),
        ),
        strict=_sentences,
        published=_sentences_published,
    ),
    Kind(
        id="length_constraints:number_paragraphs",
        params={"num_paragraphs": count()},
        wordings=(
            "Write exactly {num_paragraphs:paragraph} and put a line with only *** between one and the next.",
            "Your answer has {num_paragraphs:paragraph}, divided by a line that holds just three asterisks (***).",
            "Split the answer into {num_paragraphs:paragraph}. The divider is *** on a line of its own.",
            "Give me {num_paragraphs:paragraph}, separated by the markdown divider *** on its own line.",
        ),
        draw=lambda rng, topic: {"num_paragraphs": between(rng, 2, 3)},
        strict=_paragraphs,
        published=_paragraphs_published,
    ),
    Kind(
        id="length_constraints:nth_paragraph_first_word",
        params={"num_paragraphs": count(), "nth_paragraph": count(), "first_word": word()},
        wordings=(
            "Write {num_paragraphs:paragraph} with a blank line between them, and let paragraph {nth_paragraph} start "
            'with the word "{first_word}".',
            "There should be {num_paragraphs:paragraph}, parted only by blank lines. The first word of paragraph "
            '{nth_paragraph} is "{first_word}".',
            'Begin paragraph {nth_paragraph} with "{first_word}". In all there are {num_paragraphs:paragraph}, each '
            "followed by an empty line.",
            "Use exactly {num_paragraphs:paragraph} (an empty line parts them). Paragraph number {nth_paragraph} must "
            'open with the word "{first_word}".',
        ),
        draw=lambda rng, topic: {
            "num_paragraphs": 2,
            "nth_paragraph": between(rng, 1, 2),
            "first_word": pick(rng, ("today", "first", "many", "remember", "sometimes", "people", "there", "however")),
        },
        strict=_nth,
        published=_nth_published,
        fault=_nth_fault,
    ),
    Kind(
        id="length_constraints:number_lines",
        params={"num_lines": count()},
        wordings=(
            "Your answer must be exactly {num_lines:line} long.",
            "Write exactly {num_lines:line}, each one a short sentence.",
            "Give the answer as {num_lines:separate line}, no more and no fewer.",
            "Put your answer on exactly {num_lines:line}.",
        ),
        draw=lambda rng, topic: {"num_lines": between(rng, 2, 5)},
        strict=_lines,
        published=_lines,
        public=False,
    ),
    Kind(
        id="length_constraints:sentence_length",
        params={"max_words": count()},
        wordings=(
            "No sentence may be longer than {max_words:word}.",
            "Use short sentences: each has at most {max_words:word}.",
            "Every sentence should have {max_words:word} or fewer.",
            "Keep each sentence to a maximum of {max_words:word}.",
        ),
        draw=lambda rng, topic: {"max_words": between(rng, 12, 20)},
        strict=_longest,
        published=_longest,
        public=False,
    ),
)
