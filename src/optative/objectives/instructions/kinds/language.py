"""The language of the answer.

Known faults of the published rule: the detector is not seeded, short English is taken for other languages, and text
without letters, on which the detector raises, counts as followed. Here the detector is seeded in both modes; the
strict rule says "cannot tell" where it cannot.
"""

from __future__ import annotations

from optative.objectives.instructions.kinds.base import Kind, Params, Verdict, choice, pick
from optative.objectives.instructions.text import language, published_language

LANGUAGES = {
    "en": "English", "es": "Spanish", "pt": "Portuguese", "ar": "Arabic", "hi": "Hindi", "fr": "French",
    "ru": "Russian", "de": "German", "ja": "Japanese", "it": "Italian", "bn": "Bengali", "uk": "Ukrainian",
    "th": "Thai", "ur": "Urdu", "ta": "Tamil", "te": "Telugu", "bg": "Bulgarian", "ko": "Korean", "pl": "Polish",
    "he": "Hebrew", "fa": "Persian", "vi": "Vietnamese", "ne": "Nepali", "sw": "Swahili", "kn": "Kannada",
    "mr": "Marathi", "gu": "Gujarati", "pa": "Punjabi", "ml": "Malayalam", "fi": "Finnish", "zh": "Chinese",
    "nl": "Dutch", "sv": "Swedish", "da": "Danish", "no": "Norwegian", "tr": "Turkish", "cs": "Czech",
    "el": "Greek", "ro": "Romanian", "hu": "Hungarian", "id": "Indonesian",
}  # fmt: skip


def _language(answer: str, p: Params) -> Verdict:
    found = language(answer)
    if found is None:
        return Verdict(False, "the language cannot be told from so little text", decided=False)
    return Verdict(found == p["language"], f"reads as {LANGUAGES.get(found, found)}, needed {LANGUAGES[p['language']]}")


def _language_published(answer: str, p: Params) -> Verdict:
    found = published_language(answer)
    if found is None:
        return Verdict(True, "no language found, which the published rule counts as followed", decided=False)
    return Verdict(found == p["language"], f"langdetect says {found}, needed {p['language']}")


KINDS = (
    Kind(
        id="language:response_language",
        params={"language": choice(*LANGUAGES)},
        wordings=(
            "Write your whole answer in {language}.",
            "Answer only in {language}, without a word of any other language.",
            "The entire answer must be in {language}.",
            "Use {language} and no other language for your answer.",
        ),
        draw=lambda rng, topic: {"language": pick(rng, ("es", "fr", "de", "it"))},
        strict=_language,
        published=_language_published,
        show=lambda p: {"language": LANGUAGES[p["language"]]},
    ),
)
