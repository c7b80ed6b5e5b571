"""A run folder as the report reads it: every file may be missing, and a journal may end in half a line.

Knows: the names and shapes of the files in a run folder. Does not know: how they are shown, who wrote them.
What is missing is a fact of the report (`missing`, `notes`), not an error; a file that is there and broken is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optative.core.errors import InputError
from optative.core.files import read_json
from optative.evaluation.report.words import finite

FILES = ("spec.yaml", "resolved.json", "manifest.json", "metrics.jsonl", "evaluation.json", "samples.jsonl")


@dataclass(frozen=True, slots=True)
class Answer:
    """One judged answer of one model. `followed` is None where nothing judged it."""

    text: str
    followed: bool | None
    checks: tuple[dict[str, Any], ...]
    num_tokens: float | None
    finish_reason: str
    logp_base: float | None

    @property
    def num_followed(self) -> int:
        return sum(check.get("followed") is True for check in self.checks)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same prompt before and after."""

    split: str
    id: str
    sample: int
    prompt: Any
    base: Answer
    steered: Answer

    @property
    def outcome(self) -> str:
        """lost, gained, wrong (both times), right (both times) or unjudged."""
        before, after = self.base.followed, self.steered.followed
        if before is None or after is None:
            return "unjudged"
        return {(True, False): "lost", (False, True): "gained", (False, False): "wrong", (True, True): "right"}[
            before, after
        ]


@dataclass(slots=True)
class RunFolder:
    """What a run folder holds, read once. `metrics`: one mapping a step, in the order of the file."""

    name: str
    spec_text: str | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    num_judged: int = 0
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.manifest.get("kind") or "run")

    @property
    def figures(self) -> list[Mapping[str, Any]]:
        """The rows of `evaluation.json`'s `metrics`. Where one model alone was measured, its `value` is the base's."""
        rows = mappings(self.evaluation.get("metrics"))
        return [row if "value" not in row else {**row, "base": row["value"], "interval": None} for row in rows]


def read_run_folder(folder: Path) -> RunFolder:
    """Read all files of a run folder that are there.

    Raises `InputError` when the folder does not exist or holds none of a run's files, or when a file is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("no such folder", file=folder, hint="Give the folder that `optative run` or `align` printed.")
    found = [name for name in FILES if (folder / name).is_file()]
    if not found:
        raise InputError("holds no run", file=folder, expected=f"at least one of {', '.join(FILES)}")
    run = RunFolder(name=folder.resolve().name, missing=[name for name in FILES if name not in found])
    if "spec.yaml" in found:
        run.spec_text = (folder / "spec.yaml").read_text("utf-8-sig", errors="replace")
        run.spec = _parsed(run.spec_text, run.notes)
    for name in ("resolved", "manifest", "evaluation"):
        if f"{name}.json" in found:
            setattr(run, name, _mapping(folder / f"{name}.json"))
    if "metrics.jsonl" in found:
        run.metrics = [row for row in _rows(folder / "metrics.jsonl", run.notes) if finite(row.get("step")) is not None]
    if "samples.jsonl" in found:
        _compare(_rows(folder / "samples.jsonl", run.notes), run)
    return run


def mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def recomputed(run: RunFolder, split: str) -> tuple[float, float, int] | None:
    """Share of prompts with every instruction followed, (base, steered, prompts), from the judged answers alone.

    Several samples of a prompt are averaged first. None where no prompt of the split was judged for both models.
    """
    prompts: dict[str, list[tuple[bool, bool]]] = {}
    for item in run.comparisons:
        if item.split == split and item.base.followed is not None and item.steered.followed is not None:
            prompts.setdefault(item.id, []).append((item.base.followed, item.steered.followed))
    if not prompts:
        return None

    def share(which: Callable[[tuple[bool, bool]], bool]) -> float:
        return sum(sum(map(which, judged)) / len(judged) for judged in prompts.values()) / len(prompts)

    return share(lambda judged: judged[0]), share(lambda judged: judged[1]), len(prompts)


def _compare(rows: Iterable[Mapping[str, Any]], run: RunFolder) -> None:
    """Pair the evaluation's answers of the base and the steered model by split, prompt and sample."""
    mode = run.evaluation.get("mode")
    pairs: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        run.num_judged += 1
        model = row.get("model")
        if row.get("stage", "evaluation") != "evaluation" or model not in ("base", "steered"):
            continue
        if mode is not None and row.get("mode", mode) != mode:
            continue
        key = (str(row.get("split") or "held_out"), str(row.get("id")), int(finite(row.get("sample")) or 0))
        pairs.setdefault(key, {})[model] = row
    single = 0
    for (split, prompt_id, sample), both in pairs.items():
        if len(both) < 2:
            single += 1
            continue
        base, steered = _answer(both["base"]), _answer(both["steered"])
        run.comparisons.append(Comparison(split, prompt_id, sample, both["base"].get("prompt"), base, steered))
    if single:
        run.notes.append(f"{single} answers have no partner from the other model and are left out of the comparison.")


def _answer(row: Mapping[str, Any]) -> Answer:
    followed = row.get("followed")
    return Answer(
        text=str(row.get("completion") or ""),
        followed=followed if isinstance(followed, bool) else None,
        checks=tuple(dict(check) for check in mappings(row.get("checks"))),
        num_tokens=finite(row.get("num_tokens")),
        finish_reason=str(row.get("finish_reason") or ""),
        logp_base=finite(row.get("logp_base")),
    )


def _rows(path: Path, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """The mappings of a journal. A torn last line is what an interruption leaves: noted, not an error."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if not line.endswith(b"\n"):
                    notes.append(
                        f"{path.name} ends in half a line, as an interrupted run leaves it; it is not counted."
                    )
                    return
                raise InputError(f"not JSON: {error}", file=path, line=number) from None
            if not isinstance(row, Mapping):
                raise InputError("wrong type", file=path, line=number, found=row, expected="an object")
            yield row


def _mapping(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, Mapping):
        raise InputError("wrong type", file=path, found=value, expected="an object")
    return value


def _parsed(text: str, notes: list[str]) -> Mapping[str, Any]:
    import yaml

    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError:
        notes.append("spec.yaml is not valid YAML; it is shown as it is.")
        return {}
    return spec if isinstance(spec, Mapping) else {}
