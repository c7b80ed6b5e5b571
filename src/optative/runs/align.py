"""Offline preference training on a person's own file, checked on records that were kept out.

Knows: which stage feeds which. Does not know: formats, formulas.
Records are read from a table on disk and encoded when a step needs them, so memory does not grow with the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from optative.core.errors import InputError, InputErrors
from optative.core.events import Events, Silent, default_events
from optative.core.files import read_jsonl, write_json
from optative.core.folder import RunFolder
from optative.core.ids import content_hash, file_hash
from optative.core.rng import stream
from optative.data.records import Text
from optative.data.table import JudgementTable, build_table
from optative.evaluation.completions import assemble_completions
from optative.evaluation.labels import assemble_labels
from optative.evaluation.ranking import assemble_ranking
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.tokens import PromptTooLong, Truncation, TruncationCounts
from optative.generators.language.trained import prepare_training
from optative.optimizers.options import Preference
from optative.optimizers.preference import Reference, sums_of
from optative.optimizers.terms import Term, implicit_beta, terms, usable
from optative.optimizers.units import Unit, Units, rows
from optative.optimizers.watch import training_warnings
from optative.runs.estimate import Estimate, estimate
from optative.runs.finish import finish
from optative.runs.job import Job, Run, settled_dtype
from optative.runs.options import Align
from optative.runs.records import encode_unit, is_comparison
from optative.runs.stages import chunked
from optative.runs.training import CHUNK, reference_stage, train_stage, write_learning_curves
from optative.training.distribution import world


class EncodedUnits(Sequence[Unit]):
    """Records of a table as units, encoded when they are asked for; the latest are kept.

    places: rows of the table. tokens: of each unit.
    """

    def __init__(
        self, encode: Callable[[int], Unit], places: Sequence[int], tokens: Sequence[int], keep: int = 4096
    ) -> None:
        self.encode, self.places, self.tokens, self.keep = encode, places, tokens, keep
        self._latest: OrderedDict[int, Unit] = OrderedDict()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return EncodedUnits(self.encode, self.places[index], self.tokens[index], self.keep)
        if index in self._latest:
            self._latest.move_to_end(index)
        else:
            self._latest[index] = self.encode(self.places[index])
            if len(self._latest) > self.keep:
                self._latest.popitem(last=False)
        return self._latest[index]

    def __iter__(self) -> Iterator[Unit]:
        for index in range(len(self)):
            yield self[index]


def align(options: Align, *, out: str | Path | None = None, fresh: bool = False, events: Events | None = None) -> Run:
    """Train on the records of a file and measure base and steered model on the records that were kept out.

    out: the run folder itself; by default `runs/<file>-<key>`. The same options on an existing folder resume.
    Under torchrun every process calls this; the first one writes and speaks.
    """
    here = world()
    events = (events or default_events()) if here.is_main else Silent()
    source = Path(options.file)
    facts = {**options.model_dump(mode="json"), "file": source.name, "file_hash": _hash(source)}
    key = content_hash(facts)
    folder = RunFolder(out if out is not None else Path("runs") / f"{source.name.split('.')[0]}-{key[:8]}")
    with folder.claim(
        facts, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), fresh=fresh, peers=here
    ) as resumed:
        events.say(f"{'Resuming' if resumed else 'Starting'} {folder.path}")
        return _align(options, key, folder, events)


def _align(options: Align, key: str, folder: RunFolder, events: Events) -> Run:
    name, asked = Path(options.file).name, options.training
    losses = terms(options.loss, asked)
    table = build_table(
        options.file, folder.stages / "table", format=options.format, on_bad_record=options.on_bad_record
    )
    events.say(f"  {name}: {table.format}, {table.counts}")
    dtype = settled_dtype(folder, options.dtype if options.lora else "float32")
    lm = _load(options, dtype)
    rule = Truncation(max_length=min(options.max_length, lm.context_length), on_long_prompt=options.on_long_prompt)
    job = Job(folder, lm, events, {"name": name, "key": key[:8], "kind": "align", "seed": options.seed}, rule)
    training, held_out = _split(job, table, options, losses)
    prepare_training(lm, options.lora, options.seed, keep_start=any(term.needs_kl for term in losses))
    expected = _expected(job, training, asked, losses)
    base = reference_stage(job, held_out, asked, "held-out records: where the model starts")
    chosen = options.model_dump(mode="json", exclude={"file"})
    stage = job.key("train-1", 2, [table.fingerprint, chosen])
    train_stage(
        job,
        stage,
        training,
        options.loss,
        asked,
        words="training",
        seed=options.seed,
        labels={"round": 1},
        held_out=(held_out, base),
    )

    def measure(part: Sequence[int], _: Any) -> list[Any]:
        return sums_of(job.lm, held_out, part, asked)

    chunks: list[Sequence[int]] = chunked(range(len(held_out)), CHUNK)
    steered = job.stages.rows(job.key("held-out", 2, stage), chunks, measure, "held-out records: steered", len)
    write_learning_curves(job, stage, held_out, base, losses)
    evaluation = _evaluation(held_out, base, steered, losses, options.seed)
    evaluation["warnings"] = training_warnings(list(read_jsonl(folder.metrics))) + evaluation["warnings"]
    write_json(folder.evaluation, evaluation)
    job.finish(
        {
            "trained_on": [f"{len(training)} records of {name} (fingerprint {table.fingerprint[:16]})"],
            "measured_by": sorted({m["measured_by"] for m in evaluation["metrics"]}),
            "data": {"file": name, "format": table.format, "fingerprint": table.fingerprint},
            "estimate": expected,
        }
    )
    if world().is_main:
        finish(folder, lm, events)
    return Run(folder.path, evaluation)


def _load(options: Align, dtype: str) -> LanguageModel:
    """The model; where its dtype is measured, the first process measures for all."""
    here = world()
    if here.is_main:
        lm = load_language_model(options.model, dtype=dtype, template=options.template)
        here.first(str(lm.dtype).removeprefix("torch."))
        return lm
    return load_language_model(options.model, dtype=here.first(""), template=options.template)


def _expected(job: Job, training: EncodedUnits, asked: Preference, losses: Sequence[Term]) -> dict[str, Any]:
    """What the training will take, said before it starts; measured once a run."""

    def measure() -> dict[str, Any]:
        return asdict(estimate(job.lm, training, training.tokens, asked, losses))

    found: dict[str, Any] = job.stages.value(job.key("estimate", 1, [asked, len(training)]), measure)
    job.events.say(f"  {Estimate(**found)}")
    return found


def _evaluation(
    held_out: Units, base: Reference, steered: Reference, losses: Sequence[Term], seed: int
) -> dict[str, Any]:
    """Figures on the held-out records: how pairs are ordered, and where only labels are known, how these are met."""
    beta = implicit_beta(losses)
    pairs, labels, good = [], [], []
    for i, unit in enumerate(held_out):
        before, after = base[i], steered[i]
        prompt = content_hash(unit.group.prompt_ids)[:16]
        ordered = rows(unit, i, "pair")
        for row in ordered:
            own, other = row.members
            pairs.append(
                {
                    "id": unit.id if len(ordered) == 1 else f"{unit.id}/{own}>{other}",
                    "prompt_id": prompt,
                    "base_chosen": before[own],
                    "base_rejected": before[other],
                    "steered_chosen": after[own],
                    "steered_rejected": after[other],
                    "num_tokens_chosen": unit.counted[own],
                    "num_tokens_rejected": unit.counted[other],
                }
            )
        for row in [] if ordered else rows(unit, i, "completion"):
            (own,) = row.members
            label = {"desirable": row.desirable, "base": before[own], "steered": after[own]}
            labels.append({"id": unit.id, "prompt_id": prompt, **label})
        for row in rows(unit, i, "good completion") if losses[0].loss.name == "sft" else ():
            (own,) = row.members
            answer = {"num_tokens": unit.counted[own], "base": before[own], "steered": after[own]}
            good.append({"id": unit.id, "prompt_id": prompt, **answer})
    parts = [assemble_completions(good, seed=seed)] if good else []
    parts += [assemble_ranking(pairs, beta=beta, seed=seed)] if pairs else []
    parts += [assemble_labels(labels, beta=beta, seed=seed)] if labels else []
    if not parts:
        raise InputError("no held-out record has a better and a worse answer, or a label; there is nothing to measure")
    return {**parts[0], **{name: [v for part in parts for v in part[name]] for name in ("metrics", "warnings")}}


def _split(
    job: Job, table: JudgementTable, options: Align, losses: Sequence[Term]
) -> tuple[EncodedUnits, EncodedUnits]:
    """Records for training and for the evaluation; all records of one prompt fall on the same side.

    One pass encodes everything once to find what does not fit or teaches nothing; only the places of the rest are kept.
    """
    lm, events, rule = job.lm, job.events, job.rule

    def encode(row: int, counts: TruncationCounts | None = None) -> Unit:
        return encode_unit(lm, table[row], rule, counts)

    counts, refused, useless = TruncationCounts(), [], 0
    training: tuple[list[int], list[int]] = ([], [])  # rows of the table, tokens
    held_out: tuple[list[int], list[int]] = ([], [])
    with events.progress("encoding") as advance:
        for row in range(len(table)):
            judgement = table[row]
            try:
                unit = encode_unit(lm, judgement, rule, counts) if is_comparison(judgement) else None
            except PromptTooLong as error:
                refused.append(_at(error, options, table.line(row)))
            else:
                if unit is None or not usable(unit, losses):
                    useless += 1
                else:
                    places, tokens = held_out if _is_held_out(judgement.prompt, options) else training
                    places.append(row)
                    tokens.append(unit.group.num_tokens)
            advance(row + 1, len(table), "records")
    if refused and options.on_bad_record == "error":
        hint = "--set on_bad_record=skip leaves them out; --set on_long_prompt=truncate_left cuts them on the left."
        raise InputErrors(refused[:20], f"{len(refused)} prompts are too long. {hint}")
    events.say(f"  max_length {rule.max_length}: {counts}")
    if refused:
        events.warn(
            f"{len(refused)} records are left out because their prompt is too long, first in line {refused[0].line}"
        )
    loss = losses[0].loss.name
    if useless:
        events.warn(f"{useless} records teach {loss} nothing (ties, undecided, or not of the kind that it needs)")
    for part, found in (("training", training), ("held-out", held_out)):
        if not found[0]:
            hint = "More records, another --set held_out=0.2, or another seed."
            if useless:
                hint = "`optative data inspect` shows what the file holds, `optative explain` which loss takes what."
            raise InputError(f"no record that {loss} can use is left for the {part} part", file=options.file, hint=hint)
    events.say(f"  {len(training[0])} records to train on, {len(held_out[0])} kept out")
    job.counts = {
        "records": table.counts.numbers(),
        "tokens": asdict(counts),
        "used": {
            "training": len(training[0]),
            "held out": len(held_out[0]),
            "too long": len(refused),
            "without use": useless,
        },
    }
    return EncodedUnits(encode, *training), EncodedUnits(encode, *held_out)


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
