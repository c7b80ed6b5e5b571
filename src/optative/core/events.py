"""What a job tells while it runs: sentences, warnings and progress with the time left.

Knows: a terminal or a plain log, both on standard error; standard output belongs to results.
Does not know: what is done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Advance = Callable[[int, int, str], None]  # done, total, words behind the bar


class Events(Protocol):
    """A sink for what happens. `progress` gives a function to call with (done, total, words)."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, name: str) -> Any: ...


class Silent:
    """Nobody listens."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    @contextmanager
    def progress(self, name: str) -> Iterator[Advance]:
        def advance(done: int, total: int, words: str = "") -> None:
            pass

        yield advance


class Log:
    """Plain lines, for files and pipes: one line at most every `every` seconds, and one at the end of each task."""

    def __init__(self, every: float = 15.0) -> None:
        self.every = every

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    @contextmanager
    def progress(self, name: str) -> Iterator[Advance]:
        started = last = time.monotonic()
        first = latest = 0
        total_seen = 0

        def advance(done: int, total: int, words: str = "") -> None:
            nonlocal last, first, latest, total_seen
            now = time.monotonic()
            if not total_seen:
                first = done
            latest, total_seen = done, total
            if now - last >= self.every and done < total:
                last = now
                left = (now - started) / max(1, done - first) * (total - done)
                self.say(f"  {name}: {done}/{total} {words} ({_clock(left)} left)")

        yield advance
        self.say(f"  {name}: done, {latest}/{total_seen} in {_clock(time.monotonic() - started)}")


class Terminal:
    """Bars with the time left, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    @contextmanager
    def progress(self, name: str) -> Iterator[Advance]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("  {task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=self.console,
        ) as bars:
            task = bars.add_task(name, total=None, words="")

            def advance(done: int, total: int, words: str = "") -> None:
                bars.update(task, completed=done, total=total, words=words)

            yield advance


def default_events() -> Events:
    """Bars on a terminal, plain lines elsewhere."""
    return Terminal() if sys.stderr.isatty() else Log()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
