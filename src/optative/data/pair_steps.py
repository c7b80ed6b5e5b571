"""Log-probabilities of the same pairs at several steps of a training, in one Parquet file.

Knows: the columns and their types. Does not know: models, who trained, what the numbers mean
(`evaluation.pair_curves` does).

One row a step and pair: `step` (int64), `id` (string), `chosen` and `rejected` (float64, summed log-probabilities of
the completions, nats), `ref_chosen` and `ref_rejected` (float64, the same under the reference; equal in all steps),
`chosen_tokens` and `rejected_tokens` (int32). Every step holds the same pairs. `beta` of the loss and `part` ("train"
or "held_out") stand in the schema's metadata, as JSON under `optative`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optative.core.errors import InputError
from optative.core.files import write_bytes

FILE = "pairs.parquet"  # its name in a run folder
COLUMNS = ("step", "id", "chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_tokens", "rejected_tokens")


@dataclass(frozen=True)
class PairSteps:
    """Steps S in rising order, pairs B. Log-probabilities in nats; `beta` and `part` as in the file."""

    steps_S: np.ndarray
    ids: tuple[str, ...]
    chosen_SB: np.ndarray
    rejected_SB: np.ndarray
    ref_chosen_B: np.ndarray
    ref_rejected_B: np.ndarray
    chosen_tokens_B: np.ndarray
    rejected_tokens_B: np.ndarray
    beta: float
    part: str = "held_out"

    def __post_init__(self) -> None:
        steps, size = len(self.steps_S), len(self.ids)
        for name in ("chosen_SB", "rejected_SB"):
            _check(name, getattr(self, name), (steps, size))
        for name in ("ref_chosen_B", "ref_rejected_B", "chosen_tokens_B", "rejected_tokens_B"):
            _check(name, getattr(self, name), (size,))
        if not steps or not size:
            raise InputError("no step or no pair", found=(steps, size), expected="at least one of each")
        if (np.diff(self.steps_S) <= 0).any():
            raise InputError("steps do not rise", field="step", found=np.asarray(self.steps_S).tolist()[:10])
        if len(set(self.ids)) != size:
            raise InputError("a pair occurs twice in a step", field="id")
        if not self.beta > 0:
            raise InputError("not a beta", field="beta", found=self.beta, expected="a number above 0")

    def only(self, ids: Iterable[str]) -> PairSteps:
        """The same steps of some of the pairs, in their order here."""
        wanted = set(ids)
        at = [i for i, name in enumerate(self.ids) if name in wanted]
        wide = {name: getattr(self, name)[:, at] for name in ("chosen_SB", "rejected_SB")}
        once = {f"{name}_B": getattr(self, f"{name}_B")[at] for name in COLUMNS[4:]}
        return replace(self, ids=tuple(self.ids[i] for i in at), **wide, **once)


def write_pair_steps(path: str | Path, found: PairSteps) -> None:
    """Write the file, whole or not at all; equal content gives equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps, size = len(found.steps_S), len(found.ids)
    once = {n: np.tile(getattr(found, f"{n}_B"), steps) for n in COLUMNS[4:]}
    types = [pa.int64(), pa.string(), *[pa.float64()] * 4, pa.int32(), pa.int32()]
    values = {
        "step": np.repeat(np.asarray(found.steps_S), size),
        "id": list(found.ids) * steps,
        "chosen": np.asarray(found.chosen_SB, float).reshape(-1),
        "rejected": np.asarray(found.rejected_SB, float).reshape(-1),
        **once,
    }
    about = {"optative": json.dumps({"beta": found.beta, "part": found.part})}
    schema = pa.schema(list(zip(COLUMNS, types)), metadata=about)
    table = pa.table([pa.array(values[n]).cast(t) for n, t in zip(COLUMNS, types)], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_pair_steps(path: str | Path) -> PairSteps:
    """Read the file; rows may stand in any order. Raises InputError naming the column, the step and the pair."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not os.path.isfile(path):
        raise InputError("no such file", file=path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"not a Parquet file: {str(error).splitlines()[0]}", file=path) from None
    for name in COLUMNS:
        if name not in table.column_names:
            expected = ", ".join(COLUMNS)
            raise InputError("is absent", file=path, field=name, found=table.column_names, expected=expected)
        if table.column(name).null_count:
            raise InputError("holds a value that is none", file=path, field=name)
    about = json.loads((table.schema.metadata or {}).get(b"optative", b"{}"))
    if "beta" not in about:
        raise InputError("does not say the beta of its loss", file=path, field="metadata optative.beta")
    columns: dict[str, Any] = {n: np.asarray(table.column(n).to_pylist()) for n in COLUMNS}
    try:
        return _arranged(columns, float(about["beta"]), str(about.get("part", "held_out")))
    except InputError as error:
        raise InputError(error.message, file=path, field=error.field, found=error.found) from None


def _arranged(columns: dict[str, np.ndarray], beta: float, part: str) -> PairSteps:
    steps, at = np.unique(columns["step"], return_inverse=True)
    ids: Sequence[str] = list(dict.fromkeys(columns["id"].tolist()))
    places = {name: i for i, name in enumerate(ids)}
    where = np.array([places[name] for name in columns["id"].tolist()])
    counts = np.zeros((len(steps), len(ids)), dtype=int)
    np.add.at(counts, (at, where), 1)
    if (counts != 1).any():
        s, b = (int(i[0]) for i in np.nonzero(counts != 1))
        message = f"step {steps[s]} holds the pair {ids[b]} {counts[s, b]} times"
        raise InputError(message, field="step", expected="each pair once in each step")
    wide = {}
    for name in COLUMNS[2:]:
        grid = np.zeros((len(steps), len(ids)))
        grid[at, where] = columns[name]
        wide[name] = grid
    for name in COLUMNS[4:]:
        moved = (wide[name] != wide[name][0]).any(axis=0)
        if moved.any():
            raise InputError(f"changes between steps for the pair {ids[int(np.argmax(moved))]}", field=name)
    once = {f"{n}_B": wide[n][0] for n in COLUMNS[4:]}
    return PairSteps(steps, tuple(ids), wide["chosen"], wide["rejected"], **once, beta=beta, part=part)


def _check(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape:
        raise InputError("wrong shape", field=name, found=np.shape(array), expected=str(shape))
    if not np.isfinite(np.asarray(array, float)).all():
        raise InputError("not a finite number", field=name)
