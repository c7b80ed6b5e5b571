"""Preference training against TRL's DPOTrainer on the same machine: speed, memory, and the share of the ceiling.

.venv/bin/python benchmarks/training.py [--quick] [--search] [--table NAME ...] [--pairs N] [--search-pairs N]

Both programs train SmolLM2-135M with DPO for one epoch of the pairs in `lengths.json`, reference pass included, each
in a process of its own, in turn. Seconds run from encoded pairs to the end of the last step. Memory is the highest
resident size after the model was loaded, above the one then. `--search` looks for TRL's best settings on this machine
and stores all that it tried; without it the stored ones are used. `--quick` takes 16 pairs and 3 equal steps, searches
nothing and stores nothing. Seconds of the processor are given too: beside other work they are the fairer ones.

The ceiling of a program is the number of operations that its way of computing needs (multiplications and additions of
matrix products; ours lays a shared prompt out once, TRL pads rows), at the rate that this machine reaches on products
of these shapes and this dtype, measured in the same process. Results: `results/training.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "training.json"
MODEL = "smollm2-135m-instruct"
RANK, BETA, RATE = 16, 0.1, 1e-4
PAIRS, SEARCH_PAIRS, QUICK_PAIRS = 256, 32, 16
PAIRS_PER_STEP = 8  # TRL's default
EQUAL_STEPS, EQUAL_PAIRS_PER_STEP = 20, 2

# Bars: pairs per second over TRL's defaults and over its best settings, and peak memory over that of either.
BARS = {
    "lora float32": {"defaults": 4.0, "best": 2.0, "memory": 1 / 3},
    "lora best dtype": {"defaults": 4.0, "best": 2.0, "memory": 1 / 3},
    "full float32": {"defaults": 3.0},
}
EQUAL_WITHIN = 1e-3
SHARE_FLOAT32 = 0.5

# The search starts here and keeps, axis by axis, what was fastest. `padding_free` is switched off in TRL 1.16.
START: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
    "precompute_ref_log_probs": False,
}
AXES: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple({"per_device_train_batch_size": b, "gradient_accumulation_steps": 8 // b} for b in (1, 2, 4, 8)),
    ({"train_sampling_strategy": "random"},),
    ({"precompute_ref_log_probs": True}, {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 8}),
    ({"gradient_checkpointing": True},),
)
# How TRL can use bfloat16: weights of that dtype, or float32 weights under autocast (its default).
HALF = ({"dtype": "bfloat16"}, {"dtype": "float32", "bf16": True}, {"dtype": "bfloat16", "bf16": True})


# -------------------- the pairs


def encoded_pairs(tokenizer: Any, count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen, rejected as ids: random words of one token each, so that their text encodes to the same ids."""
    lengths = json.loads((HERE / "lengths.json").read_text())
    words = sorted(
        i
        for word, i in tokenizer.get_vocab().items()
        if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha() and word[1:].islower() and len(word) > 3
    )
    rng = random.Random(0)
    rows = list(zip(lengths["prompt"], lengths["chosen"], lengths["rejected"]))[:count]
    end = tokenizer.eos_token_id
    return [
        (rng.choices(words, k=p), [*rng.choices(words, k=c - 1), end], [*rng.choices(words, k=r - 1), end])
        for p, c, r in rows
    ]


# -------------------- one program, one process


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(field)


class Meter:
    """Wall and processor seconds, and the memory above what was resident when it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.base = resident("VmRSS")
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self.wall,
            "cpu_seconds": time.process_time() - self.cpu,
            "peak_bytes": resident("VmHWM") - self.base,
            "model_bytes": self.base,
        }


def in_our_order(pairs: list[Any], pairs_per_step: int) -> list[Any]:
    from optative.training.batches import step_plan

    return [pairs[i] for step in step_plan(len(pairs), pairs_per_step, 1, 0) for i in step]


def run_ours(job: dict[str, Any]) -> dict[str, Any]:
    from optative.generators.language.adapters import save_adapter
    from optative.generators.language.load import load_language_model
    from optative.generators.language.packing import Group
    from optative.generators.language.trained import prepare_training
    from optative.generators.options import LoraOptions
    from optative.optimizers.options import DPO
    from optative.optimizers.preference import reference_sums, train_preferences
    from optative.optimizers.units import Unit

    lm = load_language_model(MODEL, dtype=job["dtype"])
    own_memory(lm.model)
    pairs = encoded_pairs(lm.tokenizer, job["pairs"])
    groups = [Group(tuple(p), (tuple(c), tuple(r))) for p, c, r in pairs]
    units = [Unit(str(i), group) for i, group in enumerate(groups)]
    options = DPO(
        beta=BETA,
        learning_rate=RATE,
        schedule="constant",
        warmup_ratio=0,
        units_per_step=job.get("pairs_per_step", PAIRS_PER_STEP),
        checkpoint_every=10**6,
        **job["settings"],
    )
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        meter = Meter()
        prepare_training(lm, LoraOptions(rank=RANK, alpha=2 * RANK) if job["method"] == "lora" else None, 0)
        if job.get("adapter"):
            save_adapter(lm, job["adapter"])
        train_preferences(
            lm,
            units,
            reference_sums(lm, units, range(len(units)), options),
            loss="dpo",
            options=options,
            seed=0,
            key="benchmark",
            journal_path=Path(scratch) / "metrics.jsonl",
            journal_start=0,
            checkpoints=Path(scratch) / "checkpoints",
            on_step=lambda step, steps, line: losses.append(line["loss"]),
        )
        found = meter.read()
    shape = Shape(lm.model.config if job["method"] == "full" else lm.model.get_base_model().config, job["method"])
    operations = sum(shape.shared(len(p), (len(c), len(r))) for p, c, r in pairs)
    return {
        **found,
        "losses": losses,
        "operations": operations,
        "rate": shape.rate(str(lm.dtype).removeprefix("torch."), options.scoring_budget),
    }


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from optative.generators.language.load import default_model

    settings = {"bf16": False, **job["settings"]}
    dtype = settings.pop("dtype", job["dtype"])
    folder = default_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    own_memory(model)
    shape = Shape(model.config, job["method"])
    pairs = encoded_pairs(tokenizer, job["pairs"])
    if job.get("adapter"):
        pairs = in_our_order(pairs, job["pairs_per_step"])
    rows = []
    for pair in pairs:
        prompt, chosen, rejected = (tokenizer.decode(ids).removesuffix(tokenizer.eos_token) for ids in pair)
        length = len(pair[0]) + max(len(pair[1]), len(pair[2]))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "length": length})
    losses: list[float] = []
    batches: list[tuple[int, int, int]] = []  # rows, width, steps that compute it

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    class Trainer(DPOTrainer):
        encoding = 0.0

        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return super()._prepare_dataset(*args, **kwargs)
            finally:
                type(self).encoding += time.perf_counter() - began

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            batches.append(tuple(inputs["input_ids"].shape))
            return super()._compute_loss(model, inputs, return_outputs)

    with tempfile.TemporaryDirectory() as scratch:
        config = DPOConfig(
            output_dir=scratch,
            num_train_epochs=1,
            learning_rate=RATE,
            beta=BETA,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns="train_sampling_strategy" not in settings,
            **settings,
        )
        lora = None
        if job.get("adapter"):
            model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
        elif job["method"] == "lora":
            lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        meter = Meter()
        trainer = Trainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Losses()],
        )
        trainer.train()
        found = meter.read()
        found["seconds"] -= Trainer.encoding
        ids = trainer.train_dataset[:]
        assert [tuple(map(list, p)) for p in zip(ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"])] == pairs
    operations = sum(shape.padded(n, width, twice=config.gradient_checkpointing) for n, width in batches)
    rate = shape.rate("bfloat16" if config.bf16 else dtype, max(n * width for n, width in batches))
    return {**found, "losses": losses, "operations": operations, "rate": rate}


def own_memory(model: Any) -> None:
    """Weights that are mapped from their file would count only as they are touched."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


# -------------------- operations


class Shape:
    """Multiplications and additions of the matrix products of one epoch, and the rate of products of these shapes."""

    def __init__(self, config: Any, method: str) -> None:
        size, inner, self.layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        keys = config.num_key_value_heads * (size // config.num_attention_heads)
        self.products = [(size, size), (size, keys), (size, keys), (size, size)]
        self.products += [(size, inner), (size, inner), (inner, size)]
        self.head, self.size, self.full = (size, config.vocab_size), size, method == "full"

    def shared(self, prompt: int, answers: tuple[int, ...]) -> float:
        """Reference and training of one group whose prompt is laid out once, with logits for answers only."""
        seen = prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in answers)
        return self._total(prompt + sum(answers), seen, sum(answers), again=0)

    def padded(self, rows: int, width: int, *, twice: bool) -> float:
        """Reference and training of a padded batch, with logits at every place, as TRL computes it on a processor."""
        return self._total(rows * width, rows * width * (width + 1) // 2, rows * (width - 1), again=int(twice))

    def _total(self, tokens: int, seen: int, predicted: int, *, again: int) -> float:
        """Passes of the layers: reference, forward, forward again, and the gradient by inputs (and by weights)."""
        backward = 2 if self.full else 1
        linear = 2 * tokens * self.layers * sum(i * o for i, o in self.products)
        adapters = 0 if self.full else 2 * tokens * self.layers * RANK * sum(i + o for i, o in self.products)
        attention = 4 * seen * self.size * self.layers
        head = 2 * predicted * self.head[0] * self.head[1]
        # The head's logits are needed for the reference, for the value, and unless they were used at once, again.
        head_passes = 2 + backward + (1 if self.full or again else 0)
        return (
            linear * (2 + again + backward)
            + adapters * (1 + again + 2)
            + attention * (2 + again + 2)
            + head * head_passes
        )

    def rate(self, dtype: str, tokens: int) -> float:
        """Operations a second of the layers' products, forward and by inputs, the best of several rounds."""
        import torch

        tokens = min(tokens, 2048)
        kind = getattr(torch, dtype)
        cases = [(torch.randn(tokens, i).to(kind), torch.randn(o, i).to(kind)) for i, o in set(self.products)]
        times = [float("inf")] * (2 * len(cases))
        operations = [2.0 * tokens * w.shape[0] * w.shape[1] for _, w in cases for _ in (0, 1)]
        weights = [self.products.count((w.shape[1], w.shape[0])) for _, w in cases for _ in (0, 1)]
        with torch.no_grad():
            outputs = [x @ w.t() for x, w in cases]
            for _ in range(20):
                for i, ((x, w), y) in enumerate(zip(cases, outputs)):
                    for j in (0, 1):
                        began = time.perf_counter()
                        torch.mm(x, w.t()) if j == 0 else torch.mm(y, w)
                        times[2 * i + j] = min(times[2 * i + j], time.perf_counter() - began)
        return sum(o * n for o, n in zip(operations, weights)) / sum(t * n for t, n in zip(times, weights))


# -------------------- both programs


def worker(job: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(job["threads"])
    print("RESULT " + json.dumps({"ours": run_ours, "trl": run_trl}[job["program"]](job)), flush=True)


def launch(job: dict[str, Any]) -> dict[str, Any]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job["threads"]),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "worker", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found = json.loads(line.removeprefix("RESULT "))
            found["settings"] = job["settings"]
            found |= {"pairs": job["pairs"], "threads": job["threads"]}
            found["pairs_per_second"] = job["pairs"] / found["seconds"]
            found["pairs_per_cpu_second"] = job["pairs"] / found["cpu_seconds"]
            found["share"] = found["operations"] / found["seconds"] / found["rate"]
            found["ceiling_pairs_per_second"] = job["pairs"] * found["rate"] / found["operations"]
            return found
    raise RuntimeError(f"{job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def search(method: str, half: bool, threads: int, pairs: int) -> dict[str, Any]:
    """TRL's fastest settings on this machine and all that was tried, on a part of the pairs."""
    tried: list[dict[str, Any]] = []

    def measure(settings: dict[str, Any]) -> float:
        job = {"program": "trl", "method": method, "dtype": "float32", "pairs": pairs, "threads": threads}
        found = launch({**job, "settings": settings})
        tried.append({k: found[k] for k in ("settings", "pairs_per_second", "peak_bytes")})
        print(f"  tried {found['pairs_per_second']:.3f} pairs/s {settings}", flush=True)
        return float(found["pairs_per_second"])

    best = START | (HALF[0] if half else {})
    fastest = 0.0
    for axis in (HALF, *AXES) if half else AXES:
        for change in axis:
            settings = best | change
            if settings in [t["settings"] for t in tried]:
                continue
            speed = measure(settings)
            if speed > fastest:
                best, fastest = settings, speed
    return {"settings": best, "pairs": pairs, "tried": tried}


def equal_steps(threads: int, steps: int) -> dict[str, Any]:
    """Losses of both programs on the same pairs in each step, from the same adapter, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"method": "lora", "dtype": "float32", "threads": threads, "pairs": steps * EQUAL_PAIRS_PER_STEP}
        job |= {"adapter": f"{folder}/adapter", "pairs_per_step": EQUAL_PAIRS_PER_STEP}
        ours = launch({**job, "program": "ours", "settings": {}})["losses"]
        settings = {
            "train_sampling_strategy": "sequential",
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "per_device_train_batch_size": EQUAL_PAIRS_PER_STEP,
        }
        theirs = launch({**job, "program": "trl", "settings": settings})["losses"]
    return {
        "ours": ours,
        "trl": theirs,
        "largest_difference": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
    }


def table(name: str, pairs: int, threads: int, best: dict[str, Any]) -> dict[str, Any]:
    method, half = name.split()[0], name.endswith("best dtype")
    job = {"method": method, "dtype": "float32", "pairs": pairs, "threads": threads}
    ours = launch({**job, "program": "ours", "dtype": "auto" if half else "float32", "settings": {}})
    fast = launch({**job, "program": "trl", "settings": best})
    defaults = launch({**job, "program": "trl", "settings": {"bf16": True} if half else {}})
    programs = {"optative": ours, "TRL best": fast, "TRL defaults": defaults}
    print(f"\n{name}, {pairs} pairs, {threads} threads")
    print(
        f"{'':14}{'pairs/s':>9}{'ours is':>9}{'by CPU':>9}{'peak MB':>9}{'of theirs':>10}"
        f"{'ceiling':>9}{'reached':>9}{'Gop/s':>8}"
    )
    for label, found in programs.items():
        print(
            f"{label:14}{found['pairs_per_second']:9.3f}"
            f"{ours['pairs_per_second'] / found['pairs_per_second']:8.2f}x"
            f"{ours['pairs_per_cpu_second'] / found['pairs_per_cpu_second']:8.2f}x"
            f"{found['peak_bytes'] / 1e6:9.0f}{ours['peak_bytes'] / found['peak_bytes']:10.2f}"
            f"{found['ceiling_pairs_per_second']:9.3f}{found['share']:9.0%}{found['rate'] / 1e9:8.0f}",
            flush=True,
        )
    return programs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs, no search, nothing is stored")
    parser.add_argument("--search", action="store_true", help="look for TRL's best settings first")
    parser.add_argument("--table", action="append", choices=[*BARS, "equal steps"], help="only this one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, help=f"pairs of each table; default {PAIRS}, all of them")
    parser.add_argument("--search-pairs", type=int, default=SEARCH_PAIRS, help="pairs of each trial of the search")
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.table or [*BARS, "equal steps"]:
        if name == "equal steps":
            found = equal_steps(options.threads, 3 if options.quick else EQUAL_STEPS)
            print(f"\nlosses on equal steps differ by at most {found['largest_difference']:.1e} (bar {EQUAL_WITHIN})")
            stored[name] = found
        else:
            half, searches = name.endswith("best dtype"), stored.setdefault("searches", {})
            if not options.quick and (options.search or name not in searches):
                print(f"\nsearching TRL's best settings: {name}", flush=True)
                searches[name] = search(name.split()[0], half, options.threads, options.search_pairs)
                store(stored, options.threads)
            best = searches[name]["settings"] if name in searches else START | (HALF[0] if half else {})
            pairs = options.pairs or (QUICK_PAIRS if options.quick else PAIRS)
            stored.setdefault("tables", {})[name] = table(name, pairs, options.threads, best)
        if not options.quick:
            store(stored, options.threads)
    found_missed = missed(stored)
    for line in found_missed:
        print("missed:", line)
    return 1 if found_missed and not options.quick else 0


def store(stored: dict[str, Any], threads: int) -> None:
    """Write what is known so far; a call that is cut off keeps its finished tables."""
    stored |= {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": {"processor": processor(), "threads": threads, "platform": platform.platform()},
        "versions": {p: version(p) for p in ("optative", "torch", "transformers", "peft", "trl")},
        "bars": BARS | {"equal steps": EQUAL_WITHIN, "share in float32": SHARE_FLOAT32},
        "missed": missed(stored),
    }
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def missed(stored: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in stored.get("tables", {}).items():
        ours = found["optative"]
        for other, bar in (("TRL defaults", "defaults"), ("TRL best", "best")):
            ratio = ours["pairs_per_second"] / found[other]["pairs_per_second"]
            if bar in BARS[name] and ratio < BARS[name][bar]:
                lines.append(f"{name}: {ratio:.2f} times {other}, bar {BARS[name][bar]}")
            share = ours["peak_bytes"] / found[other]["peak_bytes"]
            if "memory" in BARS[name] and share > BARS[name]["memory"]:
                lines.append(f"{name}: {share:.2f} of the memory of {other}, bar {BARS[name]['memory']:.2f}")
        if name.endswith("float32") and ours["share"] < SHARE_FLOAT32:
            lines.append(f"{name}: {ours['share']:.0%} of the ceiling, bar {SHARE_FLOAT32:.0%}")
    if stored.get("equal steps", {}).get("largest_difference", 0) > EQUAL_WITHIN:
        lines.append(f"losses on equal steps differ by {stored['equal steps']['largest_difference']:.1e}")
    return lines


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.processor()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
