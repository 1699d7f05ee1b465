"""Who may use the machine: steps work beside each other, what measures works alone.

It holds for every build and measurement of one user on one machine, whatever store they write to: a figure that was
taken while another build converted a model would be flagged, and be of no use.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from compiler.store import locks

MACHINE, QUEUE = "machine", "queue"


@contextlib.contextmanager
def turn(
    measures: bool, waiting: Callable[[str], None] = lambda holder: None, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Holds the machine: alone where `measures`, else together with other steps.

    Who measures queues up first, and steps pass through the queue: no stream of steps keeps a measurement waiting.

    Raises:
        locks.Cancelled: `cancel` was set while waiting.
    """
    folder = _folder()
    if folder is None:
        yield
        return
    why = "other steps are at work" if measures else "a measurement runs alone"

    def told(holder: str) -> None:
        waiting(f"waiting for the machine: {why} ({holder})")

    take = locks.held if measures else locks.shared
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError), take(folder / QUEUE, told, cancel):  # full: as where there is no folder
            stack.enter_context(take(folder / MACHINE, told, cancel))
        yield


def _folder() -> Path | None:
    """This user's folder for locks that concern the machine; None where none can be made safely."""
    path = Path(tempfile.gettempdir()) / f"compiler-turns-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        safe = path.stat().st_uid == os.getuid() and not path.is_symlink()
    except OSError:
        return None
    return path if safe else None
