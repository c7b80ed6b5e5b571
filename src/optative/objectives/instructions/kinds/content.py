"""Things that must be found in the answer: placeholders, a postscript, labelled lines.

Known faults of the published rules: links, empty brackets and check boxes count as placeholders; a postscript marker
may stand anywhere, even inside a word, and an unusual marker is used as a regular expression.
"""

from __future__ import annotations

import re

from optative.objectives.instructions.kinds.base import (
    Kind,
    Params,
    Verdict,
    at_least,
    between,
    count,
    phrase,
    pick,
    texts,
)
from optative.objectives.instructions.text import has_letter, has_word, paragraphs

_PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\](?!\()")
_CHECK_BOX = re.compile(r"(?m)^[^\S\n]*[-*+][^\S\n]+\[[xX]\]")
_ANY_POSTSCRIPT = re.compile(r"[*_>\s]*(?:p\. ?)+s\b", re.IGNORECASE)


def _placeholders(answer: str, p: Params) -> Verdict:
    found = sum(has_letter(text) for text in _PLACEHOLDER.findall(_CHECK_BOX.sub("", answer)))
    return at_least(found, p["num_placeholders"], "placeholder")


def _placeholders_published(answer: str, p: Params) -> Verdict:
    return at_least(len(re.findall(r"\[.*?\]", answer)), p["num_placeholders"], "placeholder")


def _postscript(answer: str, p: Params) -> Verdict:
    marker = p["postscript_marker"].strip()
    literal = r"[^\S\n]?".join(re.escape(part) for part in re.split(r"(?<=\.)[^\S\n]*(?=\w)", marker))
    start = re.compile(rf"(?mi)^[^\S\n]*(?:[*_>#]+[^\S\n]*)?{literal}(?![^\W_])\.?")
    parts = paragraphs(answer)
    while len(parts) > 1 and _ANY_POSTSCRIPT.match(parts[-1]) and not start.match(parts[-1]):
        parts.pop()  # a further postscript with another marker may follow the one that was asked for
    match = start.search(parts[-1]) if parts else None
    if match is None:
        return Verdict(False, f"the answer does not close with a line that starts with {marker}")
    if not has_word(parts[-1][match.end() :]):
        return Verdict(False, f"nothing follows {marker}")
    if not has_word("".join(parts[:-1]) + parts[-1][: match.start()]):
        return Verdict(False, f"nothing stands before {marker}")
    return Verdict(True, f"closes with {marker}")


def _postscript_published(answer: str, p: Params) -> Verdict:
    marker = p["postscript_marker"].strip()
    special = {"P.P.S": r"p\.\s?p\.\s?s.*$", "P.S.": r"p\.\s?s\..*$"}
    pattern = special.get(marker, marker.lower() + r".*$")
    try:
        found = re.search(pattern, answer.lower(), re.MULTILINE) is not None
    except re.error:
        return Verdict(False, f"{marker!r} is no regular expression, so the published rule has no verdict", False)
    return Verdict(found, f"found {marker}" if found else f"{marker} not found")


def _labels(answer: str, p: Params) -> Verdict:
    missing = [label for label in p["labels"] if not _labelled(label).search(answer)]
    if missing:
        return Verdict(False, "no line with text starts with " + ", ".join(f"{label}:" for label in missing))
    return Verdict(True, "found the lines " + ", ".join(f"{label}:" for label in p["labels"]))


def _labelled(label: str) -> re.Pattern[str]:
    name = re.escape(label.strip().removesuffix(":"))
    return re.compile(rf"(?mi)^[^\S\n]*(?:[-*+#>]+[^\S\n]+)?[*_]*{name}[*_]*:[^\n]*[^\W_]")


KINDS = (
    Kind(
        id="detectable_content:number_placeholders",
        params={"num_placeholders": count()},
        wordings=(
            "Leave at least {num_placeholders:placeholder} in square brackets, for example [name].",
            "Put in at least {num_placeholders:placeholder} in square brackets such as [date].",
            "Use square brackets for at least {num_placeholders:detail} to be filled in later, like [address].",
            "At least {num_placeholders:placeholder} of the form [place] must be in the text.",
        ),
        draw=lambda rng, topic: {"num_placeholders": between(rng, 1, 2)},
        strict=_placeholders,
        published=_placeholders_published,
    ),
    Kind(
        id="detectable_content:postscript",
        params={"postscript_marker": phrase()},
        wordings=(
            'Add a postscript at the end that starts with "{postscript_marker}".',
            'Close with a postscript; begin it with "{postscript_marker}".',
            'After the main text, write one more line that opens with "{postscript_marker}".',
            'End your answer with a short postscript introduced by "{postscript_marker}".',
        ),
        draw=lambda rng, topic: {"postscript_marker": pick(rng, ("P.S.", "P.P.S"))},
        strict=_postscript,
        published=_postscript_published,
    ),
    Kind(
        id="detectable_content:label_lines",
        params={"labels": texts()},
        wordings=(
            "Give each of these labels a line of its own, followed by a colon and some text: {labels}.",
            "Structure the answer with lines that start with the labels {labels}, each with a colon after it.",
            "Start one line with each of these labels and a colon: {labels}.",
            "Use the labels {labels}, each at the start of a line, followed by a colon and your text.",
        ),
        draw=lambda rng, topic: {
            "labels": list(
                pick(
                    rng,
                    (
                        ("Idea", "Reason"),
                        ("Question", "Answer"),
                        ("Summary", "Tip"),
                        ("Good", "Bad"),
                        ("Before", "After"),
                    ),
                )
            )
        },
        strict=_labels,
        published=_labels,
        public=False,
    ),
)
