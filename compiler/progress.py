"""What a person sees while a build runs, on standard error: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

PLAIN_INTERVAL_S = 15.0
REFRESH_PER_SECOND = 2  # drawing must not disturb a measurement


class PlainWatcher:
    """One line when a step starts, when it ends, and now and then in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._done = self._total = 0

    def __enter__(self) -> PlainWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def planned(self, count: int) -> None:
        """More steps are needed."""
        self._total += count

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
        """A step has ended. Reused ones are counted and not listed."""
        self._done += 1
        if status != "reused":
            what = f"done in {seconds:.1f} s" if status == "executed" else status
            self.note(f"{step}: {what} ({self._done} of {self._total} steps)")

    def note(self, text: str) -> None:
        """A line of its own."""
        with self._lock, contextlib.suppress(OSError):  # a reader that went away does not end a build
            print(text, file=sys.stderr, flush=True)


class LiveWatcher:
    """A bar for each running step; finished ones stay as lines above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}"), TimeElapsedColumn(), console=console, transient=True,
            refresh_per_second=REFRESH_PER_SECOND,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._all = self._progress.add_task("build", total=0, what="")
        self._total = self._done = 0

    def __enter__(self) -> LiveWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, count: int) -> None:
        """More steps are needed."""
        self._total += count
        self._show_all()

    def started(self, step: str, why: str) -> None:
        """A step begins."""
        self._tasks[step] = self._progress.add_task(step, total=None, what=why)

    def progressed(self, step: str, done: int, total: int, what: str) -> None:
        """A running step has got further."""
        if step in self._tasks:
            self._progress.update(self._tasks[step], completed=done, total=total, what=what)

    def ended(self, step: str, status: str, seconds: float) -> None:
        """A step has ended. Reused ones are counted and not listed."""
        self._done += 1
        self._show_all()
        if status == "reused":
            return
        task = self._tasks.pop(step, None)
        if task is not None:
            self._progress.remove_task(task)
        line = Text("done", "green") if status == "executed" else Text(status, "red")
        self._progress.console.print(line + Text(f" {step} ") + Text(f"{seconds:.1f} s", "dim"))

    def _show_all(self) -> None:
        what = f"{self._done} of {self._total} steps"
        self._progress.update(self._all, completed=self._done, total=self._total, what=what)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._progress.console.print(text, highlight=False, markup=False)


def watcher() -> Any:
    """The watcher for standard error as it is."""
    console = Console(stderr=True)
    return LiveWatcher(console) if console.is_terminal else PlainWatcher()
