"""Answers that follow given instructions, made by hand: shows that a combination can be followed at all."""

from __future__ import annotations

import json
from typing import Any

from optative.objectives.instructions.check import InstructionPrompt
from optative.objectives.instructions.kinds.format import OPTIONS

# No capitals, digits, commas or rare letters; at most ten words a sentence.
ENGLISH = "we often come here and see how much there is"
IN_LANGUAGE = {
    "es": "este texto bastante largo habla de las cosas de la casa",
    "fr": "cette phrase assez longue parle des choses de la maison",
    "de": "dieser ziemlich lange satz handelt von einem schönen alten haus",
    "it": "questa frase piuttosto lunga parla delle cose della casa",
}
SHORT = {"es": "¿qué piensas de la casa?", "fr": "que penses-tu?", "de": "was denkst du?", "it": "che cosa ne pensi?"}


def following(prompt: InstructionPrompt) -> str:
    """An answer that follows every instruction of the prompt."""
    has: dict[str, dict[str, Any]] = {i.kind: i.params for i in prompt.instructions}

    def params(kind: str) -> dict[str, Any]:
        return has.get(kind, {})

    if "detectable_format:constrained_response" in has:
        return OPTIONS[0]
    language = params("language:response_language").get("language")
    body = IN_LANGUAGE.get(language, ENGLISH)
    words = params("length_constraints:number_words")
    if words.get("relation") == "less than":
        body = "we like it"
    if "length_constraints:sentence_length" in has and language is None:
        body = "we like it here a lot"
    extra = _inline(params) + (["<<our title>>"] if "detectable_format:title" in has else [])
    first = " ".join([body, *extra]) + "!" * params("punctuation:exclamation_marks").get("num_marks", 0)
    first += "" if first.endswith("!") else "."
    plain = body + "."
    if "detectable_format:json_format" in has:
        return json.dumps({"a": first})
    if words.get("relation") == "at least":
        first = " ".join([first, *[plain] * (1 + words["num_words"] // len(plain.split()))])
    sentences = params("length_constraints:number_sentences")
    if sentences.get("relation") == "at least":
        first = " ".join([first, *[_sentence(plain)] * sentences["num_sentences"]])
    opening = params("startend:start_phrase").get("start_phrase")
    if "combination:repeat_prompt" in has:
        opening = params("combination:repeat_prompt")["prompt_to_repeat"]
    ending = params("startend:end_checker").get("end_phrase")
    if "startend:question_end" in has:
        ending = SHORT.get(language, "what is it?")
    text = _shape(params, first, plain, opening)
    if "combination:two_responses" in has:
        text += f"\n******\n{plain} and so on"
    if "detectable_format:capital_heading" in has:
        text = "OUR HEADING\n" + text
    if ending:
        text += " " + ending
    if "detectable_content:postscript" in has:
        text += f"\n\n{params('detectable_content:postscript')['postscript_marker']} one more thing"
    if "startend:quotation" in has:
        on_lines = any(name in kind for kind in has for name in ("list", "multiple_sections", "label"))
        text = f'"\n{text}\n"' if on_lines else f'"{text}"'
    if "change_case:english_capital" in has:
        text = text.upper()
    return text.lower() if "change_case:english_lowercase" in has else text


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _inline(params: Any) -> list[str]:
    found = list(params("keywords:existence").get("keywords", []))
    frequency = params("keywords:frequency")
    found += [frequency["keyword"]] * frequency["frequency"] if frequency else []
    letter = params("keywords:letter_frequency")
    if letter and letter["let_relation"] == "at least":
        found.append("so " + letter["letter"] * letter["let_frequency"])
    found += ["*so*"] * params("detectable_format:number_highlighted_sections").get("num_highlights", 0)
    found += ["[name]"] * params("detectable_content:number_placeholders").get("num_placeholders", 0)
    found += ["WOW"] * params("change_case:capital_word_frequency").get("capital_frequency", 0)
    return found


def _shape(params: Any, first: str, plain: str, opening: str | None) -> str:
    def parts(n: int) -> list[str]:
        return [first, *[f"{plain}"] * (n - 1)]

    start = f"{opening} " if opening else ""
    if p := params("length_constraints:number_paragraphs"):
        return start + "\n***\n".join(parts(p["num_paragraphs"]))
    if p := params("length_constraints:nth_paragraph_first_word"):
        found = parts(p["num_paragraphs"])
        found[p["nth_paragraph"] - 1] = f"{p['first_word']} {found[p['nth_paragraph'] - 1]}"
        return "\n\n".join(found)
    if p := params("length_constraints:number_lines"):
        return start + "\n".join(parts(p["num_lines"]))
    before = f"{opening}\n" if opening else ""
    if p := params("detectable_format:number_bullet_lists"):
        return before + "\n".join(f"* {part}" for part in parts(p["num_bullets"]))
    if p := params("detectable_format:numbered_list"):
        return before + "\n".join(f"{i}. {part}" for i, part in enumerate(parts(p["num_items"]), 1))
    if p := params("detectable_format:multiple_sections"):
        marked = enumerate(parts(p["num_sections"]), 1)
        return before + "\n".join(f"{p['section_spliter']} {i}\n{part}" for i, part in marked)
    if p := params("detectable_content:label_lines"):
        return before + "\n".join(f"{label}: {part}" for label, part in zip(p["labels"], parts(len(p["labels"]))))
    return start + first
