"""A process's presence in a store: a private folder that lives as long as it does, and what it needs kept.

Everything half-made lies in the folder: work of steps, temporary files of records, a version being written. A lock on
a file in it, freed by the system whatever ends the process, tells the living from the dead, whatever the clock says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.disk import make_folder, remove_tree
from compiler.foreign_files import open_lock_file, open_regular, read_limited

GUARD = ".guard"
PINS = ".pins"
UPKEEP = "upkeep"
LARGEST_PINS = 64 << 20


class Session:
    """The presence of this process in the store at `root`; made at once, ended by `close`.

    Raises:
        OSError: the store cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._mutex = threading.Lock()
        make_folder(root / "work")
        with upkeep_lock(root, exclusive=False):  # nobody sweeps between the making and the lock
            self.folder = root / "work" / f"{os.getpid()}-{secrets.token_hex(6)}"
            self.folder.mkdir()
            self._guard = (self.folder / GUARD).open("w")
            fcntl.flock(self._guard, fcntl.LOCK_EX)
            self._pins = (self.folder / PINS).open("a")

    def pin(self, **what: str) -> None:
        """Tells garbage collection that this process needs an `object`, or what a `scope` had last."""
        with self._mutex:
            self._pins.write(json.dumps(what) + "\n")
            self._pins.flush()

    def close(self) -> None:
        """Removes the folder."""
        with self._mutex, contextlib.suppress(OSError):
            remove_tree(self.folder)
        with contextlib.suppress(OSError):
            self._pins.close()
        self._guard.close()


@contextlib.contextmanager
def upkeep_lock(root: Path, exclusive: bool, wait: bool = True) -> Iterator[None]:
    """Shared while a process begins, or takes a result for its own; exclusive while somebody removes things.

    Raises:
        BlockingIOError: it is held by others, and `wait` is false.
        OSError: the store cannot be written to.
    """
    path = root / "locks" / UPKEEP
    make_folder(path.parent)
    with open_lock_file(path) as stream:
        fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        yield


def sweep(root: Path) -> int:
    """Removes the folders of processes that are gone; returns how many. The caller holds the upkeep lock."""
    swept = 0
    for folder in sorted((root / "work").glob("*")):
        with _whether_dead(folder) as dead:
            if dead:
                remove_tree(folder)
                swept += 1
    return swept


def pinned(root: Path) -> list[dict[str, Any]]:
    """What running processes need. The caller holds the upkeep lock."""
    found = []
    for folder in sorted((root / "work").glob("*")):
        with _whether_dead(folder) as dead:
            if dead:
                continue
        with contextlib.suppress(OSError):
            for line in _lines(folder / PINS):
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return found


def _lines(file: Path) -> list[str]:
    try:
        return read_limited(file, LARGEST_PINS).decode(errors="replace").splitlines()
    except ValueError:  # no process has made that
        return []


@contextlib.contextmanager
def _whether_dead(folder: Path) -> Iterator[bool]:
    """Whether the process whose folder this is has ended; if so, the folder is ours meanwhile."""
    try:
        guard = open_regular(folder / GUARD)
    except ValueError:  # no process has made that
        yield True
        return
    except OSError as error:  # it ended before it had a guard; or it is another user's
        yield isinstance(error, FileNotFoundError | NotADirectoryError)
        return
    with guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
