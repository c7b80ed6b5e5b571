"""Would `torch.compile` make a training step faster? The plain model, the plain model compiled, and our layers.

.venv/bin/python benchmarks/compiled.py [--dtype bfloat16] [--tokens 768]

One prompt and one answer of the default model with LoRA of rank 16, forward and backward, in turn in one process; the
median of several rounds. The compiler gets fixed shapes, which packs do not have, so this is the most it could give.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group, Pack
from optative.generators.language.score import score_pack
from optative.generators.language.trained import prepare_training
from optative.generators.options import LoraOptions

PROMPT = 64  # tokens without loss
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, default=768)
    asked = parser.parse_args()
    lm, other = (load_language_model("smollm2-135m-instruct", dtype=asked.dtype) for _ in range(2))
    for each in (lm, other):
        prepare_training(each, LoraOptions(rank=16), 0)
        each.model.train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40_000, (asked.tokens,), generator=generator).tolist()
    pack = Pack((Group(tuple(ids[:PROMPT]), (tuple(ids[PROMPT:]),)),), (0,))
    ids_1T = torch.tensor([ids])
    compiled = torch.compile(other.model, dynamic=False)

    def plain(model: Callable[..., Any]) -> torch.Tensor:
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, PROMPT - 1 : -1].float()
        return logits_TV.log_softmax(-1).gather(1, ids_1T[0, PROMPT:, None]).sum()

    def ours() -> torch.Tensor:
        found = score_pack(lm, pack).logps
        assert found is not None
        return found.sum()

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: plain(other.model),
        "plain, compiled": lambda: plain(compiled),
        "optative": ours,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            lm.model.zero_grad(set_to_none=True)
            other.model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            value = way()
            value.backward()
            seconds[name].append(time.perf_counter() - began)
            values[name] = float(value.detach())
    best = statistics.median(seconds["optative"][1:])
    print(f"{asked.dtype}, {asked.tokens} tokens, {torch.get_num_threads()} threads")
    for name, own in seconds.items():
        middle = statistics.median(own[1:])
        times = f"{middle:.3f} s, {middle / best:.2f} of optative's; first call {own[0]:.0f} s"
        print(f"{name:16} {times}; sum {values[name]:.2f}")


if __name__ == "__main__":
    main()
