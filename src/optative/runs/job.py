"""What one run carries along: its folder, model, stages, counts and warnings; and its manifest.

Knows: which facts a manifest holds. Does not know: what the stages compute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optative.core.events import Events
from optative.core.files import read_json, write_json, write_text
from optative.core.folder import RunFolder
from optative.generators.language.model import LanguageModel
from optative.generators.language.tokens import Truncation
from optative.runs.environment import hardware, moving_facts, peak_memory_bytes, versions
from optative.runs.stages import Stages


@dataclass
class Run:
    """A finished run. `met` is False when the spec's criterion was not met, and `why` says by how much."""

    folder: Path
    evaluation: dict[str, Any]
    met: bool = True
    why: str = ""


def settled_dtype(folder: RunFolder, asked: str) -> str:
    """`auto` is measured once a run: a resumed one keeps what was chosen, whatever the machine is busy with now."""
    if asked == "auto" and folder.manifest.exists():
        return str(read_json(folder.manifest)["dtype"])
    return asked


@dataclass
class Job:
    """One run at work."""

    folder: RunFolder
    lm: LanguageModel
    events: Events
    manifest: dict[str, Any]
    rule: Truncation
    stages: Stages = field(init=False)
    keys: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of samples.jsonl

    def __post_init__(self) -> None:
        lm, events = self.lm, self.events
        self.stages = Stages(self.folder.stages, moving_facts(str(lm.dtype), lm.device.type), events)
        older = read_json(self.folder.manifest) if self.folder.manifest.exists() else {}
        started = older.get("started", datetime.now(UTC).isoformat(timespec="seconds"))
        reason = older.get("dtype_reason", lm.dtype_reason)
        for line in (f"model {lm.name}: {reason}", *lm.notes):
            events.say(f"  {line}")
        self.manifest |= {
            "started": started,
            "finished": None,
            "versions": versions(),
            "hardware": hardware(),
            "base_model": {
                "name": lm.name,
                "hub_id": lm.hub_id,
                "fingerprint": lm.fingerprint,
                "template_hash": lm.template.hash,
                "notes": list(lm.notes),
            },
            "dtype": str(lm.dtype).removeprefix("torch."),
            "dtype_reason": reason,
        }
        write_json(self.folder.manifest, self.manifest)

    @property
    def weights(self) -> list[str]:
        """Identity of the base: its weights and its template."""
        return [self.lm.fingerprint, self.lm.template.hash]

    def key(self, name: str, version: int, inputs: Any) -> str:
        """Key of a stage that uses the model; its wall time is reported in the manifest."""
        key = self.stages.key(name, version, [self.weights, self.rule, inputs])
        self.keys.append(key)
        return key

    def write_samples(self) -> None:
        """Every judged answer so far, whole or not at all."""
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows)
        write_text(self.folder.samples, "".join(lines))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Complete the manifest."""
        self.manifest |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": self.stages.wall_seconds(self.keys),
            "counts": self.counts,
            "peak_memory_bytes": peak_memory_bytes(),
            **facts,
        }
        write_json(self.folder.manifest, self.manifest)
