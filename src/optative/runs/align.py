"""Offline preference training on a person's own file, checked on pairs that were kept out.

Knows: which stage feeds which. Does not know: formats, formulas.
Pairs are read from a table on disk and encoded when a step needs them, so memory does not grow with the file.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optative.core.errors import InputError
from optative.core.events import Events, default_events
from optative.core.files import read_json, read_jsonl, write_json
from optative.core.folder import RunFolder
from optative.core.ids import content_hash, file_hash
from optative.core.rng import stream
from optative.data.records import Text
from optative.data.records import pairs as strict_pairs
from optative.data.table import JudgementTable, build_table
from optative.evaluation.ranking import assemble_ranking
from optative.generators.language.adapters import add_lora, load_adapter_weights, save_adapter
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.tokens import PromptTooLong, Truncation, TruncationCounts, encode_group
from optative.optimizers.preference import EncodedPair, pair_logps, train_preferences, windows
from optative.optimizers.reference import reference_logps
from optative.optimizers.watch import training_warnings
from optative.runs.environment import hardware, moving_facts, peak_memory_bytes, versions
from optative.runs.finish import finish
from optative.runs.options import Align
from optative.runs.stages import Stages
from optative.runs.steer import Run


class EncodedPairs(Sequence[EncodedPair]):
    """Pairs of a table, encoded when they are asked for; the latest are kept.

    places: (row of the table, which strict pair of that judgement).
    """

    def __init__(self, encode: Callable[[int, int], EncodedPair], places: Sequence[tuple[int, int]], keep: int = 4096) -> None:
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
    import yaml

    with folder.claim(facts, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), fresh=fresh) as resumed:
        events.say(f"{'Resuming' if resumed else 'Starting'} {folder.path}")
        return _align(options, key, folder, events)


def _align(options: Align, key: str, folder: RunFolder, events: Events) -> Run:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    if folder.manifest.exists():
        started = read_json(folder.manifest)["started"]
    table = build_table(options.file, folder.stages / "table", format=options.format, on_bad_record=options.on_bad_record)
    events.say(f"  {options.file}: {table.format}, {table.counts}")
    lm = load_language_model(options.model, dtype=options.dtype, template=options.template)
    for line in (f"model {lm.name}, {lm.dtype_reason}", *lm.notes):
        events.say(f"  {line}")
    stages = Stages(folder.stages, moving_facts(str(lm.dtype), lm.device.type), events)
    training, held_out, counts = _split(lm, table, options, events)
    manifest = {
        "name": Path(options.file).name,
        "key": key[:8],
        "kind": "align",
        "started": started,
        "finished": None,
        "versions": versions(),
        "hardware": hardware(),
        "base_model": {"name": lm.name, "fingerprint": lm.fingerprint, "template_hash": lm.template.hash, "notes": list(lm.notes)},
        "dtype": str(lm.dtype).removeprefix("torch."),
        "dtype_reason": lm.dtype_reason,
        "seed": options.seed,
        "counts": {"records": table.counts.to_json(), **counts},
        "data": {"file": Path(options.file).name, "format": table.format, "fingerprint": table.fingerprint},
    }
    write_json(folder.manifest, manifest)
    add_lora(lm, options.lora, seed=options.seed)
    weights = content_hash([lm.fingerprint, lm.template.hash, stages.environment])
    references = {}
    for name, pairs in (("training", training), ("held-out", held_out)):
        with events.progress(f"reference, {name} pairs") as advance:
            references[name] = reference_logps(
                lm,
                pairs,
                weights=weights,
                cache=folder.stages,
                token_budget=options.dpo.token_budget,
                progress=lambda done, total: advance(done, total, "pairs"),
            )
    stage = stages.key("train-1", 1, [lm.fingerprint, lm.template.hash, table.fingerprint, options.model_dump(exclude={"file"})])
    home, receipt = stages.folder / stage, stages.folder / f"{stage}.done.json"
    if receipt.exists():
        load_adapter_weights(lm, home)
    else:
        began = time.perf_counter()
        with events.progress("training") as advance:

            def tell(done: int, total: int, line: dict[str, Any]) -> None:
                advance(done, total, f"loss {line['loss']:.3f} accuracy {line['rewards/accuracies']:.2f}")

            train_preferences(
                lm,
                training,
                references["training"],
                options=options.dpo,
                seed=options.seed,
                key=stage,
                journal_path=folder.metrics,
                journal_start=0,
                checkpoints=folder.checkpoints,
                labels={"round": 1},
                held_out=(held_out, references["held-out"]),
                on_step=tell,
            )
        save_adapter(lm, home)
        stages.add_seconds(stage, time.perf_counter() - began)
        write_json(receipt, {"seconds": time.perf_counter() - began})
    measured = stages.key("held-out", 1, [stage])

    def measure() -> list[Any]:
        import torch

        rows: list[Any] = [None] * len(held_out)
        with torch.no_grad():
            for micro in windows(held_out, options.dpo.token_budget):
                logps_B2, counts_B2 = pair_logps(lm, micro)
                for i, own, tokens in zip(micro.pairs, logps_B2.tolist(), counts_B2.tolist()):
                    rows[i] = [held_out[i].id, *own, *tokens]
        return rows

    rows = stages.value(measured, measure)
    evaluation = assemble_ranking(
        [
            {
                "id": id,
                "base_chosen": base[0],
                "base_rejected": base[1],
                "steered_chosen": chosen,
                "steered_rejected": rejected,
                "num_tokens_chosen": tokens_chosen,
                "num_tokens_rejected": tokens_rejected,
            }
            for (id, chosen, rejected, tokens_chosen, tokens_rejected), base in zip(rows, references["held-out"])
        ],
        beta=options.dpo.beta,
        seed=options.seed,
    )
    evaluation["warnings"] = training_warnings(list(read_jsonl(folder.metrics))) + evaluation["warnings"]
    write_json(folder.evaluation, evaluation)
    manifest |= {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "trained_on": [f"{len(training)} pairs of {Path(options.file).name}, {table.fingerprint[:16]}"],
        "measured_by": sorted({m["measured_by"] for m in evaluation["metrics"]}),
        "wall_seconds": stages.wall_seconds([stage, measured]),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder.manifest, manifest)
    finish(folder, lm, events)
    return Run(folder.path, evaluation)


def _split(
    lm: LanguageModel, table: JudgementTable, options: Align, events: Events
) -> tuple[EncodedPairs, EncodedPairs, dict[str, Any]]:
    """Strict pairs for training and for the evaluation; all pairs of one prompt fall on the same side.

    One pass encodes everything once to find what does not fit; only the places of good pairs are kept.
    """
    rule = Truncation(max_length=min(options.max_length, lm.context_length), on_long_prompt=options.on_long_prompt)

    def encode(row: int, nth: int, counts: TruncationCounts | None = None) -> EncodedPair:
        pair = strict_pairs(table[row])[nth]
        group = encode_group(lm, pair.prompt, (pair.chosen, pair.rejected), truncation=rule, counts=counts)
        strength = 0.0 if pair.strength is None else float(pair.strength)
        return EncodedPair(pair.id, group, strength, 1.0 if pair.confidence is None else float(pair.confidence))

    counts, refused = TruncationCounts(), []
    sides: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    with events.progress("encoding") as advance:
        for row in range(len(table)):
            judgement = table[row]
            side = _is_held_out(judgement.prompt, options)
            for nth in range(len(strict_pairs(judgement))):
                try:
                    encode(row, nth, counts)
                except PromptTooLong as error:
                    where = InputError(error.message, file=options.file, line=table.line(row), field=error.field, found=error.found, expected=error.expected)
                    if options.on_bad_record == "error":
                        where.hint = "--set on_bad_record=skip leaves such records out; --set on_long_prompt=truncate_left cuts them."
                        raise InputError(f"{where}\n  {where.hint}") from None
                    refused.append(table.line(row))
                else:
                    sides[side].append((row, nth))
            advance(row + 1, len(table), "records")
    events.say(f"  max_length {rule.max_length}: {counts}")
    if refused:
        events.warn(f"{len(refused)} pairs left out because their prompt is too long, first in line {refused[0]}")
    for name, places in (("training", sides[0]), ("held-out", sides[1])):
        if not places:
            raise InputError(f"no strict pair is left for the {name} part", file=options.file, hint="More records, or another --set held_out=...")
    from dataclasses import asdict

    numbers = {**asdict(counts), "training_pairs": len(sides[0]), "held_out_pairs": len(sides[1]), "too_long": len(refused)}
    events.say(f"  {len(sides[0])} pairs to train on, {len(sides[1])} kept out")
    return EncodedPairs(encode, sides[0]), EncodedPairs(encode, sides[1]), {"tokens": numbers}


def _is_held_out(prompt: Text, options: Align) -> bool:
    return float(stream(options.seed, "held-out", content_hash(prompt)).random()) < options.held_out


def _hash(source: Path) -> str:
    if source.is_dir():
        return content_hash([[str(p.relative_to(source)), file_hash(p)] for p in sorted(source.rglob("*")) if p.is_file()])
    return file_hash(source)
