"""Does a training slow down or need more memory as its file grows? The same pairs, more of them, on a tiny model.

.venv/bin/python benchmarks/long/growth.py [--sizes 1000 200000]

Each size is one `optative align` in a process of its own, on generated pairs of lognormal lengths, short ones, with the
tests' model of two layers, so that what is not the model's own work shows. Pairs per second are those of the training
with its reference pass, and of everything together. Results: `benchmarks/results/growth.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from tiny_models import save_tiny_model

RESULTS = Path(__file__).resolve().parents[1] / "results" / "growth.json"
WORDS = ("river", "stone", "cloud", "apple", "train", "music", "night", "paper", "garden", "window", "silver")
SLOWEST = 0.85  # of the pairs per second of the smallest file


def write_pairs(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    with open(path, "w") as stream:
        for i in range(n):
            prompt, chosen, rejected = (
                " ".join(rng.choice(WORDS, int(np.clip(rng.lognormal(0.7, 0.5), 1, 12)))) for _ in range(3)
            )
            row = {"prompt": f"{i}: {prompt}", "chosen": f"{chosen}.", "rejected": f"{rejected}!"}
            stream.write(json.dumps(row) + "\n")


def one(n: int, model: Path, folder: Path) -> dict[str, Any]:
    pairs = folder / f"{n}.jsonl"
    write_pairs(pairs, n)
    command = [str(Path(sys.executable).parent / "optative"), "align", str(pairs), "--model", str(model)]
    command += ["--out", str(folder / f"run-{n}"), "--set", "dtype=float32", "--set", "dpo.units_per_step=64"]
    command += ["--set", f"held_out={min(0.1, 1000 / n)}", "--set", "dpo.token_budget=2048"]
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{n} pairs: status {os.waitstatus_to_exitcode(status)}")
    manifest = json.loads((folder / f"run-{n}" / "manifest.json").read_text())
    used = manifest["counts"]["used"]["training"]
    stages = manifest["wall_seconds"]
    seconds = stages["train-1"] + stages["reference"]
    return {
        "pairs": n,
        "trained_on": used,
        "pairs_per_second": used / seconds,
        "pairs_per_second_of_everything": n / (time.monotonic() - began),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "stage_seconds": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 200_000])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_tiny_model(folder / "model", max_position_embeddings=1024)
        found = []
        for n in asked.sizes:
            found.append(one(n, folder / "model", folder))
            row = found[-1]
            print(f"{n} pairs: {row['pairs_per_second']:.0f} pairs/s, {row['peak_memory_bytes'] / 1e9:.2f} GB")
    ratio = found[-1]["pairs_per_second"] / found[0]["pairs_per_second"]
    print(f"the largest file reaches {ratio:.0%} of the smallest's pairs per second (bar {SLOWEST:.0%})")
    RESULTS.write_text(json.dumps({"sizes": found, "ratio": ratio, "met": ratio >= SLOWEST}, indent=1) + "\n")


if __name__ == "__main__":
    main()
