"""docs/data.md shows what is true: each example is read, and nothing is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optative.data.counts import KINDS, REFUSED
from optative.data.files import WRAPPERS
from optative.data.formats import FORMATS, KEPT
from optative.data.readers import read

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"### (\w+)\n.*?```jsonl\n(.*?)```", PAGE, flags=re.S))


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_each_format_is_read_as_that_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(EXAMPLES[name], "utf-8")
    reading = read(path)
    assert list(reading)
    assert reading.format == name
    assert not any(reading.counts.kinds[kind] for kind in REFUSED)
    assert not any(judgement.meta.keys() - {"completions"} for judgement in read(path))


def test_every_count_column_and_wrapper_is_named() -> None:
    shown = set(re.findall(r"`(\w+)`", PAGE))
    assert set(KINDS) <= shown
    assert {*KEPT, *WRAPPERS} <= shown
    assert set(EXAMPLES) == set(FORMATS)
