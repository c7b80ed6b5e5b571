"""Run a spec with several seeds, each in a process of its own, and record what came out.

    .venv/bin/python benchmarks/long/seeds.py --name demo                                  # the main job, seeds 0 1 2
    .venv/bin/python benchmarks/long/seeds.py --name full examples/instruction_following_full.yaml --seeds 0

Writes `benchmarks/results/<name>.json`: for each seed the wall time from the run's first start to its end, the peak
memory of its process, the figures of its evaluation with their intervals, the warnings, the versions and the hardware;
and whether each bar is met. A seed that is recorded already is kept as it is; a run that is there already is resumed,
or only read where it is finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SMALLEST_GAIN = {"demo": 0.08, "full": 0.15}  # of prompt accuracy on held-out prompts, as the first issue states it
LENGTH_RATIO = (0.5, 2.0)
SMALLEST_DISTINCT_2_RATIO = 0.9
LARGEST_FALL_OF_FLUENCY = 0.3  # nats


def one(spec: Path | None, seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Run one seed to its end, unless that was done before, and read what it left."""
    if not (folder / "manifest.json").exists() or "finished" not in json.loads((folder / "manifest.json").read_text()):
        _run(spec, seed, folder, settings)
    manifest = json.loads((folder / "manifest.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    started, finished = (datetime.fromisoformat(manifest[name]) for name in ("started", "finished"))
    return {
        "seed": seed,
        "wall_seconds": (finished - started).total_seconds(),
        "peak_memory_bytes": manifest["peak_memory_bytes"],
        "dtype": [manifest["dtype"], manifest["dtype_reason"]],
        "stage_seconds": manifest["wall_seconds"],
        "counts": manifest["counts"],
        "metrics": evaluation["metrics"],
        "flips": {
            split: {k: v for k, v in own.items() if k != "by_kind"} for split, own in evaluation["flips"].items()
        },
        "warnings": evaluation["warnings"],
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
    }


def _run(spec: Path | None, seed: int, folder: Path, settings: list[str]) -> None:
    command = [
        str(Path(sys.executable).parent / "optative"),
        "run",
        *([str(spec)] if spec else []),
        "--out",
        str(folder),
    ]
    for setting in [f"seed={seed}", *settings]:
        command += ["--set", setting]
    if status := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"seed {seed} ended with status {status}")


def verdicts(result: dict[str, Any], name: str) -> dict[str, bool]:
    """Each bar of the issue, met or not, from the figures of one seed on the held-out prompts."""
    found = {m["name"]: m for m in result["metrics"] if m["split"] == "held_out"}
    accuracy, length = found["prompt_accuracy"], found["completion_tokens"]
    low, high = LENGTH_RATIO
    distinct, fluency = found["distinct_2"], found["logp_base_per_token"]
    return {
        "gain": accuracy["difference"] >= SMALLEST_GAIN[name],
        "interval above zero": accuracy["interval"][0] > 0,
        "length ratio": low <= length["steered"] / length["base"] <= high,
        "distinct-2": distinct["steered"] / distinct["base"] >= SMALLEST_DISTINCT_2_RATIO,
        "fluency": fluency["difference"] >= -LARGEST_FALL_OF_FLUENCY,
    }


def read(record: Path) -> list[dict[str, Any]]:
    return json.loads(record.read_text())["seeds"] if record.exists() else []


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table, one line a seed; the README shows it."""
    columns = (
        "seed",
        "prompts",
        "base",
        "steered",
        "difference (95 % interval)",
        "kinds never trained on",
        "gained, lost",
        "length ratio",
        "distinct-2 ratio",
        "fluency, nats",
        "KL, nats",
        "minutes",
        "peak memory",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "--:|" * len(columns)]
    for seed in record["seeds"]:
        found = {(m["name"], m["split"]): m for m in seed["metrics"]}
        accuracy, unseen = (found["prompt_accuracy", split] for split in ("held_out", "unseen_kinds"))
        length, distinct = found["completion_tokens", "held_out"], found["distinct_2", "held_out"]
        flips = seed["flips"]["held_out"]
        low, high = (100 * end for end in accuracy["interval"])
        cells = (
            seed["seed"],
            accuracy["n"],
            f"{accuracy['base']:.1%}",
            f"{accuracy['steered']:.1%}",
            f"{100 * accuracy['difference']:+.1f} points ({low:+.1f} to {high:+.1f})",
            f"{unseen['base']:.1%} to {unseen['steered']:.1%} (n {unseen['n']})",
            f"{flips['gained']}, {flips['lost']}",
            f"{length['steered'] / length['base']:.2f}",
            f"{distinct['steered'] / distinct['base']:.2f}",
            f"{found['logp_base_per_token', 'held_out']['difference']:+.2f}",
            f"{found['kl', 'held_out']['steered']:.2f}",
            f"{seed['wall_seconds'] / 60:.1f}",
            f"{seed['peak_memory_bytes'] / 1e9:.1f} GB",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, help="a spec; without one, the example that optative comes with")
    parser.add_argument("--name", required=True, choices=SMALLEST_GAIN, help="name of the record, and whose bars count")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders go")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="passed on to optative run")
    asked = parser.parse_args()
    record = HERE.parent / "results" / f"{asked.name}.json"
    for seed in asked.seeds:
        if seed in {old["seed"] for old in read(record)}:
            continue
        result = one(asked.spec, seed, asked.runs / f"{asked.name}-seed{seed}", asked.set)
        result["bars"] = verdicts(result, asked.name)
        command = ["python", "benchmarks/long/seeds.py", *sys.argv[1:]]
        results = sorted([*read(record), {**result, "command": " ".join(command)}], key=lambda r: r["seed"])
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps({"seeds": results}, indent=1, ensure_ascii=False) + "\n")
        found = next(m for m in result["metrics"] if m["name"] == "prompt_accuracy" and m["split"] == "held_out")
        print(f"seed {seed}: {found['base']:.1%} -> {found['steered']:.1%} {found['interval']} bars {result['bars']}")
    print(table({"seeds": read(record)}))


if __name__ == "__main__":
    main()
