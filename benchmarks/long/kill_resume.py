"""Kill a real run with SIGKILL at five random moments, resume it, and compare it with one that was left alone.

    .venv/bin/python benchmarks/long/kill_resume.py

Runs the quick form of the main job on the real model twice: once undisturbed, once killed five times. Adapter weights,
metrics, evaluation and samples must be equal to the byte. Writes `benchmarks/results/kill_resume.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = ("adapter/adapter_model.safetensors", "metrics.jsonl", "evaluation.json", "samples.jsonl")


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--dtype", default="float32", help="fixed, so that both runs make the same choice")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    optative = str(Path(sys.executable).parent / "optative")
    with tempfile.TemporaryDirectory() as home:

        def start(name: str) -> subprocess.Popen[bytes]:
            command = [optative, "run", "--quick", "--out", str(Path(home) / name)]
            settings = [f"generator.language_model.dtype={asked.dtype}", "optimizer.dpo.checkpoint_every=1"]
            settings += ["optimizer.dpo.units_per_step=4"]
            return subprocess.Popen(command + [p for s in settings for p in ("--set", s)], stdout=subprocess.DEVNULL)

        began = time.monotonic()
        if start("whole").wait():
            return 1
        whole_seconds = time.monotonic() - began
        killed_after = []
        while len(killed_after) < 5:
            child = start("cut")
            wait = rng.uniform(0.08, 0.25) * whole_seconds  # the first part of each attempt is spent on starting
            try:
                child.wait(wait)
                break  # it came to its end before the kill: what is left is shorter than the wait
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                killed_after.append(round(wait, 1))
        if start("cut").wait():
            return 1
        whole, cut = hashes(Path(home) / "whole"), hashes(Path(home) / "cut")
        steps = (Path(home) / "cut" / "metrics.jsonl").read_text().count("\n")
    equal = {name: whole[name] == cut[name] for name in FILES}
    record = {
        "command": " ".join(["python", "benchmarks/long/kill_resume.py", *sys.argv[1:]]),
        "uninterrupted_seconds": round(whole_seconds, 1),
        "killed_after_seconds": killed_after,
        "steps": steps,
        "equal": equal,
    }
    (HERE.parent / "results").mkdir(exist_ok=True)
    (HERE.parent / "results" / "kill_resume.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
