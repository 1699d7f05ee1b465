"""What a step left as its result: checked before anything of it is read, and read within a time.

Code of anybody's made the folder. It may hold links that lead out of it, files that never end, or names that no other
file system takes; nobody writes to it any more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from compiler.canonical import CHUNK, FileEntry
from compiler.errors import StepError
from compiler.words import words

MOST_ENTRIES = 100_000
"""Files and folders in a result: the store lists all of them in each result's record."""
DEEPEST = 64
"""Folders that may lie in each other in a result."""
STEERING = "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Line separators and changes of direction: a name with them can be shown as another one."""
FIX = "write regular files with plain names into the folder of the result, and nothing else"


class UnfitError(StepError):
    """The result of a step cannot be stored, or is incomplete."""


class TooSlow(Exception):
    """The result could not be read in time."""


def check_result(folder: Path) -> dict[str, int]:
    """The files of a result, sorted by path, with their sizes; each is made readable, none is read.

    Raises:
        UnfitError: the folder holds something that a result cannot hold.
        OSError: something cannot be looked at.
    """
    sizes = {name: (folder / name).stat().st_size for name in sorted(_names_of(folder))}
    room = shutil.disk_usage(folder).total
    if sum(sizes.values()) > room:  # files with holes, which would take hours to read
        raise UnfitError(f"the result claims {sum(sizes.values())} bytes, more than the disk holds ({room})", fix=FIX)
    return sizes


def read_entries(folder: Path, sizes: Mapping[str, int], deadline: float) -> tuple[FileEntry, ...]:
    """The files of a result with size and digest; `deadline`, by `time.monotonic`, is when all must have been read.

    Raises:
        TooSlow: the deadline has passed.
        OSError: something cannot be read.
    """
    return tuple(FileEntry(name, size, _digest(folder / name, deadline)) for name, size in sizes.items())


def _names_of(folder: Path) -> list[str]:
    """The relative paths of the files, once all that lies in the folder was looked at."""
    if not stat.S_ISDIR(_mode(folder)):
        raise UnfitError("the step left no folder of results", fix="a step leaves the folder of its result where it is")
    found: list[str] = []
    queue, count = [("", 0)], 0
    while queue:
        prefix, depth = queue.pop()
        if depth > DEEPEST:
            raise UnfitError(f"the result has more than {DEEPEST} folders in each other", fix=FIX)
        _make_readable(folder / prefix, 0o755)
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                count += 1
                if count > MOST_ENTRIES:
                    raise UnfitError(f"the result has more than {MOST_ENTRIES} files and folders", fix=FIX)
                _check_name(prefix + entry.name)
                if entry.is_dir(follow_symlinks=False):
                    queue.append((f"{prefix}{entry.name}/", depth + 1))
                else:
                    _check_file(prefix + entry.name, entry.stat(follow_symlinks=False))
                    _make_readable(folder / prefix / entry.name, 0o644)
                    found.append(prefix + entry.name)
    return found


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UnfitError(f"the result has a name that is not UTF-8: {words(name, 100)}", fix=FIX) from None
    if any(unicodedata.category(c) == "Cc" or c in STEERING for c in name):
        raise UnfitError(f"the result has a name with control characters: {words(name, 100)}", fix=FIX)


def _check_file(name: str, info: os.stat_result) -> None:
    if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
        return
    if stat.S_ISREG(info.st_mode):  # who writes to the other name would change the stored result
        what = "which has other names too (hard links)"
    else:
        what = "which is a link" if stat.S_ISLNK(info.st_mode) else "which is neither a file nor a folder"
    raise UnfitError(f"the result holds {words(name, 200)}, {what}", fix=FIX)


def _make_readable(path: Path, mode: int) -> None:
    """Gives a file or folder of ours the permissions that it needs to be read, where they were taken away."""
    if path.stat().st_mode & mode != mode:
        path.chmod(mode)


def _digest(path: Path, deadline: float) -> str:
    """SHA-256, in hex, of a file's bytes, read in constant memory."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(CHUNK):
            if time.monotonic() > deadline:
                raise TooSlow
            found.update(data)
    return found.hexdigest()
