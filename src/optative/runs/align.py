"""Offline preference training on a person's own file, checked on pairs that were kept out.

Knows: which stage feeds which. Does not know: formats, formulas.
Pairs are read from a table on disk and encoded when a step needs them, so memory does not grow with the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from optative.core.errors import InputError, InputErrors
from optative.core.events import Events, default_events
from optative.core.files import read_jsonl, write_json
from optative.core.folder import RunFolder
from optative.core.ids import content_hash, file_hash
from optative.core.rng import stream
from optative.data.records import Text
from optative.data.records import pairs as strict_pairs
from optative.data.table import JudgementTable, build_table
from optative.evaluation.ranking import assemble_ranking
from optative.generators.language.adapters import add_lora
from optative.generators.language.load import load_language_model
from optative.generators.language.tokens import PromptTooLong, Truncation, TruncationCounts, encode_group
from optative.optimizers.preference import EncodedPair, pair_logps, windows
from optative.optimizers.watch import training_warnings
from optative.runs.finish import finish
from optative.runs.job import Job, Run, settled_dtype
from optative.runs.options import Align
from optative.runs.practise import reference_stage, train_stage


class EncodedPairs(Sequence[EncodedPair]):
    """Pairs of a table, encoded when they are asked for; the latest are kept.

    places: (row of the table, which strict pair of that judgement).
    """

    def __init__(
        self, encode: Callable[[int, int], EncodedPair], places: Sequence[tuple[int, int]], keep: int = 4096
    ) -> None:
        self.encode, self.places, self.keep = encode, places, keep
        self._latest: OrderedDict[int, EncodedPair] = OrderedDict()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return EncodedPairs(self.encode, self.places[index], self.keep)
        if index in self._latest:
            self._latest.move_to_end(index)
        else:
            self._latest[index] = self.encode(*self.places[index])
            if len(self._latest) > self.keep:
                self._latest.popitem(last=False)
        return self._latest[index]

    def __iter__(self) -> Iterator[EncodedPair]:
        for index in range(len(self)):
            yield self[index]


def align(options: Align, *, out: str | Path | None = None, fresh: bool = False, events: Events | None = None) -> Run:
    """Train on the pairs of a file with DPO and measure base and steered model on the pairs that were kept out.

    out: the run folder itself; by default `runs/<file>-<key>`. The same options on an existing folder resume.
    """
    events = events or default_events()
    source = Path(options.file)
    facts = {**options.model_dump(mode="json"), "file": source.name, "file_hash": _hash(source)}
    key = content_hash(facts)
    folder = RunFolder(out if out is not None else Path("runs") / f"{source.name.split('.')[0]}-{key[:8]}")
    with folder.claim(facts, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), fresh=fresh) as resumed:
        events.say(f"{'Resuming' if resumed else 'Starting'} {folder.path}")
        return _align(options, key, folder, events)


def _align(options: Align, key: str, folder: RunFolder, events: Events) -> Run:
    name, dpo = Path(options.file).name, options.dpo
    table = build_table(
        options.file, folder.stages / "table", format=options.format, on_bad_record=options.on_bad_record
    )
    events.say(f"  {name}: {table.format}, {table.counts}")
    dtype = settled_dtype(folder, options.dtype)
    lm = load_language_model(options.model, dtype=dtype, template=options.template)
    rule = Truncation(max_length=min(options.max_length, lm.context_length), on_long_prompt=options.on_long_prompt)
    job = Job(folder, lm, events, {"name": name, "key": key[:8], "kind": "align", "seed": options.seed}, rule)
    training, held_out = _split(job, table, options)
    add_lora(lm, options.lora, seed=options.seed)
    base = reference_stage(job, held_out, dpo, "held-out pairs: reference")
    chosen = options.model_dump(mode="json", exclude={"file"})
    stage = job.key("train-1", 1, [table.fingerprint, chosen])
    train_stage(
        job, stage, training, dpo, words="training", seed=options.seed, labels={"round": 1}, held_out=(held_out, base)
    )

    def measure() -> list[Any]:
        rows: list[Any] = [None] * len(held_out)
        with torch.no_grad():
            for micro in windows(held_out, dpo.token_budget):
                logps_B2, counts_B2 = pair_logps(lm, micro)
                for i, own, tokens in zip(micro.pairs, logps_B2.tolist(), counts_B2.tolist()):
                    rows[i] = [held_out[i].id, content_hash(held_out[i].group.prompt_ids)[:16], *own, *tokens]
        return rows

    names = ("id", "prompt_id", "steered_chosen", "steered_rejected", "num_tokens_chosen", "num_tokens_rejected")
    found = job.stages.value(job.key("held-out", 1, stage), measure)
    rows = [
        {**dict(zip(names, row)), "base_chosen": before[0], "base_rejected": before[1]}
        for row, before in zip(found, base, strict=True)
    ]
    evaluation = assemble_ranking(rows, beta=dpo.beta, seed=options.seed)
    evaluation["warnings"] = training_warnings(list(read_jsonl(folder.metrics))) + evaluation["warnings"]
    write_json(folder.evaluation, evaluation)
    job.finish(
        {
            "trained_on": [f"{len(training)} pairs of {name} (fingerprint {table.fingerprint[:16]})"],
            "measured_by": sorted({m["measured_by"] for m in evaluation["metrics"]}),
            "data": {"file": name, "format": table.format, "fingerprint": table.fingerprint},
        }
    )
    finish(folder, lm, events)
    return Run(folder.path, evaluation)


def _split(job: Job, table: JudgementTable, options: Align) -> tuple[EncodedPairs, EncodedPairs]:
    """Strict pairs for training and for the evaluation; all pairs of one prompt fall on the same side.

    One pass encodes everything once to find what does not fit; only the places of good pairs are kept.
    """
    lm, events, rule = job.lm, job.events, job.rule

    def encode(row: int, nth: int, counts: TruncationCounts | None = None) -> EncodedPair:
        pair = strict_pairs(table[row])[nth]
        group = encode_group(lm, pair.prompt, (pair.chosen, pair.rejected), truncation=rule, counts=counts)
        strength = 0.0 if pair.strength is None else float(pair.strength)
        return EncodedPair(pair.id, group, strength, 1.0 if pair.confidence is None else float(pair.confidence))

    counts, refused = TruncationCounts(), []
    training: list[tuple[int, int]] = []
    held_out: list[tuple[int, int]] = []
    with events.progress("encoding") as advance:
        for row in range(len(table)):
            judgement = table[row]
            side = held_out if _is_held_out(judgement.prompt, options) else training
            for nth in range(len(strict_pairs(judgement))):
                try:
                    encode(row, nth, counts)
                except PromptTooLong as error:
                    refused.append(_at(error, options, table.line(row)))
                else:
                    side.append((row, nth))
            advance(row + 1, len(table), "records")
    if refused and options.on_bad_record == "error":
        hint = "--set on_bad_record=skip leaves them out; --set on_long_prompt=truncate_left cuts them on the left."
        raise InputErrors(refused[:20], f"{len(refused)} prompts are too long. {hint}")
    events.say(f"  max_length {rule.max_length}: {counts}")
    if refused:
        events.warn(
            f"{len(refused)} pairs are left out because their prompt is too long, first in line {refused[0].line}"
        )
    for part, places in (("training", training), ("held-out", held_out)):
        if not places:
            hint = "More records, another --set held_out=0.2, or another seed."
            raise InputError(f"no strict pair is left for the {part} part", file=options.file, hint=hint)
    events.say(f"  {len(training)} pairs to train on, {len(held_out)} kept out")
    job.counts = {
        "records": table.counts.numbers(),
        "tokens": asdict(counts),
        "pairs": {"training": len(training), "held out": len(held_out), "too long": len(refused)},
    }
    return EncodedPairs(encode, training), EncodedPairs(encode, held_out)


def _at(error: InputError, options: Align, line: int) -> InputError:
    """The same fault, with its place in the file."""
    return InputError(
        error.message, file=options.file, line=line, field=error.field, found=error.found, expected=error.expected
    )


def _is_held_out(prompt: Text, options: Align) -> bool:
    return float(stream(options.seed, "held-out", content_hash(prompt)).random()) < options.held_out


def _hash(source: Path) -> str:
    if source.is_dir():
        return content_hash(
            [[str(p.relative_to(source)), file_hash(p)] for p in sorted(source.rglob("*")) if p.is_file()]
        )
    return file_hash(source)
