"""Measure any model or endpoint on verifiable instructions, without a run.

Knows: answers, rules, intervals of single shares. Does not know: training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optative.core.errors import InputError
from optative.core.events import Events, default_events
from optative.core.files import write_json, write_text
from optative.core.folder import RunFolder
from optative.core.ids import content_hash, file_hash
from optative.evaluation.assemble import assemble
from optative.generators.language.sample import SamplingSettings, sample
from optative.objectives.instructions.check import InstructionPrompt
from optative.objectives.instructions.compose import generate
from optative.objectives.instructions.ifeval import read_ifeval
from optative.objectives.instructions.text import Mode
from optative.runs.answers import as_messages, judged
from optative.runs.environment import hardware, moving_facts, versions
from optative.runs.stages import Stages, chunked

CHUNK = 64  # prompts; the unit that a crash loses
LONGEST = {"own": 128, "ifeval": 1280}  # tokens; 1280 is what the public benchmark's leaderboards allow


def evaluate(
    model: str,
    *,
    adapter: str | Path | None = None,
    ifeval: str | Path | None = None,
    limit: int | None = None,
    mode: Mode | None = None,
    max_new_tokens: int | None = None,
    endpoint_model: str | None = None,
    api_key_env: str | None = None,
    dtype: str = "auto",
    template: str | None = None,
    out: str | Path | None = None,
    events: Events | None = None,
) -> dict[str, Any]:
    """Greedy answers, judged by rules; writes `samples.jsonl` and `evaluation.json`, returns the latter and its folder.

    mode: `published` scores by the public benchmark's rule to the letter, `strict` by the rule as it is written.
    An interrupted evaluation goes on where it was when it is called again.
    """
    events = events or default_events()
    mode = mode or ("published" if ifeval else "strict")
    if ifeval:
        splits = {"ifeval": read_ifeval(ifeval)}
    else:
        splits = {"held_out": generate("held_out", 250, 0), "unseen_kinds": generate("unseen_kinds", 64, 0)}
    if limit is not None:
        splits = {split: prompts[:limit] for split, prompts in splits.items()}
    settings = SamplingSettings(
        max_new_tokens=max_new_tokens or LONGEST["ifeval" if ifeval else "own"], temperature=0.0
    )
    name, identity, environment, open_source = _source(
        model,
        settings,
        adapter=adapter,
        endpoint_model=endpoint_model,
        api_key_env=api_key_env,
        dtype=dtype,
        template=template,
    )
    options = {
        "model": name,
        "identity": identity,
        "mode": mode,
        "settings": settings.model_dump(mode="json"),
        "prompts": content_hash([(p.id, p.prompt) for own in splits.values() for p in own]),
    }
    folder = RunFolder(
        out if out is not None else Path("evaluations") / f"{name.split('/')[-1]}-{content_hash(options)[:8]}"
    )
    with folder.claim(options, json.dumps(options, indent=2) + "\n"):
        stages = Stages(folder.stages, environment, events)
        draw = open_source(folder.stages)

        def answer(part: Sequence[InstructionPrompt], progress: Progress) -> list[dict[str, Any]]:
            return [_row(own[0]) for own in draw(part, progress)]

        rows = []
        for split, prompts in splits.items():
            key = stages.key(f"answers-{split}", 1, [options, [p.id for p in prompts]])
            found = stages.rows(key, chunked(prompts, CHUNK), answer, f"{name} on {split}", len)
            rows += [
                judged(p, row, stage="evaluation", split=split, model="base", mode=mode)
                for p, row in zip(prompts, found)
            ]
        write_text(folder.samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        result = {"model": name, **assemble(rows, None, trained_kinds=None, mode=mode)}
        write_json(folder.evaluation, result)
        write_json(
            folder.manifest,
            {
                "name": name,
                "kind": "evaluate",
                "versions": versions(),
                "hardware": hardware(),
                "options": options,
                "environment": environment,
            },
        )
    return {**result, "folder": str(folder.path)}


Progress = Callable[[int, int], None]
Draw = Callable[[Sequence[InstructionPrompt], Progress], list[list[Any]]]


def _source(
    model: str,
    settings: SamplingSettings,
    *,
    adapter: str | Path | None,
    endpoint_model: str | None,
    api_key_env: str | None,
    dtype: str,
    template: str | None,
) -> tuple[str, Any, dict[str, Any], Callable[[Path], Draw]]:
    """Name, identity, environment, and what opens the source of answers in the folder of the stages."""
    if model.startswith(("http://", "https://")):
        from optative.generators.language.endpoint import EndpointModel
        from optative.generators.options import EndpointOptions

        if adapter or template:
            raise InputError("an endpoint takes neither --adapter nor --template; it has its own weights and template")
        if endpoint_model is None:
            raise InputError("name the model at the endpoint", field="--endpoint-model")
        options = EndpointOptions(url=model, model=endpoint_model, api_key_env=api_key_env)
        name, environment = endpoint_model, {"endpoint": True}
        identity: dict[str, str | None] = {"endpoint": model}

        def open_source(home: Path) -> Draw:
            endpoint = EndpointModel(options, journal=home / "endpoint.jsonl")  # a killed evaluation pays nothing twice
            return lambda prompts, progress: endpoint.sample(
                [as_messages(p) for p in prompts], 1, settings, seed=0, progress=progress
            )

    else:
        from optative.generators.language.adapters import merged
        from optative.generators.language.load import load_language_model

        lm = load_language_model(model, adapter=adapter, dtype=dtype, template=template)
        weights = None if adapter is None else file_hash(Path(adapter) / "adapter_model.safetensors")
        name, identity = lm.name, {"base": lm.fingerprint, "adapter": weights, "template": lm.template.hash}
        environment = moving_facts(str(lm.dtype), lm.device.type)

        def draw(prompts: Sequence[InstructionPrompt], progress: Progress) -> list[list[Any]]:
            messages, keys = [as_messages(p) for p in prompts], [p.id for p in prompts]
            with merged(lm):
                return sample(lm, messages, 1, settings, seed=0, keys=keys, progress=progress)

        def open_source(home: Path) -> Draw:
            return draw

    return name, identity, environment, open_source


def _row(answer: Any) -> dict[str, Any]:
    tokens = getattr(answer, "num_tokens", len(answer.ids))  # an endpoint counts tokens, but keeps their ids to itself
    return {"completion": answer.text, "finish_reason": answer.finish_reason, "num_tokens": tokens}
