"""How the answer starts and ends.

Known faults of the published rules: an end phrase may be the tail of another word and its case is ignored; curly
quotation marks are none, two marks around nothing are enough, and `"a" she said "b"` is wrapped.
"""

from __future__ import annotations

from optative.objectives.instructions.kinds.base import Kind, Params, Verdict, phrase, pick
from optative.objectives.instructions.text import has_word

_AROUND = "\"'*_` \n\t"


def _end(answer: str, p: Params) -> Verdict:
    wanted = " ".join(p["end_phrase"].split()).rstrip(_AROUND)
    said = " ".join(answer.split()).rstrip(_AROUND)
    whole = said.endswith(wanted) and not (wanted[:1].isalnum() and said[: -len(wanted)][-1:].isalnum())
    return Verdict(whole, f"ends with {said[-len(wanted) - 10 :]!r}, needed {wanted!r}")


def _end_published(answer: str, p: Params) -> Verdict:
    wanted = p["end_phrase"].strip().lower()
    said = answer.strip().strip('"').lower()
    return Verdict(said.endswith(wanted), f"ends with {said[-len(wanted) - 10 :]!r}, needed {wanted!r}")


def _start(answer: str, p: Params) -> Verdict:
    wanted = " ".join(p["start_phrase"].split()).lstrip(_AROUND)
    said = " ".join(answer.split()).lstrip(_AROUND)
    whole = said.startswith(wanted) and not (wanted[-1:].isalnum() and said[len(wanted) :][:1].isalnum())
    return Verdict(whole, f"starts with {said[: len(wanted) + 10]!r}, needed {wanted!r}")


def _quotation(answer: str, p: Params) -> Verdict:
    said = answer.strip().strip("*_ \n")
    if len(said) < 2 or said[0] != '"' or said[-1] != '"':
        return Verdict(False, "not wrapped in double quotation marks")
    inside = said[1:-1]
    if not has_word(inside):
        return Verdict(False, "nothing between the quotation marks")
    first = inside.find('"')
    if first > 0 and not inside[first - 1].isspace() and inside[first - 1] not in "([{":
        return Verdict(False, "the first quotation ends before the answer does")
    return Verdict(True, "wrapped in double quotation marks")


def _quotation_published(answer: str, p: Params) -> Verdict:
    said = answer.strip()
    wrapped = len(said) > 1 and said[0] == '"' and said[-1] == '"'
    return Verdict(wrapped, "wrapped in double quotation marks" if wrapped else "not wrapped in them")


def _question(answer: str, p: Params) -> Verdict:
    asks = answer.rstrip(_AROUND + ")").endswith("?") and has_word(answer)
    return Verdict(asks, "ends with a question" if asks else "does not end with a question mark")


KINDS = (
    Kind(
        id="startend:end_checker",
        params={"end_phrase": phrase()},
        wordings=(
            'Finish with exactly these words: "{end_phrase}" Nothing may follow them.',
            'The very last words of your answer must be "{end_phrase}"',
            'End your answer with the sentence "{end_phrase}" and write nothing after it.',
            'Close with this exact phrase: "{end_phrase}"',
        ),
        draw=lambda rng, topic: {
            "end_phrase": pick(
                rng,
                (
                    "That is all for today.",
                    "I hope this helps.",
                    "Now it is your turn.",
                    "What do you think?",
                    "Thank you for reading.",
                    "Have a good day!",
                ),
            )
        },
        strict=_end,
        published=_end_published,
    ),
    Kind(
        id="startend:start_phrase",
        params={"start_phrase": phrase()},
        wordings=(
            'Start with exactly these words: "{start_phrase}".',
            'The first words of your answer must be "{start_phrase}".',
            'Begin your answer with the phrase "{start_phrase}".',
            'Open with "{start_phrase}" and go on from there.',
        ),
        draw=lambda rng, topic: {
            "start_phrase": pick(
                rng,
                (
                    "Let me explain",
                    "In my opinion",
                    "To be honest",
                    "Here is a thought",
                    "As far as I know",
                    "It is often said that",
                ),
            )
        },
        strict=_start,
        published=_start,
        public=False,
    ),
    Kind(
        id="startend:quotation",
        params={},
        wordings=(
            "Put your whole answer in double quotation marks.",
            'The entire answer has to stand between double quotation marks, "like this".',
            "Wrap all of your answer in double quotes.",
            "Begin and end your answer with a double quotation mark.",
        ),
        draw=lambda rng, topic: {},
        strict=_quotation,
        published=_quotation_published,
    ),
    Kind(
        id="startend:question_end",
        params={},
        wordings=(
            "End your answer with a question to the reader.",
            "The last sentence of your answer must be a question.",
            "Finish by asking a question.",
            "Your answer should close with a question mark.",
        ),
        draw=lambda rng, topic: {},
        strict=_question,
        published=_question,
        public=False,
    ),
)
