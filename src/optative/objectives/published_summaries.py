"""Summaries of posts that were published with the constitution each was written under (Franken et al. 2024, SAMI).

Knows: the layout of the files (`constitutions_mistral/*.json`, `base-*.json`, `iteration-3-*.json`, `instruct-*.json`),
what the publication cut and left out. Does not know: how the summaries were made, who scores them.
"""

from __future__ import annotations

import re
from pathlib import Path

from optative.core.errors import InputError
from optative.core.files import read_json
from optative.objectives.principles import statements

WRITERS = ("base", "iteration-3", "instruct")
_MARKS = ("[insert", "[]", "]", "Response")
_CUT = re.compile(r"Human:|###")


def read(folder: Path) -> tuple[dict[tuple[str, ...], list[str]], dict[str, dict[str, dict[str, str]]]]:
    """Negative constitutions by the statements of their positive one, and for each writer the file's three columns.

    Raises InputError where a file is missing or is not laid out as published.
    """
    negatives: dict[tuple[str, ...], list[str]] = {}
    for path in sorted((folder / "constitutions_mistral").glob("*.json")):
        found = read_json(path)
        for field in ("positive", "negative"):
            if not isinstance(found, dict) or not isinstance(found.get(field), str):
                raise InputError("a constitution is missing", file=path, field=field, expected="a numbered list")
        negatives.setdefault(statements(found["positive"]), []).append(found["negative"])
    if not negatives:
        raise InputError("holds no constitutions", file=folder, expected="constitutions_mistral/*.json")
    return negatives, {writer: _responses(folder, writer) for writer in WRITERS}


def _responses(folder: Path, writer: str) -> dict[str, dict[str, str]]:
    files = sorted(folder.glob(f"{writer}-*.json"))
    if len(files) != 1:
        raise InputError("needs one file", file=folder, found=f"{len(files)} files", expected=f"{writer}-*.json")
    found, columns = read_json(files[0]), ("constitution", "question", "response")
    for column in columns:
        if not isinstance(found, dict) or not isinstance(found.get(column), dict) or not found[column]:
            raise InputError("a column is missing", file=files[0], field=column, expected="texts by post")
        if found[column].keys() != found["constitution"].keys():
            raise InputError("other posts than in the column `constitution`", file=files[0], field=column)
    return {column: found[column] for column in columns}


def clean(answer: str) -> str:
    """Cut where the writer went on with a next turn or section."""
    return _CUT.split(answer)[0].strip()


def kept(answer: str) -> bool:
    """Would the published filter keep this answer to the desired constitution? (It also asks for different answers.)"""
    return answer.endswith(".") and not any(mark in answer for mark in _MARKS)
