"""Where a prompt ends and an answer begins, in strings, messages and transcripts.

Knows: turns and their roles, word borders. Does not know: files, tokens, templates.
Each function takes the row for its line number and raises its faults (`rows.BadStructure`, `rows.BadMeaning`).
An answer is a string, or turns that begin and end with the assistant's; user turns inside it are kept as messages, so
that the token code gives them no loss.
"""

from __future__ import annotations

import json
import re
from typing import Any

from optative.core.errors import nearest
from optative.data.records import Text
from optative.data.rows import Row, blank, plain

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
Turns = list[dict[str, Any]]

_MARKER = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_AS_PYTHON = re.compile(r"\s*\[\s*\{\s*'(role|content)'")  # what pandas and `datasets` write into a CSV
# Scripts without spaces end a phrase with one of these; text may part after them.
_STOPS = "。！？；：，、」』）】》…।"


def text(row: Row, name: str) -> Text | None:
    """The string or the messages of a column; None when the value is null."""
    return as_text(row, row.need(name), name)


def as_text(row: Row, value: Any, at: str) -> Text | None:
    if row.textual and isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _messages_in_a_cell(row, value, at)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return turns(row, value, at)
    raise row.structure("wrong type", at, found=value, expected="a string or a list of messages")


def turns(row: Row, value: Any, at: str) -> Turns:
    """Checked messages: a role from `ROLES`, and a content that is a string or a list of text parts (which are
    joined)."""
    if not isinstance(value, list):
        raise row.structure("wrong type", at, found=value, expected="a list of messages")
    checked = []
    for i, message in enumerate(value):
        here = f"{at}[{i}]"
        if not isinstance(message, dict):
            raise row.structure("not a message", here, found=message, expected="an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            if role is None and "from" in message:
                raise row.structure("has `from` and `value`; expected `role` and `content`", here, found=message)
            close = None if role is None else nearest(str(role).lower(), ROLES)
            near = f"; the nearest is {close!r}" if close else ""
            what = "missing" if role is None else "unknown role"
            expected = f"one of {', '.join(ROLES)}"
            raise row.structure(what + near, f"{here}.role", found=role, expected=expected)
        content = message.get("content")
        if isinstance(content, list):
            message = {**message, "content": _joined(row, content, f"{here}.content")}
        elif content is None and not message.get("tool_calls") and not message.get("function_call"):
            if role == "assistant":
                raise row.meaning("empty", "empty answer", f"{here}.content")
            close = nearest("content", [k for k in message if k != "role"])
            raise row.structure("missing" + (f"; the nearest is {close!r}" if close else ""), f"{here}.content")
        elif content is not None and not isinstance(content, str):
            raise row.structure("wrong type", f"{here}.content", found=content, expected="a string")
        checked.append(message)
    return checked


def settle(row: Row, prompt: Text | None, answers: list[Text | None], names: list[str]) -> tuple[Text, list[Text]]:
    """Prompt and answers in one form, the answers without turns of the prompt, none of them empty.

    Mixed forms become messages: a string prompt is one user turn, a string answer one assistant turn. Answers that
    repeat the prompt's turns (UltraFeedback binarized) lose them.
    """
    if prompt is None:
        raise row.meaning("empty", "no prompt", "prompt")
    filled: list[Text] = []
    for answer, name in zip(answers, names, strict=True):
        if answer is None or says_nothing(answer):
            raise row.meaning("empty", "empty answer", name)
        filled.append(answer)
    as_turns = [isinstance(a, list) for a in filled]
    if any(as_turns) and not all(as_turns):
        odd = as_turns.index(not as_turns[0])
        kinds = ("a list of messages", "a string")
        expected = f"{kinds[not as_turns[0]]}, as in {names[0]}"
        raise row.structure("wrong type", names[odd], found=filled[odd], expected=expected)
    if isinstance(prompt, str) and not any(as_turns):
        return prompt, filled
    conversations = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in filled]
    if isinstance(prompt, str):
        prompt, conversations = _prompt_of(row, prompt, conversations, names)
    elif not prompt:
        raise row.meaning("empty", "the prompt has no turn", "prompt")
    else:
        own = len(prompt)
        for i, conversation in enumerate(conversations):
            if conversation[:own] == prompt:
                conversations[i] = conversation[own:]
    for conversation, name in zip(conversations, names, strict=True):
        check_answer(row, conversation, name)
    return prompt, list(conversations)


def says_nothing(answer: Text) -> bool:
    """An answer without a visible character and without a tool call."""
    if isinstance(answer, str):
        return blank(answer)
    return all(blank(turn.get("content") or "") and not _acts(turn) for turn in answer if turn["role"] == "assistant")


def check_answer(row: Row, answer: Turns, name: str) -> None:
    """An answer begins and ends with the assistant, and each of its assistant turns says something."""
    if not answer:
        raise row.meaning("empty", "empty answer: nothing after the prompt's turns", name)
    if answer[0]["role"] != "assistant":
        found = answer[0]["role"]
        raise row.meaning(
            "border", "an answer begins with a turn of the prompt", name, found=found, expected="assistant"
        )
    for turn in answer:
        if turn["role"] == "assistant" and blank(turn.get("content") or "") and not _acts(turn):
            raise row.meaning("empty", "empty answer", name)
    if answer[-1]["role"] != "assistant":
        found = answer[-1]["role"]
        raise row.meaning(
            "no_answer", "ends without an answer", name, found=found, expected="a last turn of the assistant"
        )


def split_conversation(row: Row, chosen: Turns, rejected: Turns) -> tuple[Turns, list[Turns]]:
    """The shared turns, and the two answers after them."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    rests = (chosen[shared:], rejected[shared:])
    for name, rest in zip(("chosen", "rejected"), rests, strict=True):
        if not rest and any(rests):
            raise row.meaning("empty", "empty answer: nothing after the shared turns", name)
    if not any(rests):
        raise row.meaning("identical", "chosen and rejected are identical", "rejected")
    if rests[0][0]["role"] != "assistant" or rests[1][0]["role"] != "assistant":
        part = _first_difference(rests[0][0], rests[1][0])
        at = f"[{shared}].{part}"
        found, other = rests[1][0].get(part), rests[0][0].get(part)
        message = f"differs from chosen{at} before the answer begins: the prompts are not the same"
        raise row.meaning("border", message, f"rejected{at}", found=found, expected=repr(other))
    if not shared:
        raise row.meaning("border", "the two conversations share no turn, so there is no prompt", "chosen")
    for name, rest in zip(("chosen", "rejected"), rests, strict=True):
        check_answer(row, rest, name)
    return chosen[:shared], list(rests)


def split_strings(row: Row, chosen: str, rejected: str) -> tuple[str, list[str]]:
    """The shared beginning of two strings, cut back to the end of a word, and the two answers after it.

    The blank before the answers goes with them, as tokenizers want it. Nothing is trimmed: prompt + answer is the
    input.
    """
    if chosen == rejected:
        raise row.meaning("identical", "chosen and rejected are identical", "rejected")
    end = 0
    for a, b in zip(chosen, rejected):
        if a != b:
            break
        end += 1
    whole_words = all(rest == "" or rest[0].isspace() for rest in (chosen[end:], rejected[end:]))
    if not whole_words:
        while end and not _border(chosen[:end]):
            end -= 1
    for name, rest in (("chosen", chosen[end:]), ("rejected", rejected[end:])):
        if blank(rest):
            raise row.meaning("empty", "empty answer: nothing after the shared beginning", name)
    if chosen[:end].endswith(" ") and not chosen[: end - 1].endswith((" ", "\n", "\t")):
        end -= 1
    return chosen[:end], [chosen[end:], rejected[end:]]


def transcript(row: Row, value: Any, name: str) -> Turns:
    """The turns of an HH transcript. A role marker counts only after a blank line (or at the very start)."""
    if not isinstance(value, str):
        raise row.structure("wrong type", name, found=value, expected="a transcript")
    parts = _MARKER.split(value)
    if len(parts) == 1:
        raise row.meaning("border", "no `Human:` or `Assistant:` after a blank line", name, found=value)
    if not blank(parts[0]):
        raise row.meaning("border", "text before the first turn", name, found=parts[0])
    roles = ["user" if role == "Human" else "assistant" for role in parts[1::2]]
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, parts[2::2], strict=True)]


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\s*Human:", value) is not None


def helpsteer_prompt(prompt: Text | None) -> Text | None:
    """HelpSteer2 writes earlier turns inside the prompt, between `<extra_id_1>` marks; they become messages."""
    if not isinstance(prompt, str) or "<extra_id_1>" not in prompt:
        return prompt
    first, *rest = _HELPSTEER_TURN.split(prompt)
    made = [{"role": "user", "content": first}] if not blank(first) else []
    made += [{"role": role.lower(), "content": content} for role, content in zip(rest[::2], rest[1::2], strict=True)]
    return made if rest else prompt


def _prompt_of(row: Row, prompt: str, answers: list[Turns], names: list[str]) -> tuple[Turns, list[Turns]]:
    leading = [next((i for i, turn in enumerate(a) if turn["role"] == "assistant"), len(a)) for a in answers]
    if not any(leading):
        if blank(prompt):
            raise row.meaning("empty", "an empty prompt before messages", "prompt")
        return [{"role": "user", "content": prompt}], answers
    if len(answers) == 2:
        shared, rests = split_conversation(row, *answers)
    else:
        shared, rests = answers[0][: leading[0]], [a[n:] for a, n in zip(answers, leading, strict=True)]
        for answer, count, name in zip(answers, leading, names, strict=True):
            if answer[:count] != shared:
                raise row.meaning("border", f"its prompt differs from that of {names[0]}", name)
    said = [turn.get("content") or "" for turn in shared if turn["role"] == "user"]
    if prompt.strip() not in [s.strip() for s in said]:
        raise row.meaning(
            "border", "`prompt` is no user turn of the messages", f"{names[0]}[0]", found=prompt, expected=repr(said)
        )
    return shared, rests


def _border(before: str) -> bool:
    return before[-1].isspace() or before[-1] in _STOPS


def _acts(turn: dict[str, Any]) -> bool:
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _first_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    return next((k for k in ("role", "content", *a, *b) if a.get(k) != b.get(k)), "content")


def _joined(row: Row, parts: list[Any], at: str) -> str:
    said = []
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise row.structure("not text; images and sound are not read", f"{at}[{i}]", found=part)
        said.append(part["text"])
    return "".join(said)


def _messages_in_a_cell(row: Row, value: str, at: str) -> Any:
    if _AS_PYTHON.match(value):
        raise row.structure("messages written as Python, not JSON", at, found=value, expected="JSON")
    try:
        found = plain(json.loads(value))
    except ValueError:
        return value
    return (
        found
        if isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found)
        else value
    )
