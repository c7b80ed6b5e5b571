"""Look into a file of preferences: format, counts, token lengths, samples, everything odd.

Knows: readers and percentiles. Does not know: tokenizers (it is handed a function), who prints what it found.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optative.core.errors import InputError
from optative.core.rng import stream
from optative.data.counts import SHOWN, Odd
from optative.data.readers import Reading
from optative.data.records import Judgement, Text, pairs

CountTokens = Callable[[Text, Text | None], int]
"""(prompt, None) -> tokens of the prompt as the model would see it; (prompt, answer) -> tokens of the answer."""

MEASURED = 2000
PERCENTILES = (0, 50, 90, 99, 100)


def inspect_file(
    path: str | Path,
    *,
    format: str | None = None,
    count_tokens: CountTokens | None = None,
    max_length: int | None = None,
    samples: int = 3,
) -> dict[str, Any]:
    """What is in a file, as plain JSON values. Bad records are counted and shown; a file whose structure is broken
    raises InputErrors.

    `count_tokens` adds `token_lengths` (percentiles of prompt, and of chosen and rejected or of all answers) over a
    random part of at most `MEASURED` judgements, and with `max_length` the share of (prompt, answer) that is longer.
    """
    if max_length is not None and count_tokens is None:
        raise InputError("cannot act without a model, whose tokens it counts", field="max_length", found=max_length)
    reading = Reading(path, format=format, on_bad_record="skip")
    first: list[Judgement] = []
    chosen: list[Judgement] = []
    random = stream("data inspect", str(reading.format))
    for number, judgement in enumerate(reading):
        if number < samples:
            first.append(judgement)
        if count_tokens is not None:
            if number < MEASURED:
                chosen.append(judgement)
            elif (place := int(random.integers(number + 1))) < MEASURED:  # reservoir: each judgement equally likely
                chosen[place] = judgement
    report = {
        "file": str(path),
        "format": reading.format,
        "kind": reading.source.kind,
        "split": reading.source.split,
        **{k: v for k, v in reading.counts.to_json().items() if k != "odd"},
        "columns": list(reading.columns),
        "fingerprint": reading.fingerprint,
        "token_lengths": None,
        "max_length": max_length,
        "truncated_share": None,
        "samples": [judgement.to_json() for judgement in first],
        "odd": [asdict(odd) for odd in reading.counts.odd],
    }
    if count_tokens is not None and chosen:
        measured, refused = _measure(chosen, count_tokens, max_length)
        report |= measured
        report["counts"]["not_encoded"] = len(refused)
        report["odd"] += [asdict(odd) for odd in refused[:SHOWN]]
    return report


def _measure(
    judgements: list[Judgement], count_tokens: CountTokens, max_length: int | None
) -> tuple[dict[str, Any], list[Odd]]:
    """Lengths, and the judgements whose prompt the model's template or tokenizer refuses."""
    lengths: dict[str, list[int]] = {}
    longer = together = 0
    refused: list[Odd] = []
    for judgement in judgements:
        try:
            prompt = count_tokens(judgement.prompt, None)
        except InputError as error:
            refused.append(Odd("not_encoded", None, "prompt", f"judgement {judgement.id}: {error.message}"))
            continue
        lengths.setdefault("prompt", []).append(prompt)
        strict = pairs(judgement) if len(judgement.completions) == 2 else []
        if strict:
            answers = [("chosen", strict[0].chosen), ("rejected", strict[0].rejected)]
        else:
            answers = [("completion", completion) for completion in judgement.completions]
        for name, answer in answers:
            own = count_tokens(judgement.prompt, answer)
            lengths.setdefault(name, []).append(own)
            together += 1
            longer += max_length is not None and prompt + own > max_length
    import numpy as np

    table = {
        name: {f"p{p}": int(v) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES, method="higher"))}
        for name, values in lengths.items()
    }
    share = longer / together if max_length is not None and together else None
    token_lengths = {"measured": len(judgements) - len(refused), **table}
    return {"token_lengths": token_lengths, "truncated_share": share}, refused


def render(report: dict[str, Any]) -> str:
    """The report in words for a terminal."""
    counts = report["counts"]
    split = f", split {report['split']}" if report["split"] else ""
    out = [
        f"{report['file']}: {report['format']} ({report['kind']}{split})",
        f"  columns    {', '.join(report['columns'])}",
        f"  records    {report['records']} read, {counts['kept']} kept, {counts['skipped']} refused",
        f"  judgements {counts['judgements']}, {counts['pairs']} strict pairs, {counts['ties']} ties",
    ]
    if lengths := report["token_lengths"]:
        out.append(f"  tokens, of {lengths['measured']} judgements")
        for name, row in lengths.items():
            if name != "measured":
                numbers = "  ".join(f"{label} {value}" for label, value in row.items())
                out.append(f"    {name:<10} {numbers}")
    if report["truncated_share"] is not None:
        out.append(f"  longer than {report['max_length']} tokens: {report['truncated_share']:.1%}")
    out.append("odd" if report["odd"] else "nothing odd")
    shown: dict[str, None] = {}
    for odd in report["odd"]:
        if odd["kind"] not in shown:
            shown[odd["kind"]] = None
            out.append(f"  {counts[odd['kind']]} {odd['kind'].replace('_', ' ')}")
        where = [f"line {odd['line']}"] if odd["line"] is not None else []
        where += [odd["field"]] if odd["field"] else []
        out.append(f"    {': '.join([*where, odd['message']])}")
    for number, sample in enumerate(report["samples"], 1):
        out += [f"sample {number}", f"  prompt     {_short(sample['prompt'])}"]
        out += [f"  answer {i}   {_short(answer)}" for i, answer in enumerate(sample["completions"])]
        out.append(f"  relation   {json.dumps(sample['relation'])}")
    return "\n".join(out)


def _short(text: Text, limit: int = 160) -> str:
    shown = text if isinstance(text, str) else " ".join(f"[{turn['role']}] {turn.get('content', '')}" for turn in text)
    # Escaped like JSON, so that nothing in a file can move the cursor or change the colours of a terminal.
    line = json.dumps(shown, ensure_ascii=False)[1:-1]
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"
