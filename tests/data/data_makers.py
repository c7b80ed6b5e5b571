"""Small makers that the tests of reading share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def jsonl(path: Path, *rows: Any) -> Path:
    """Rows as JSON lines; a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
