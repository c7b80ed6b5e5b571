"""Judge an answer: strict or published rule, strict or loose evaluation.

Knows: instructions, kinds. Does not know: models, accuracy (`evaluation.instructions` does).

Two modes. `published`: the rule of the public IFEval code to the letter, its faults included. `strict`: the rule as
the instruction is written, without those faults (docs/instructions.md lists each difference). Own kinds have one rule.
An answer without anything to see passes nothing. No exception leaves a checker.
Loose evaluation is the published one: an instruction is followed if the answer, or a variant without its first line,
its last line, both, or its asterisks, follows it. The answer itself is among the variants, so loose is never below
strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optative.core.errors import InputError, InputErrors, unknown
from optative.objectives.instructions.kinds import KINDS
from optative.objectives.instructions.kinds.base import wording
from optative.objectives.instructions.text import Mode, is_blank, unify


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `kind` is a key of `KINDS`, `wording` is what the prompt says."""

    kind: str
    params: dict[str, Any]
    wording: str


@dataclass(frozen=True, slots=True)
class InstructionPrompt:
    """A prompt with its instructions. `task` is the prompt without them."""

    id: str
    prompt: str
    task: str
    instructions: tuple[Instruction, ...]
    split: str


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict on one instruction. `decided` is False where the rule cannot tell; `why` is for people."""

    kind: str
    followed: bool
    decided: bool
    why: str


def check(instruction: Instruction, answer: str, *, mode: Mode = "strict") -> Check:
    """Judge `answer` as it stands."""
    kind = KINDS[instruction.kind]
    if is_blank(answer):
        return Check(kind.id, False, True, "the answer is empty")
    if mode == "strict" or not kind.public:
        verdict = kind.strict(unify(answer), _unified(instruction.params))
    else:
        verdict = kind.published(answer, instruction.params)
    return Check(kind.id, verdict.followed, verdict.decided, verdict.why)


def check_loose(instruction: Instruction, answer: str, *, mode: Mode = "strict") -> Check:
    """Judge `answer` and its seven variants; the first one that follows the instruction counts."""
    first = check(instruction, answer, mode=mode)
    if first.followed:
        return first
    for name, variant in _variants(answer):
        found = check(instruction, variant, mode=mode)
        if found.followed:
            return Check(found.kind, True, found.decided, f"{found.why} ({name})")
    return first


def check_answer(prompt: InstructionPrompt, answer: str, mode: Mode = "strict") -> list[Check]:
    """One verdict per instruction of the prompt, in its order."""
    return [check(instruction, answer, mode=mode) for instruction in prompt.instructions]


def check_answer_loose(prompt: InstructionPrompt, answer: str, mode: Mode = "strict") -> list[Check]:
    return [check_loose(instruction, answer, mode=mode) for instruction in prompt.instructions]


def make_instruction(
    kind: str,
    params: Mapping[str, Any],
    variant: int = 0,
    *,
    file: Any = None,
    line: int | None = None,
    field: str = "params",
) -> Instruction:
    """A checked instruction in the wording number `variant`. All faults of the parameters are in one InputErrors.

    No parameter has a default: what is missing is an error, never drawn.
    """
    if kind not in KINDS:
        raise InputError(unknown("kind of instruction", str(kind), KINDS), file=file, line=line)
    known, clean, errors = KINDS[kind].params, {}, []
    for name in params:
        if name not in known:
            text = unknown("parameter", name, known) if known else f"{kind} has no parameters"
            errors.append(InputError(text, file=file, line=line, field=f"{field}.{name}"))
    for name, param in known.items():
        at: dict[str, Any] = {"file": file, "line": line, "field": f"{field}.{name}", "expected": param.expected}
        if name not in params:
            errors.append(InputError("missing", **at))
            continue
        try:
            clean[name] = param.read(params[name])
        except ValueError:
            errors.append(InputError("wrong value", found=params[name], **at))
    fault = None if errors else KINDS[kind].fault(clean)
    if fault:
        name, expected = fault
        at = {"file": file, "line": line, "field": f"{field}.{name}", "expected": expected}
        errors.append(InputError("does not fit the other parameters", found=clean[name], **at))
    if errors:
        raise InputErrors(errors)
    return Instruction(kind, clean, wording(KINDS[kind], clean, variant))


def _variants(answer: str) -> list[tuple[str, str]]:
    """The variants of the public loose evaluation, without repetitions and the answer itself."""
    rows = answer.split("\n")
    cut = {
        "without its first line": "\n".join(rows[1:]).strip(),
        "without its last line": "\n".join(rows[:-1]).strip(),
        "without its first and last line": "\n".join(rows[1:-1]).strip(),
    }
    named = [("without asterisks", answer.replace("*", "")), *cut.items()]
    named += [(f"{name} and without asterisks", text.replace("*", "")) for name, text in cut.items()]
    seen, unique = {answer}, []
    for name, text in named:
        if text not in seen and not is_blank(text):
            seen.add(text)
            unique.append((name, text))
    return unique


def _unified(params: dict[str, Any]) -> dict[str, Any]:
    return {
        name: unify(value)
        if isinstance(value, str)
        else [unify(v) for v in value]
        if isinstance(value, list)
        else value
        for name, value in params.items()
    }
