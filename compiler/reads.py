"""Which files a user's own code reads while a step runs: by Python's audit events `open`, `os.listdir`, `os.scandir`.

A result is only as good as these files: their states are part of its identity (`compiler.keys.files`). A process of a
step calls `watch`; what it reads is written to a log at once, because measurement processes are killed when done.

Not seen: files that native code opens by itself (`safetensors.torch.load_file`), tests such as `os.path.exists`, and
what a process reads that user code starts itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VARIABLE = "COMPILER_READS"
"""Tells processes of a step where own code lies, what is not counted, and where to log."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ABSENT, FOLDER, OTHER = "absent", "folder", "other"
NOT_COUNTED = ("/site-packages/", "/dist-packages/", "/__pycache__/")


def prepare(roots: Iterable[str], apart: Iterable[str], log: Path) -> None:
    """Tell this process and those that it starts to watch reads below `roots`, except below `apart`."""
    both = [[form for path in paths for form in _forms(path)] for paths in (roots, apart)]
    os.environ[VARIABLE] = json.dumps({"roots": both[0], "apart": both[1], "log": str(log)})


def watch() -> None:
    """Log what this process reads from here on; nothing where no own code takes part in the step."""
    text = os.environ.get(VARIABLE)
    if text:
        given = json.loads(text)
        sys.addaudithook(_Hook(given["roots"], given["apart"], given["log"]).hear)


def state(path: str) -> str:
    """Return the SHA-256 of a file, or of the listing of a folder where `path` ends with `/`; else what is there."""
    try:
        if path.endswith("/"):
            names = sorted(name for name in os.listdir(path) if name != "__pycache__" and not name.endswith(".pyc"))  # noqa: PTH208
            return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
        mode = os.stat(path).st_mode  # noqa: PTH116 - a text, on a hot path
        if not stat.S_ISREG(mode):
            return FOLDER if stat.S_ISDIR(mode) else OTHER
        with open(path, "rb") as stream:  # noqa: PTH123
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except (OSError, ValueError):
        return OTHER


def collected(log: Path) -> tuple[dict[str, str], list[str]]:
    """Return path -> state of what was read when it was first opened, and the paths that are not so any more."""
    first: dict[str, str] = {}
    read: set[str] = set()
    if log.exists():
        for line in log.read_text().splitlines():
            path, found, wrote = json.loads(line)
            first.setdefault(path, found)
            if not wrote:
                read.add(path)
    return {path: first[path] for path in sorted(read)}, sorted(path for path in read if state(path) != first[path])


class _Hook:
    """Hears audit events. Each path is looked at once as read and once as written."""

    def __init__(self, roots: list[str], apart: list[str], log: str) -> None:
        self._roots, self._apart = tuple(f"{r.rstrip('/')}/" for r in roots), tuple(f"{a}/" for a in apart)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._seen: set[tuple[str, bool]] = set()
        self._busy = threading.local()

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """See `sys.addaudithook`."""
        if event not in ("open", "os.listdir", "os.scandir") or getattr(self._busy, "now", False):
            return
        self._busy.now = True  # what is done here opens files too
        try:
            path = given[0] if given[0] is not None else "."
            if not isinstance(path, int):
                wrote = event == "open" and isinstance(given[2], int) and bool(given[2] & WRITES)
                self._look(os.path.abspath(os.fsdecode(path)), event != "open", wrote)  # noqa: PTH100
        except (TypeError, ValueError):
            pass  # no path: the call itself fails too
        finally:
            self._busy.now = False

    def _look(self, path: str, listing: bool, wrote: bool) -> None:
        name = f"{path.rstrip('/')}/" if listing else path
        if (name, wrote) in self._seen or not self._counts(name):
            return
        caller = sys._getframe(2)
        if caller.f_code.co_filename.startswith("<frozen importlib"):
            return  # modules: their source is in the key
        if listing and not self._has_own(caller):
            return  # libraries list every folder of sys.path
        self._seen.add((name, wrote))
        os.write(self._log, f"{json.dumps([name, state(name), wrote])}\n".encode())

    def _counts(self, name: str) -> bool:
        folder = f"{name.rstrip('/')}/"
        if not folder.startswith(self._roots) or folder.startswith(self._apart) or name.endswith(".pyc"):
            return False
        return not any(part in folder for part in NOT_COUNTED)

    def _has_own(self, frame: Any) -> bool:
        while frame is not None:
            if self._counts(frame.f_code.co_filename) or frame.f_code.co_filename + "/" in self._apart:
                return True
            frame = frame.f_back
        return False


def _forms(path: str) -> list[str]:
    """The path as it is written, and with its links followed."""
    return sorted({os.path.abspath(path), os.path.realpath(path)})  # noqa: PTH100
