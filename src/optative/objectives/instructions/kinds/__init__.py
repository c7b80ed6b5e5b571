"""All kinds of instruction, one family a file, and which of them are trained on.

`TRAINED_KINDS` and `UNSEEN_KINDS` were fixed before any training; the unseen ones are never in a training prompt.
"""

from __future__ import annotations

from optative.objectives.instructions.kinds import (
    case,
    combination,
    content,
    format,
    keywords,
    language,
    length,
    punctuation,
    startend,
)
from optative.objectives.instructions.kinds.base import Kind

KINDS: dict[str, Kind] = {
    kind.id: kind
    for family in (keywords, language, length, content, format, combination, startend, case, punctuation)
    for kind in family.KINDS
}

UNSEEN_KINDS: tuple[str, ...] = (
    "language:response_language",
    "length_constraints:number_lines",
    "detectable_content:postscript",
    "detectable_content:label_lines",
    "combination:two_responses",
    "startend:question_end",
    "change_case:capital_word_frequency",
    "punctuation:no_comma",
    "punctuation:no_digits",
)

TRAINED_KINDS: tuple[str, ...] = (
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "length_constraints:number_words",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:nth_paragraph_first_word",
    "length_constraints:sentence_length",
    "detectable_content:number_placeholders",
    "detectable_format:number_bullet_lists",
    "detectable_format:numbered_list",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "detectable_format:capital_heading",
    "combination:repeat_prompt",
    "startend:end_checker",
    "startend:start_phrase",
    "startend:quotation",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:exclamation_marks",
)
