"""What a person sees while a build runs, on standard error: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL_S = 15.0


class PlainWatcher:
    """One line when a step starts, when it ends, and now and then in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def __enter__(self) -> PlainWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, step: str, why: str) -> None:
        """A step begins."""
        self._last[step] = time.monotonic()
        self.note(f"{step}: running ({why})")

    def progressed(self, step: str, done: int, total: int, what: str) -> None:
        """A running step has got further."""
        now = time.monotonic()
        if now - self._last.get(step, now) >= PLAIN_INTERVAL_S:
            self._last[step] = now
            self.note(f"{step}: {done} of {total} {what}")

    def ended(self, step: str, status: str, seconds: float) -> None:
        """A step has ended."""
        self.note(
            f"{step}: {'done' if status == 'executed' else status} in {seconds:.1f} s"
            if status == "executed"
            else f"{step}: {status}"
        )

    def note(self, text: str) -> None:
        """A line of its own."""
        with self._lock:
            print(text, file=sys.stderr, flush=True)


class LiveWatcher:
    """A bar for each running step; finished ones stay as lines above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}"), TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, step: str, why: str) -> None:
        """A step begins."""
        self._tasks[step] = self._progress.add_task(step, total=None, what=why)

    def progressed(self, step: str, done: int, total: int, what: str) -> None:
        """A running step has got further."""
        if step in self._tasks:
            self._progress.update(self._tasks[step], completed=done, total=total, what=what)

    def ended(self, step: str, status: str, seconds: float) -> None:
        """A step has ended."""
        task = self._tasks.pop(step, None)
        if task is not None:
            self._progress.remove_task(task)
        mark = "[green]done[/]" if status == "executed" else f"[red]{status}[/]"
        self._progress.console.print(f"{mark} {step} [dim]{seconds:.1f} s[/]", highlight=False)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._progress.console.print(text, highlight=False, markup=False)


def watcher() -> Any:
    """The watcher for standard error as it is."""
    console = Console(stderr=True)
    return LiveWatcher(console) if console.is_terminal else PlainWatcher()
