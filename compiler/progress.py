"""What a person sees while a build runs, on standard error: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import time
from typing import Any

PLAIN_INTERVAL_S = 15.0


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


def watcher() -> Any:
    """The watcher for standard error as it is. Hosts that only finish builds have no rich: theirs are plain lines."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        return PlainWatcher()
    from rich.console import Console

    from compiler.live_progress import LiveWatcher

    console = Console(stderr=True)
    return LiveWatcher(console) if console.is_terminal else PlainWatcher()
