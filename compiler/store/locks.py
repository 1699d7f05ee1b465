"""Locks between processes on one machine, freed by the system when their holder dies, whatever ended it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from compiler.disk import make_folder
from compiler.foreign_files import open_lock_file

POLL_S = 0.1
"""How long a dead holder's lock may lie there before who waits has it."""
PATIENCE_S = 0.5
"""A wait longer than this is said."""


class Cancelled(Exception):
    """The wait was ended."""


@contextlib.contextmanager
def held(
    path: Path, waiting: Callable[[str], None] = lambda holder: None, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Holds the lock `path` alone. `waiting` is told once, with what the holder says of itself, if it takes long.

    Raises:
        Cancelled: `cancel` was set while somebody else held the lock.
        OSError: the lock's folder cannot be written to.
    """
    make_folder(path.parent)
    stream = _acquire(path, fcntl.LOCK_EX, waiting, cancel)
    try:
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        yield
    finally:
        stream.close()


@contextlib.contextmanager
def shared(
    path: Path, waiting: Callable[[str], None] = lambda holder: None, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Holds the lock `path` together with others who share it; nobody holds it alone meanwhile.

    Raises:
        Cancelled, OSError: see `held`.
    """
    make_folder(path.parent)
    stream = _acquire(path, fcntl.LOCK_SH, waiting, cancel)
    try:
        yield
    finally:
        stream.close()


def remove_unused(folder: Path, keep: frozenset[str]) -> int:
    """Removes the files of locks that nobody holds; returns how many."""
    removed = 0
    for path in sorted(folder.glob("*")):
        if path.name in keep:
            continue
        with contextlib.suppress(OSError), open_lock_file(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
    return removed


def _acquire(path: Path, kind: int, waiting: Callable[[str], None], cancel: threading.Event | None) -> IO[str]:
    began, said = time.monotonic(), False
    while True:
        stream = open_lock_file(path)
        try:
            while True:
                try:
                    fcntl.flock(stream, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                if cancel is not None and cancel.is_set():
                    raise Cancelled
                if not said and time.monotonic() - began > PATIENCE_S:
                    stream.seek(0)
                    waiting(stream.read(80) or "another process")
                    said = True
                time.sleep(POLL_S)
            if _is_at(stream, path):
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()  # removed by upkeep between our opening and our locking: take the new one


def _is_at(stream: IO[str], path: Path) -> bool:
    try:
        there = path.stat()
    except OSError:
        return False
    ours = os.fstat(stream.fileno())
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
