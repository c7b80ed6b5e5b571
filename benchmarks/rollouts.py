"""Rollouts against Transformers' own `generate`: tokens per second, and the ceiling by operation count.

.venv/bin/python benchmarks/rollouts.py [--dtype float32 bfloat16] [--rounds 3]

8 prompts of 30 to 120 tokens, 8 samples each, 64 new tokens, temperature 1, end tokens ignored. The two run in turn, in
one process, `--rounds` times; the median counts. Ceiling: every new token multiplies with each weight of the layers and
of the head once; that many operations at the rate that this machine reaches on the same products (64 rows), measured in
the same process. Results: `results/rollouts.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optative.generators.language.load import load_language_model
from optative.generators.language.sample import SamplingSettings, sample

RESULTS = Path(__file__).parent / "results" / "rollouts.json"
MODEL = "smollm2-135m-instruct"
PROMPTS, SAMPLES, NEW = 8, 8, 64
BAR = 3.0


def prompts(lm: Any) -> list[str]:
    """Texts of about 30 to 120 tokens with the template's own, made of the tokenizer's words by a fixed seed."""
    rng = np.random.default_rng(0)
    words = ["the", "river", "and", "a", "stone", "under", "old", "light"]
    lengths = np.linspace(10, 90, PROMPTS).round().astype(int)
    return [" ".join(rng.choice(words, n)) for n in lengths]


def ours(lm: Any, texts: list[str]) -> int:
    endless = dataclasses.replace(lm, eos_ids=())
    done = sample(endless, texts, SAMPLES, SamplingSettings(max_new_tokens=NEW, temperature=1.0), seed=0)
    return sum(len(c.ids) for row in done for c in row)


def theirs(lm: Any, texts: list[str]) -> int:
    tokenizer = lm.tokenizer
    chats = [[{"role": "user", "content": text}] for text in texts]
    tokenizer.padding_side = "left"
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    with torch.no_grad():
        out = lm.model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=SAMPLES,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=lm.pad_id,
        )
    return int(out.shape[0]) * (int(out.shape[1]) - int(inputs["input_ids"].shape[1]))


def rate(lm: Any) -> float:
    """Operations per second on the products of one decoding step: 64 rows with every weight of layers and head."""
    weights = [m.weight.detach() for m in lm.model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(PROMPTS * SAMPLES, w.shape[1], dtype=w.dtype) for w in weights}
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            started = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            seconds.append(time.perf_counter() - started)
    return 2 * PROMPTS * SAMPLES * sum(w.numel() for w in weights) / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "tables": {},
    }
    for dtype in asked.dtype:
        lm = load_language_model(MODEL, dtype=dtype)
        texts = prompts(lm)
        times: dict[str, list[float]] = {"optative": [], "generate": []}
        for warm in range(asked.rounds + 1):
            for name, run in (("optative", ours), ("generate", theirs)):
                started = time.perf_counter()
                tokens = run(lm, texts)
                assert tokens == PROMPTS * SAMPLES * NEW, (name, tokens)
                if warm:
                    times[name].append(tokens / (time.perf_counter() - started))
        own, other = (statistics.median(times[name]) for name in ("optative", "generate"))
        operations = 2 * sum(m.weight.numel() for m in lm.model.modules() if isinstance(m, torch.nn.Linear))
        ceiling = rate(lm) / operations
        found["tables"][dtype] = {
            "optative tokens/s": own,
            "generate tokens/s": other,
            "ratio": own / other,
            "ceiling tokens/s": ceiling,
            "share of the ceiling": own / ceiling,
            "bar": BAR,
            "met": own / other >= BAR,
        }
        print(
            f"{dtype}: {own:.0f} tokens/s, generate {other:.0f}: {own / other:.2f} times (bar {BAR:g}); the ceiling is "
            f"{ceiling:.0f} tokens/s, {own / ceiling:.0%} of it is reached, generate reaches {other / ceiling:.0%}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
