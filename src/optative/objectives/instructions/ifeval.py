"""The public IFEval file: one JSON object a line with `key, prompt, instruction_id_list, kwargs`.

Knows: that format. Does not know: how answers are judged.
Exports padded by a table (every kwargs object has every name, unused ones null) are read: nulls are dropped. All
faults of a file are found in one pass and raised together; nothing is drawn or guessed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optative.core.errors import InputError, InputErrors, unknown
from optative.core.files import write_text
from optative.objectives.instructions.check import Instruction, InstructionPrompt, make_instruction
from optative.objectives.instructions.kinds import KINDS

_COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")
_ALLOWED_MORE = ("task", "split")  # what `write_ifeval` adds


def read_ifeval(path: str | Path) -> list[InstructionPrompt]:
    """Prompts of a public file, in its order. The split is `ifeval` unless the row names one.

    Raises InputErrors with `file:line` and `kwargs[i].name` for every fault of the file.
    """
    prompts: list[InstructionPrompt] = []
    errors: list[InputError] = []
    lines_of: dict[str, int] = {}
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            prompt = _prompt(line, path, number)
        except InputErrors as found:
            errors += found.errors
        except InputError as found:
            errors.append(found)
        else:
            if prompt.id in lines_of:
                text = f"the same key as on line {lines_of[prompt.id]}"
                errors.append(InputError(text, file=path, line=number, field="key", found=prompt.id))
            lines_of.setdefault(prompt.id, number)
            prompts.append(prompt)
    if errors:
        raise InputErrors(errors)
    if not prompts:
        raise InputError("no prompts", file=path)
    return prompts


def write_ifeval(path: str | Path, prompts: Sequence[InstructionPrompt]) -> None:
    """Write prompts so that the public code and `read_ifeval` read them. Own kinds keep their own ids."""
    rows = [
        {
            "key": prompt.id,
            "prompt": prompt.prompt,
            "instruction_id_list": [i.kind for i in prompt.instructions],
            "kwargs": [i.params for i in prompt.instructions],
            "task": prompt.task,
            "split": prompt.split,
        }
        for prompt in prompts
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _prompt(line: bytes, file: Any, number: int) -> InstructionPrompt:
    at: dict[str, Any] = {"file": file, "line": number}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {getattr(error, 'msg', error)}", **at) from None
    if not isinstance(row, dict):
        raise InputError("wrong type", found=row, expected="a JSON object", **at)
    errors = [InputError("missing", field=name, **at) for name in _COLUMNS if row.get(name) is None]
    if errors:  # a column that is missing may be there under a mistyped name
        mistyped = [name for name in row if name not in (*_COLUMNS, *_ALLOWED_MORE)]
        raise InputErrors([*errors, *(InputError(unknown("column", name, _COLUMNS), **at) for name in mistyped)])
    key, prompt, ids, kwargs = (row[name] for name in _COLUMNS)
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        errors.append(InputError("wrong type", field="key", found=key, expected="a number or text", **at))
    if not isinstance(prompt, str) or not prompt.strip():
        errors.append(InputError("wrong value", field="prompt", found=prompt, expected="a text", **at))
    if not isinstance(ids, list) or not ids:
        errors.append(InputError("wrong value", field="instruction_id_list", found=ids, expected="a list of ids", **at))
    if not isinstance(kwargs, list):
        errors.append(InputError("wrong type", field="kwargs", found=kwargs, expected="a list of objects", **at))
    if errors:
        raise InputErrors(errors)
    if len(ids) != len(kwargs):
        expected = f"{len(ids)}, as in instruction_id_list"
        raise InputError("wrong number of objects", field="kwargs", found=len(kwargs), expected=expected, **at)
    instructions: list[Instruction] = []
    for i, (kind, given) in enumerate(zip(ids, kwargs, strict=True)):
        if not isinstance(kind, str) or kind not in KINDS:
            text = unknown("instruction id", str(kind), KINDS)
            errors.append(InputError(text, field=f"instruction_id_list[{i}]", **at))
        elif not isinstance(given, dict):
            errors.append(InputError("wrong type", field=f"kwargs[{i}]", found=given, expected="an object", **at))
        else:
            named = {name: value for name, value in given.items() if value is not None}
            try:
                instructions.append(make_instruction(kind, named, field=f"kwargs[{i}]", **at))
            except InputErrors as found:
                errors += found.errors
    if errors:
        raise InputErrors(errors)
    task, split = row.get("task") or prompt, row.get("split") or "ifeval"
    return InstructionPrompt(str(key), prompt, str(task), tuple(instructions), str(split))
