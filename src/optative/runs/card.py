"""The model card of a run: what was asked, what it gained and cost, who judged, how to load it, where it ends.

Knows: the run folder, the front matter that model hubs read. Does not know: models, hubs.
A card travels with the weights, so that no local path stands in it, and `base_model` only where the base has a hub id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optative.core.files import read_json, write_text
from optative.evaluation.report import facts, words
from optative.evaluation.report.reading import RunFolder, mappings, read_run_folder
from optative.evaluation.report.words import visible, without_paths

COLUMNS = ("base", "steered", "difference", "interval", "n", "word")
LICENCES = {"smollm2-135m-instruct": "apache-2.0"}  # of the built-in models; a folder does not say


def write_card(folder: str | Path) -> Path:
    """Write the model card of a run folder as `README.md`, whole or not at all.

    Raises `InputError` when `folder` is no run folder or one of its files is broken.
    """
    folder = Path(folder)
    write_text(folder / "README.md", card(folder))
    return folder / "README.md"


def card(folder: Path) -> str:
    """The model card as Markdown with YAML front matter; the same folder gives the same text."""
    run = read_run_folder(folder)
    parts = [
        _front_matter(run, hub_id(folder, run)),
        f"# {_plain(facts.model_name(run))}, steered: {_plain(run.name)}",
        _plain(facts.headline(run)),
        " ".join(_plain(sentence) for sentence in facts.lede(run)),
        "## Results",
        _results(run),
        _warnings(run),
        "## Who judged",
        _judges(run),
        "## How to load it",
        _loading(run, folder, hub_id(folder, run)),
        "## Limits",
        _limits(run),
        "## How it was made",
        _made(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def hub_id(folder: Path, run: RunFolder) -> str | None:
    """The base's id on the model hub, where it came from there; a built-in model or a local folder has none."""
    base = run.manifest.get("base_model")
    found = base.get("hub_id") if isinstance(base, Mapping) else None
    beside = Path(folder) / "adapter" / "optative.json"
    if not found and beside.is_file():
        recorded = read_json(beside)
        base = recorded.get("base") if isinstance(recorded, Mapping) else None
        found = base.get("hub_id") if isinstance(base, Mapping) else None
    return str(found) if found else None


def _front_matter(run: RunFolder, base: str | None) -> str:
    import yaml

    lora = not _all_weights(run)
    optimizer = run.spec.get("optimizer")
    losses = list(optimizer)[:1] if isinstance(optimizer, Mapping) else []
    tags = ["optative", "preference-alignment", *(["lora"] if lora else []), *losses]
    library = "peft" if lora else "transformers"
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    recorded = run.manifest.get("base_model")
    licence = (recorded.get("license") if isinstance(recorded, Mapping) else None) or LICENCES.get(
        facts.model_name(run)
    )
    if licence:
        head["license"] = str(licence)
    if base:
        head |= {"base_model": base, "base_model_relation": "adapter" if lora else "finetune"}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _results(run: RunFolder) -> str:
    groups = facts.figure_table(run)
    if not groups:
        return "Not measured: the run was not evaluated."
    lines = ["| Measure | Base | Steered | Difference | Interval | n | Reading |", "|---|--:|--:|--:|--:|--:|---|"]
    for group in groups:
        lines.append(f"| **{group['title']}** | | | | | | |")
        lines += [
            _row([f"{row['label']} ({row['split']})", *(row[column] for column in COLUMNS)]) for row in group["rows"]
        ]
    levels = sorted({f"{100 * level:g} %" for row in run.figures if (level := words.finite(row.get("level")))})
    lines += ["", f"Intervals: {' and '.join(levels) or 'level not recorded'}, paired over the same prompts."]
    for split, flips in facts.flips(run):
        lines.append(
            f"Of {words.split_words(split)}, {flips['gained']} went from wrong to right and {flips['lost']} from right "
            f"to wrong; {flips['both']} were right and {flips['neither']} wrong both times."
        )
    fell = [
        f"{words.words(str(row.get('kind')))} ({words.amount(row.get('difference'), 'share', signed=True)})"
        for row in mappings(run.evaluation.get("by_kind"))
        if (words.finite(row.get("difference")) or 0.0) < 0
    ]
    lines += [f"Kinds of instruction that fell: {_plain(', '.join(fell))}."] if fell else []
    return "\n".join(lines)


def _warnings(run: RunFolder) -> str:
    found = facts.warnings(run, facts.recomputed_checks(run))
    return "\n".join(["**Warnings**", "", *(f"- {_plain(item['message'])}" for item in found)]) if found else ""


def _judges(run: RunFolder) -> str:
    judges = [
        f"- {_plain(j['who'])}: {j['label']}, that is, {j['meaning']}. It measured {_plain(j['what'])}."
        for j in facts.judges(run)
    ]
    trained = facts.listed(run.manifest.get("trained_on")) or "not recorded"
    return "\n".join(
        [
            *judges,
            f"- Training used: {_plain(trained)}.",
            "",
            "Numbers were computed from the files of the run folder; `report.html` there shows each judged answer.",
        ]
    )


_WITH_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
prompt = [{"role": "user", "content": "Name three rivers, in lower case."}]
inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


def _all_weights(run: RunFolder) -> bool:
    """Were all weights trained, so that there is no adapter?"""
    return "lora" in run.spec and run.spec["lora"] is None


def _loading(run: RunFolder, folder: Path, base: str | None) -> str:
    if _all_weights(run):
        return f"With Transformers:\n\n{_WITH_TRANSFORMERS}"
    recorded = run.manifest.get("base_model")
    fingerprint = recorded.get("fingerprint") if isinstance(recorded, Mapping) else None
    name = _plain(facts.model_name(run))
    where = base or "path/to/the/base"
    if base:
        first = "With PEFT, on the base model, from this folder:"
    else:
        first = f"With PEFT, from this folder. Put the folder of the base model ({name}) in place of `{where}`"
        first += f"; the fingerprint of its weights is `{_code(str(fingerprint))}`:" if fingerprint else ":"
    return f"""{first}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({json.dumps(where, ensure_ascii=False)})
model = PeftModel.from_pretrained(base, "adapter")
tokenizer = AutoTokenizer.from_pretrained("adapter")
```

With Transformers alone, base and adapter merged:

{_WITH_TRANSFORMERS}"""


def _limits(run: RunFolder) -> str:
    limits = [
        "What the table names was measured, and nothing else: neither facts nor safety nor other languages.",
        "Held-out prompts are like the training prompts in kind; other prompts may gain less, or lose.",
    ]
    if any(row.get("independence") == "same_rule_held_out" for row in run.figures):
        limits.append("Where training used the same judge, a figure shows what was learnt, not that all people agree.")
    recorded = run.manifest.get("base_model")
    notes = recorded.get("notes") if isinstance(recorded, Mapping) else None
    limits += [str(without_paths(str(note))) for note in notes] if isinstance(notes, list) else []
    if run.missing:
        limits.append(f"The run folder lacked {', '.join(run.missing)} when this card was written.")
    return "\n".join(f"- {_plain(limit)}" for limit in limits)


def _made(run: RunFolder) -> str:
    manifest = run.manifest
    reason = manifest.get("dtype_reason")
    versions = ", ".join(f"{name} {version}" for name, version in facts.flat(manifest.get("versions")))
    made = [
        f"Dtype: {manifest.get('dtype') or words.NOT_MEASURED}" + (f" ({reason})" if reason else ""),
        f"Steps: {int(run.metrics[-1]['step']):,}" if run.metrics else f"Steps: {words.NOT_MEASURED}",
        f"Time: {facts.total_time(run)}",
        f"Peak memory: {words.size(manifest.get('peak_memory_bytes'))}",
        f"Versions: {versions or 'not recorded'}",
        *(f"{name}: {value}" for name, value in facts.flat(manifest.get("counts"))),
    ]
    text = "\n".join(f"- {_plain(str(without_paths(fact)))}" for fact in made)
    spec = facts.shared_spec(run)
    return text if spec is None else f"{text}\n\n{_fenced(spec, 'yaml')}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


_MARKUP = re.compile(r"([\\`*\[\]<>|#~&!$]|(?<!\w)_|_(?!\w))")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, hidden characters visible, markup escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))


def _code(text: str) -> str:
    return visible(text).replace("`", "'")


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"
