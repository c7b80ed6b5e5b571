"""A synthetic run folder for the tests of the report and the card: seeded numbers, texts that try to break a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NASTY = (
    "<script>alert(1)</script>",
    "</style><style>body{display:none}</style>",
    "</title></pre></details></main>\"'><img src=x onerror=alert(2)>",
    "an evil \u202eoverride\u202c, a zero\u200bwidth space and a line\u2028separator",
    "{{ 7*7 }} {% raw %} ${7*7} <!-- ]]> &lt;b&gt; $x^2$",
    "👩‍👩‍👧 emoji, שלום ו-مرحبا, e\u0301\u0301\u0301, \x00\x07\x1b[31mred",
    "w" * 900,
    "| a | b |\n|---|---|\n```\nfence\n```` and `code`",
)

TRAINED = (
    "keywords:existence",
    "keywords:forbidden_words",
    "keywords:frequency",
    "length:number_words",
    "length:number_sentences",
    "length:number_paragraphs",
    "format:bullets",
    "format:title",
    "format:json",
    "case:lowercase",
    "case:capital_word_frequency",
    "punctuation:no_comma",
    "start_end:quotation",
    "start_end:end_phrase",
    "language:response_language",
)
UNSEEN = ("content:postscript", "content:placeholders", "format:highlights", "case:uppercase", "letters:frequency")
TASKS = (
    "Describe a walk through a quiet harbour town at dawn.",
    "Explain how yeast makes bread rise.",
    "Write a short note to a neighbour about a lost cat.",
    "List what to pack for two days in the mountains.",
    "Summarise why leaves change colour in autumn.",
    "Suggest a name for a small bicycle repair shop.",
)
TIDE = (
    "the harbour wakes slowly while boats lean on their ropes and a baker opens the door so that warm light falls on "
    "wet stones where gulls argue about yesterday and nobody hurries because the tide decides when the day may begin"
)
WORDS = TIDE.split()


def build(
    folder: Path,
    *,
    seed: int = 0,
    prompts: int = 250,
    unseen: int = 60,
    steps: int = 160,
    gain: float = 0.13,
    kind: str = "run",
) -> Path:
    """Write a finished run folder. `gain`: how much more often the steered model follows an instruction."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    answers = (
        []
        if kind == "align"
        else [*_answers(rng, "held_out", TRAINED, prompts, gain), *_answers(rng, "unseen_kinds", UNSEEN, unseen, gain)]
    )
    _lines(folder / "samples.jsonl", answers)
    _lines(folder / "metrics.jsonl", [_step(rng, step, steps) for step in range(1, steps + 1)])
    _json(folder / "evaluation.json", _align_evaluation() if kind == "align" else _evaluation(rng, answers))
    _json(folder / "resolved.json", {"seed": seed, "dtype": "float32"})
    _json(folder / "manifest.json", _manifest(kind))
    (folder / "spec.yaml").write_text(ALIGN_SPEC if kind == "align" else SPEC, "utf-8")
    return folder


SPEC = """\
# Follow verifiable instructions, on two cores.
objective:  {verifiable_instructions: {train: 160, validation: 100, held_out: 250}}
generator:  {language_model: {model: smollm2-135m-instruct, lora: {rank: 16}}}
feedback:   {on_policy: {samples_per_prompt: 8, select: best_worst}}
optimizer:  {dpo: {beta: 0.1, learning_rate: 1.0e-3}}
evaluation: [instruction_accuracy, kl, length, fluency, negative_flips]
seed: 0
"""
ALIGN_SPEC = """\
data: {preferences: {file: /home/somebody/secret project/pairs.jsonl, held_out: 0.1}}
generator: {language_model: {model: "/srv/models/tiny base: v1"}}
optimizer: {dpo: {beta: 0.1}}
seed: 0
"""


def _answers(
    rng: np.random.Generator, split: str, kinds: tuple[str, ...], number: int, gain: float
) -> list[dict[str, Any]]:
    hardness = {kind: rng.uniform(0.35, 0.9) for kind in kinds}
    lift = {kind: rng.normal(gain, 0.12) for kind in kinds}
    rows = []
    for index in range(number):
        mine = [str(kind) for kind in rng.choice(kinds, size=int(rng.integers(1, 4)), replace=False)]
        prompt = f"{TASKS[index % len(TASKS)]} " + " ".join(
            f"Mind this ({kind.split(':')[1].replace('_', ' ')})." for kind in mine
        )
        if index < len(NASTY):
            prompt += f" {NASTY[index]}"
        noise = rng.random(len(mine))
        for model in ("base", "steered"):
            checks = []
            for kind, draw in zip(mine, noise):
                shifted = draw if rng.random() < 0.8 else rng.random()
                followed = bool(shifted < hardness[kind] + (lift[kind] if model == "steered" else 0.0))
                checks.append(
                    {
                        "kind": kind,
                        "params": {},
                        "wording": f"Mind this ({kind.split(':')[1].replace('_', ' ')}).",
                        "followed": followed,
                        "decided": True,
                        "why": "found as asked"
                        if followed
                        else f"expected at least 2, found {int(rng.integers(0, 2))}",
                    }
                )
            length = int(np.clip(rng.gamma(4.0, 28.0 if model == "base" else 31.0), 4, 256))
            text = " ".join(str(word) for word in rng.choice(WORDS, size=length))
            text = text.capitalize() + "." if index >= len(NASTY) else f"{NASTY[index]}\n{text[:80]}"
            rows.append(
                {
                    "stage": "evaluation",
                    "split": split,
                    "model": model,
                    "id": f"{split}-{index:04d}",
                    "prompt": prompt,
                    "completion": text,
                    "sample": 0,
                    "finish_reason": "length" if length == 256 else "eos",
                    "num_tokens": length,
                    "logp_base": float(rng.normal(-1.2 if model == "base" else -1.1, 0.2)),
                    "checks": checks,
                    "followed": all(check["followed"] for check in checks),
                    "mode": "strict",
                }
            )
    return rows


def _step(rng: np.random.Generator, step: int, steps: int) -> dict[str, Any]:
    part = step / steps
    chosen, rejected = 0.4 * part + rng.normal(0, 0.08), -1.1 * part + rng.normal(0, 0.1)
    row: dict[str, Any] = {
        "step": step,
        "round": 1 + (step > steps // 2),
        "epoch": 4 * part,
        "loss": float(0.69 * np.exp(-1.1 * part) + rng.normal(0, 0.03)),
        "learning_rate": 1e-3 * (1 - part),
        "grad_norm": float(rng.gamma(4, 0.4)),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": float(np.clip(0.5 + 0.4 * part + rng.normal(0, 0.07), 0, 1)),
        "logps/chosen": -180 + 6 * part + rng.normal(0, 4),
        "logps/rejected": -190 - 14 * part + rng.normal(0, 4),
        "nll_loss": 1.3 - 0.2 * part + rng.normal(0, 0.03),
        "num_tokens": 900 * step,
        "step_time": 1.9,
    }
    if step % (steps // 8) == 0:
        row |= {
            "eval_loss": 0.66 - 0.2 * part,
            "eval_rewards/accuracies": 0.52 + 0.3 * part,
            "eval_rewards/margins": 1.1 * part,
        }
    return row


def _paired(rng: np.random.Generator, base: np.ndarray, steered: np.ndarray) -> dict[str, Any]:
    change = steered - base
    means = change[rng.integers(0, len(change), (400, len(change)))].mean(1)
    return {
        "base": float(base.mean()),
        "steered": float(steered.mean()),
        "difference": float(change.mean()),
        "interval": [float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))],
    }


def _evaluation(rng: np.random.Generator, answers: list[dict[str, Any]]) -> dict[str, Any]:
    metrics, by_kind, flips = [], [], {}
    for split in ("held_out", "unseen_kinds"):
        base, steered = (
            [row for row in answers if row["split"] == split and row["model"] == model] for model in ("base", "steered")
        )
        rule = {
            "split": split,
            "level": 0.95,
            "n": len(base),
            "measured_by": "instruction checkers, strict",
            "independence": "same_rule_held_out",
        }
        pair = [np.array([float(row["followed"]) for row in rows]) for rows in (base, steered)]
        both = [
            np.array([np.mean([check["followed"] for check in row["checks"]]) for row in rows])
            for rows in (base, steered)
        ]
        metrics += [
            {"name": "prompt_accuracy"} | _paired(rng, *pair) | rule,
            {"name": "instruction_accuracy"} | _paired(rng, *both) | rule,
        ]
        flips[split] = {
            "gained": int(((pair[0] == 0) & (pair[1] == 1)).sum()),
            "lost": int(((pair[0] == 1) & (pair[1] == 0)).sum()),
            "both": int(((pair[0] == 1) & (pair[1] == 1)).sum()),
            "neither": int(((pair[0] == 0) & (pair[1] == 0)).sum()),
            "mcnemar_p": 0.0004,
        }
        for kind in TRAINED if split == "held_out" else UNSEEN:
            pairs = [
                (float(a["followed"]), float(b["followed"]))
                for before, after in zip(base, steered)
                for a, b in zip(before["checks"], after["checks"])
                if a["kind"] == kind
            ]
            if pairs:
                columns = np.array(pairs).T
                by_kind.append({"kind": kind, "split": split, "n": len(pairs)} | _paired(rng, columns[0], columns[1]))
    rule = {
        "split": "held_out",
        "level": 0.95,
        "n": 250,
        "measured_by": "the base model's log-probabilities",
        "independence": "independent",
    }
    base, steered = (
        [row for row in answers if row["split"] == "held_out" and row["model"] == model]
        for model in ("base", "steered")
    )
    for name, field in (("completion_tokens", "num_tokens"), ("logp_base_per_token", "logp_base")):
        metrics.append(
            {"name": name}
            | _paired(rng, *(np.array([float(row[field]) for row in rows]) for rows in (base, steered)))
            | rule
        )
    lost = flips["held_out"]["lost"] / len(base)
    metrics += [
        {
            "name": "negative_flips",
            "base": None,
            "steered": lost,
            "difference": lost,
            "interval": [lost - 0.02, lost + 0.03],
        }
        | rule,
        {"name": "kl", "base": None, "steered": 0.214, "difference": None, "interval": None} | rule,
        {"name": "distinct_2", "base": 0.842, "steered": 0.829, "difference": -0.013, "interval": [-0.03, 0.004]}
        | rule,
        {"name": "repetition", "base": 0.031, "steered": 0.044, "difference": 0.013, "interval": [0.002, 0.024]} | rule,
    ]
    warnings = [
        {
            "code": "likelihood_displacement",
            "message": "Rejected answers lost 14 nats while chosen ones gained 6: likelihood moves elsewhere.",
        },
        {"code": "odd", "message": f"A text in a warning: {NASTY[0]} {NASTY[3]}"},
    ]
    return {
        "metrics": metrics,
        "by_kind": by_kind,
        "flips": flips,
        "warnings": warnings,
        "mode": "strict",
        "criteria": [],
    }


def _align_evaluation() -> dict[str, Any]:
    rule = {
        "split": "held_out",
        "level": 0.95,
        "n": 120,
        "measured_by": "held-out preferences of the file",
        "independence": "independent",
    }
    return {
        "metrics": [
            {
                "name": "ranking_accuracy",
                "base": 0.525,
                "steered": 0.683,
                "difference": 0.158,
                "interval": [0.075, 0.242],
            }
            | rule,
            {"name": "reward_margin", "base": None, "steered": 0.41, "difference": None, "interval": None} | rule,
            {"name": "chosen_logp", "base": -182.4, "steered": -181.9, "difference": 0.5, "interval": [-1.4, 2.1]}
            | rule,
        ],
        "warnings": [],
    }


def _manifest(kind: str) -> dict[str, Any]:
    align = kind == "align"
    return {
        "name": "own-pairs" if align else "demo",
        "key": "1a2b3c4d" * 8,
        "kind": kind,
        "started": "2026-01-05T09:00:00+00:00",
        "finished": "2026-01-05T09:10:52+00:00",
        "versions": {
            "optative": "0.1.0",
            "python": "3.12.3",
            "torch": "2.9.0",
            "transformers": "5.1.0",
            "peft": "0.18.0",
            "numpy": "2.3.4",
        },
        "hardware": {
            "processor": "Some Processor, 2 cores",
            "threads": 2,
            "memory_bytes": 8_000_000_000,
            "accelerator": None,
        },
        "base_model": {
            "name": "/srv/models/tiny base: v1" if align else "smollm2-135m-instruct",
            "fingerprint": "ab12" * 16,
            "template_hash": "cd34" * 16,
        },
        "dtype": "float32",
        "dtype_reason": "no fast bfloat16 on this CPU",
        "trained_on": ["pairs.jsonl, training part"] if align else ["instruction checkers, strict"],
        "measured_by": ["pairs.jsonl, held-out part"] if align else ["instruction checkers, strict"],
        "wall_seconds": {
            "model": 4.2,
            "evaluate_base": 131.0,
            "sample_1": 96.4,
            "train_1": 118.0,
            "sample_2": 101.2,
            "train_2": 121.5,
            "evaluate_steered": 140.3,
        },
        "counts": {
            "prompts": {"train": 160, "held_out": 250},
            "pairs": 294,
            "ties": 26,
            "duplicates": 3,
            "truncated": 0,
            "dropped": 0,
        },
        "peak_memory_bytes": 3_910_000_000,
        "data": {"file": "/home/somebody/secret project/pairs.jsonl"} if align else {"held_out_hash": "ef56" * 8},
    }


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
