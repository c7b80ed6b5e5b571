"""Trackers beside `metrics.jsonl`, which is always written. They read the journal; they never own numbers.

Knows: TensorBoard. Does not know: training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optative.core.errors import missing_extra
from optative.core.files import read_jsonl


def check_trackers(names: Sequence[str]) -> None:
    """An extra that is missing is said before anything is trained."""
    if "tensorboard" in names:
        try:
            import tensorboard  # noqa: F401  (only whether it is there)
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard") from None


def write_trackers(names: Sequence[str], metrics: Path, folder: Path) -> None:
    """Write the whole journal of metrics to each tracker; a resumed run writes it anew, so no point is doubled."""
    if "tensorboard" not in names or not metrics.exists():
        return
    import shutil

    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for line in read_jsonl(metrics):
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "step":
                    writer.add_scalar(name, value, line["step"])
