"""What a person sees, on standard error, while files go to or come from a registry: by rich, where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from compiler.registries.transfer import Progress

PLAIN_INTERVAL_S = 10.0
MEGABYTE = 1_000_000


@contextlib.contextmanager
def shown(what: str) -> Iterator[Progress]:
    """A bar on a terminal, a line now and then elsewhere, nothing for what is done at once."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar(what) as tell:
            yield tell
    else:
        yield _lines(what)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(what: str) -> Progress:
    lock = threading.Lock()
    last = [time.monotonic()]

    def tell(done: int, total: int) -> None:
        with lock:
            if time.monotonic() - last[0] < PLAIN_INTERVAL_S:
                return
            last[0] = time.monotonic()
        with contextlib.suppress(OSError):
            print(f"{what}: {done / MEGABYTE:,.0f} of {total / MEGABYTE:,.0f} MB", file=sys.stderr, flush=True)

    return tell


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / MEGABYTE:,.1f} MB" if count >= MEGABYTE / 10 else f"{count:,} bytes"
