"""Keyed random streams: a number depends on its key alone, never on how many were drawn before.

Knows: NumPy's Philox. Does not know: prompts, batches.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from optative.core.ids import canonical_json


def stream(*key: Any) -> np.random.Generator:
    """A generator for the key, e.g. `stream(seed, "shuffle", epoch)`. Equal keys give equal streams."""
    digest = hashlib.sha256(canonical_json(list(key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def uniforms(count: int, *key: Any) -> np.ndarray:
    """`count` float64 numbers in [0, 1) for the key; number i does not depend on `count`."""
    return stream(*key).random(count)


def seed_from(*key: Any) -> int:
    """A 63-bit seed for libraries that want an integer."""
    digest = hashlib.sha256(canonical_json(list(key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
