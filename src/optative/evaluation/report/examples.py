"""The same prompt before and after: pairs of answers grouped by what became of them.

Knows: judged answers. Does not know: HTML. What was lost or gained is always shown whole; of the verdicts that did not
move, those whose checks moved most come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optative.evaluation.report import words
from optative.evaluation.report.facts import capital
from optative.evaluation.report.reading import Comparison, RunFolder, mappings

UNCHANGED_SHOWN = 200  # of each group of unchanged verdicts; what was gained or lost is always shown whole

OUTCOMES = {
    "lost": ("Lost", "right before, wrong after"),
    "gained": ("Gained", "wrong before, right after"),
    "wrong": ("Still wrong", "wrong before and after"),
    "right": ("Still right", "right before and after"),
    "unjudged": ("Not judged", "no verdict on one or both answers"),
}

FINISHED = {"eos": "ended by itself", "stop": "stopped at a stop string", "length": "cut at the token limit"}


def examples(run: RunFolder) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    splits: dict[str, int] = {}
    for item in run.comparisons:
        splits.setdefault(item.split, len(splits))
        for check in (*item.base.checks, *item.steered.checks):
            kinds.setdefault(str(check.get("kind")), len(kinds))
    groups, number = [], 0
    for code, (title, meaning) in OUTCOMES.items():
        items = [item for item in run.comparisons if item.outcome == code]
        if not items:
            continue
        # Where the verdict did not move, those with the largest change in checks come first.
        items.sort(key=lambda item: item.steered.num_followed - item.base.num_followed)
        shown = items if code in ("lost", "gained") else items[:UNCHANGED_SHOWN]
        entries = []
        for item in shown:
            number += 1
            entries.append(_example(item, number, kinds, splits))
        groups.append({"code": code, "title": title, "meaning": meaning, "total": len(items), "entries": entries})
    used = sorted(kinds, key=words.words)
    return {
        "groups": groups,
        "splits": [(index, capital(words.split_words(split))) for split, index in splits.items()],
        "kinds": [(kinds[kind], words.words(kind)) for kind in used][:60],
        "total": len(run.comparisons),
    }


def _example(item: Comparison, number: int, kinds: Mapping[str, int], splits: Mapping[str, int]) -> dict[str, Any]:
    turns = _turns(item.prompt)
    mine = sorted({kinds[str(check.get("kind"))] for check in (*item.base.checks, *item.steered.checks)})
    answers = []
    for who, answer in (("base", item.base), ("steered", item.steered)):
        checks = []
        for check in answer.checks:
            state = (
                "undecided" if check.get("decided") is False else "pass" if check.get("followed") is True else "fail"
            )
            checks.append({
                "state": state,
                "word": {"pass": "passed", "fail": "failed", "undecided": "undecided"}[state],
                "sign": {"pass": "✓", "fail": "✗", "undecided": "?"}[state],
                "kind": words.words(str(check.get("kind"))),
                "wording": str(check.get("wording") or ""),
                "why": str(check.get("why") or ""),
            })  # fmt: skip
        verdict = {True: ("✓", "right", "pass"), False: ("✗", "wrong", "fail"), None: ("?", "not judged", "undecided")}
        facts = [] if answer.num_tokens is None else [words.count(int(answer.num_tokens), "token")]
        facts += [FINISHED.get(answer.finish_reason, answer.finish_reason)] if answer.finish_reason else []
        if answer.logp_base is not None:
            facts.append(f"{words.decimal(answer.logp_base, 2)}{words.SPACE}nats a token under the base")
        answers.append({
            "who": who, "title": "Before: base" if who == "base" else "After: steered", "text": answer.text,
            "checks": checks, "verdict": verdict[answer.followed], "facts": facts,
        })  # fmt: skip
    total = max(len(item.base.checks), len(item.steered.checks))
    score = f"{item.base.num_followed} → {item.steered.num_followed} of {total}" if total else ""
    return {
        "number": number, "id": item.id, "sample": item.sample, "split": splits[item.split],
        "split_words": words.split_words(item.split), "kinds": mine, "turns": turns,
        "summary": _excerpt(turns), "score": score, "answers": answers,
    }  # fmt: skip


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """A prompt as (role, text) turns; plain text is one turn without a role."""
    if isinstance(prompt, list):
        return [(str(turn.get("role") or ""), _text(turn.get("content"))) for turn in mappings(prompt)]
    return [("", _text(prompt))]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or part.get("type") or "") for part in mappings(content))
    return "" if content is None else str(content)


def _excerpt(turns: Sequence[tuple[str, str]], most: int = 150) -> str:
    text = " ".join((turns[-1][1] if turns else "").split())
    return (text if len(text) <= most else text[:most].rstrip() + "…") or "(empty prompt)"
