"""The shape of the answer: lists, sections, highlights, title, JSON, a choice of options, a heading in capitals.

Known faults of the published rules: a rule of dashes and a line that starts with emphasis count as bullets; a section
mentioned in a sentence counts as one; `2 * 3 * 4` is a highlight; a bare number is JSON; an answer that holds all the
options passes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from optative.objectives.instructions.kinds.base import (
    Kind,
    Params,
    Verdict,
    at_least,
    between,
    count,
    exactly,
    phrase,
    pick,
)
from optative.objectives.instructions.text import has_letter, has_word, lines

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_QUOTED = ", ".join(f'"{option}"' for option in OPTIONS)

_BULLET = re.compile(r"(?m)^[^\S\n]*[-*+][^\S\n]+(?=[^\n]*[^\W_])")
_NUMBERED = re.compile(r"(?m)^[^\S\n]*(?:\*\*)?(\d{1,3})[.)](?:\*\*)?[^\S\n]+(?=[^\n]*[^\W_])")
_HIGHLIGHT = re.compile(r"(?<![\w*\\])(\*{1,3})(?=[^\s*])([^*\n]+)(?<!\s)\1(?!\*)")
_TITLE = re.compile(r"<<([^<>\n]+)>>")
_FENCE = re.compile(r"```[^\S\n]*(?:json[^\S\n]*)?\n?(?P<inside>.*?)\n?[^\S\n]*```", re.IGNORECASE | re.DOTALL)


def _bullets(answer: str, p: Params) -> Verdict:
    return exactly(len(_BULLET.findall(answer)), p["num_bullets"], "bullet")


def _bullets_published(answer: str, p: Params) -> Verdict:
    stars = re.findall(r"^\s*\*[^\*].*$", answer, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return exactly(len(stars) + len(dashes), p["num_bullets"], "bullet")


def _numbered(answer: str, p: Params) -> Verdict:
    numbers = [int(number) for number in _NUMBERED.findall(answer)]
    if len(numbers) != p["num_items"]:
        return exactly(len(numbers), p["num_items"], "numbered item")
    ordered = numbers == list(range(1, len(numbers) + 1))
    return Verdict(ordered, f"numbered {', '.join(map(str, numbers))}")


def _highlights(answer: str, p: Params) -> Verdict:
    found = sum(has_word(text) for _, text in _HIGHLIGHT.findall(answer))
    return at_least(found, p["num_highlights"], "highlight")


def _highlights_published(answer: str, p: Params) -> Verdict:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", answer) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n\*]*\*\*", answer) if part[2:-2].strip()]
    return at_least(len(single) + len(double), p["num_highlights"], "highlight")


def _sections(answer: str, p: Params) -> Verdict:
    marker = re.escape(p["section_spliter"].strip())
    heading = re.compile(rf"(?m)^[^\S\n]*(?:#+[^\S\n]+)?[*_]*{marker}[^\S\n]*(\d+)(?![^\W_])")
    found = list(heading.finditer(answer))
    numbers = [int(match[1]) for match in found]
    if numbers != list(range(1, p["num_sections"] + 1)):
        shown = ", ".join(map(str, numbers)) or "none"
        return Verdict(False, f"sections that start a line: {shown}; needed 1 to {p['num_sections']}")
    ends = [match.start() for match in found[1:]] + [len(answer)]
    empty = [str(m[1]) for m, end in zip(found, ends, strict=True) if not has_word(answer[m.end() : end])]
    return Verdict(not empty, f"section {empty[0]} is empty" if empty else f"found sections 1 to {p['num_sections']}")


def _sections_published(answer: str, p: Params) -> Verdict:
    try:
        parts = re.split(r"\s?" + p["section_spliter"].strip() + r"\s?\d+\s?", answer)
    except re.error:
        marker = p["section_spliter"]
        return Verdict(False, f"{marker!r} is no regular expression, so the published rule has no verdict", False)
    return at_least(len(parts) - 1, p["num_sections"], "section")


def _title(answer: str, p: Params) -> Verdict:
    titles = [title for title in _TITLE.findall(answer) if has_word(title)]
    return Verdict(bool(titles), f"title <<{titles[0]}>>" if titles else "no title in double angular brackets")


def _title_published(answer: str, p: Params) -> Verdict:
    titles = [t for t in re.findall(r"<<[^\n]+>>", answer) if t.lstrip("<").rstrip(">").strip()]
    return Verdict(bool(titles), f"title {titles[0]}" if titles else "no title in double angular brackets")


def _json(answer: str, p: Params) -> Verdict:
    text = answer.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced["inside"] if fenced else text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return Verdict(False, "not JSON")
    if not isinstance(value, (dict, list)):
        return Verdict(False, "a bare value, needed a JSON object or array")
    return Verdict(True, "a JSON object" if isinstance(value, dict) else "a JSON array")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _json_published(answer: str, p: Params) -> Verdict:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return Verdict(False, "not JSON")
    return Verdict(True, "JSON")


def _options(answer: str, p: Params) -> Verdict:
    said = answer.strip().strip("\"'*_` \n")
    return Verdict(said in OPTIONS, "one of the options" if said in OPTIONS else "not just one of the options")


def _options_published(answer: str, p: Params) -> Verdict:
    found = [option for option in OPTIONS if option in answer]
    return Verdict(bool(found), f"contains {found[0]!r}" if found else "contains none of the options")


def _capital_heading(answer: str, p: Params) -> Verdict:
    found = lines(answer)
    heading = found[0].strip("#*_ :")
    if not has_letter(heading) or heading != heading.upper():
        return Verdict(False, "the first line is not in capitals")
    if not any(has_word(line) for line in found[1:]):
        return Verdict(False, "nothing follows the heading")
    if len(found) > 1 and "".join(found[1:]).isupper():
        return Verdict(False, "the text below the heading is in capitals too")
    return Verdict(True, "the first line is a heading in capitals")


KINDS = (
    Kind(
        id="detectable_format:number_bullet_lists",
        params={"num_bullets": count()},
        wordings=(
            "Give exactly {num_bullets:bullet point}, each on a line that starts with a star and a blank, like this:\n"
            "* a point",
            "Your answer must have exactly {num_bullets:bullet} in markdown (lines that start with * or -).",
            "Write it as a markdown list of exactly {num_bullets:bullet point}.",
            "Use {num_bullets:markdown bullet point}, no more and no fewer.",
        ),
        draw=lambda rng, topic: {"num_bullets": between(rng, 2, 5)},
        strict=_bullets,
        published=_bullets_published,
    ),
    Kind(
        id="detectable_format:numbered_list",
        params={"num_items": count()},
        wordings=(
            "Give exactly {num_items:item} as a list numbered 1., 2. and so on.",
            "Write a numbered list with exactly {num_items:item}.",
            "Number your points from 1 to {num_items}, each on its own line.",
            "Your answer must hold a numbered list that runs from 1. to {num_items}.",
        ),
        draw=lambda rng, topic: {"num_items": between(rng, 3, 5)},
        strict=_numbered,
        published=_numbered,
        public=False,
    ),
    Kind(
        id="detectable_format:constrained_response",
        params={},
        wordings=(
            "Choose one of these answers and write nothing else: " + _QUOTED,
            'Reply with exactly one of "My answer is yes.", "My answer is no." and "My answer is maybe."',
            "Only these replies are allowed: " + _QUOTED,
            "Pick your reply from this list and add no explanation: " + _QUOTED,
        ),
        draw=lambda rng, topic: {},
        strict=_options,
        published=_options_published,
    ),
    Kind(
        id="detectable_format:number_highlighted_sections",
        params={"num_highlights": count()},
        wordings=(
            "Highlight at least {num_highlights:part} of your answer with stars, like *this*.",
            "Mark at least {num_highlights:phrase} with markdown, i.e. *marked phrase*.",
            "At least {num_highlights:passage} must be emphasised by asterisks, as in *an important point*.",
            "Put at least {num_highlights:key phrase} between asterisks, for example *key phrase*.",
        ),
        draw=lambda rng, topic: {"num_highlights": between(rng, 1, 2)},
        strict=_highlights,
        published=_highlights_published,
    ),
    Kind(
        id="detectable_format:multiple_sections",
        params={"section_spliter": phrase(), "num_sections": count()},
        wordings=(
            'Divide the answer into {num_sections:section}. Start each with "{section_spliter} X", where X is its '
            "number.",
            "Your answer has {num_sections:section}, headed {section_spliter} 1, {section_spliter} 2 and so on.",
            "Write {num_sections:section} and begin each on a new line with {section_spliter} and its number, such as\n"
            "{section_spliter} 1",
            'There must be {num_sections:section}; every one opens with the word "{section_spliter}" and a number.',
        ),
        draw=lambda rng, topic: {
            "section_spliter": pick(rng, ("Section", "SECTION", "Part")),
            "num_sections": between(rng, 2, 3),
        },
        strict=_sections,
        published=_sections_published,
    ),
    Kind(
        id="detectable_format:json_format",
        params={},
        wordings=(
            "Give the whole answer as JSON.",
            "Your entire answer must be valid JSON. Markdown ticks (```) around it are fine.",
            "Write nothing but one JSON object.",
            "Format everything you write as a JSON object.",
        ),
        draw=lambda rng, topic: {},
        strict=_json,
        published=_json_published,
    ),
    Kind(
        id="detectable_format:title",
        params={},
        wordings=(
            "Give it a title in double angular brackets, such as <<a day in spring>>.",
            "Your answer needs a title, written like <<this title>>.",
            "Put a title between << and >> into your answer.",
            "Include a title and wrap it in double angular brackets, i.e. <<title>>.",
        ),
        draw=lambda rng, topic: {},
        strict=_title,
        published=_title_published,
    ),
    Kind(
        id="detectable_format:capital_heading",
        params={},
        wordings=(
            "Start with a heading in CAPITAL LETTERS on a line of its own; the rest is written as usual.",
            "The first line is a heading in all capitals. Normal text follows below it.",
            "Put a heading in capital letters on the first line, then go on in normal writing.",
            "Open with one line in ALL CAPS as a heading, and write the text under it normally.",
        ),
        draw=lambda rng, topic: {},
        strict=_capital_heading,
        published=_capital_heading,
        public=False,
    ),
)
