"""Remembers what was computed from a file, valid while the file's size, times and inode are unchanged."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.canonical import digest, file_digest
from compiler.disk import write_atomically
from compiler.errors import ConfigError
from compiler.store.records import read_sealed, sealed

SETTLED_NS = 50_000_000
"""A file changed less than this ago may change again within the same tick of its clock: not remembered yet."""

Stamp = list[int]


class Memo:
    """A small file of what is remembered, and what this process has seen since."""

    def __init__(self, path: Path, write: Callable[[Path, bytes], None] = write_atomically) -> None:
        self._path = path
        self._write = write
        self._changed = False
        self._seen: dict[tuple[str, str], Any] = {}
        record = read_sealed(path)
        rows = record.get("rows") if record and record.get("made_by") == _made_by() else None
        self._rows: dict[str, list[Any]] = rows if isinstance(rows, dict) else {}

    def get(self, kind: str, path: Path, compute: Callable[[Path], Any]) -> Any:
        """What `compute(path)` gave when `path` last looked as it does now, else computes it.

        Raises:
            ConfigError: the file changed while it was read.
        """
        seen = stamp(path)
        name = f"{kind}:{path}"
        row = self._rows.get(name)
        if isinstance(row, list) and len(row) == 2 and row[0] == seen:
            return row[1]
        value = compute(path)
        if stamp(path) != seen:
            raise ConfigError(f"{path} changed while it was read", fix="run again once it is written completely")
        if abs(time.time_ns() - seen[2]) > SETTLED_NS:
            self._rows[name] = [seen, value]
            self._changed = True
        return value

    def once(self, kind: str, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute()` gave the first time in this process."""
        found = self._seen.get((kind, name), self)
        if found is self:
            found = self._seen[(kind, name)] = compute()
        return found

    def forget(self, *kinds: str) -> None:
        """What is asked `once` of these kinds is asked anew."""
        for key in [key for key in list(self._seen) if key[0] in kinds]:
            self._seen.pop(key, None)

    def forget_all(self) -> None:
        """What is asked `once` is asked anew, of every kind."""
        self._seen.clear()

    def save(self) -> None:
        """Writes what is new; a folder that cannot be written to is no error, only slower next time."""
        if self._changed:
            with contextlib.suppress(OSError):
                self._write(self._path, sealed({"made_by": _made_by(), "rows": self._rows}))
            self._changed = False


@functools.cache
def _made_by() -> str:
    """Of the code that computes what is remembered: another version of it may see other things in the same files."""
    return digest([file_digest(path) for path in sorted(Path(__file__).parent.glob("*.py"))])


def stamp(path: Path) -> Stamp:
    """Size, mtime, ctime (ns) and inode of a file."""
    info = path.stat()
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def content_digest(path: Path, memo: Memo) -> str:
    """SHA-256 of a file, or of the listing (relative path, digest) of a folder.

    Raises:
        ConfigError: nothing is there, or it cannot be read.
    """
    return _digest_of(path, lambda file: str(memo.get("sha256", file, file_digest)))


def full_digest(path: Path) -> str:
    """Like `content_digest`, every byte read now."""
    return _digest_of(path, file_digest)


def _digest_of(path: Path, digest_of: Callable[[Path], str]) -> str:
    try:
        if path.is_dir():
            return digest(_listing(path, digest_of))
        if path.is_file():
            return digest_of(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read {error.filename or path}: {error.strerror}", fix="check the path and its permissions"
        ) from None
    except ValueError as error:  # replaced by a FIFO or a device since it was looked at
        raise ConfigError(f"cannot read {path}: {error}", fix="run again once it is written completely") from None
    raise ConfigError(
        f"there is no file or folder {path}", fix="check the path; a relative one counts from the working folder"
    )


def stamps(path: Path) -> dict[str, Stamp]:
    """The stamps of a file, or of every file in a folder: equal ones before and after say that nothing was written."""
    return {str(f): stamp(f) for f in (_entries_in(path)[0] if path.is_dir() else [path])}


def _listing(path: Path, digest_of: Callable[[Path], Any]) -> list[list[Any]]:
    """What lies below a folder: relative path, and the digest of a file or the kind of what is no file."""
    files, others = _entries_in(path)
    found = [[file.relative_to(path).as_posix(), digest_of(file)] for file in files]
    return sorted([*found, *([other.relative_to(path).as_posix(), kind] for other, kind in others)])


def _entries_in(path: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The regular files below a folder, links to such included, and everything else that is not a folder.

    Links to folders are not followed: they may lead round in a circle, or anywhere.
    """
    files: list[Path] = []
    others: list[tuple[Path, str]] = []
    for where, folders, names in os.walk(path, onerror=_unreadable):
        for name in (*folders, *names):
            entry = Path(where) / name
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{path} holds a file whose name is not UTF-8: {name!r}", fix="rename it") from None
            if entry.is_symlink() and not entry.is_file():
                others.append((entry, "link"))
            elif entry.is_file():
                files.append(entry)
            elif not entry.is_dir():
                others.append((entry, "special"))
    return sorted(files), sorted(others)


def _unreadable(error: OSError) -> None:
    raise ConfigError(f"cannot read the folder {error.filename}: {error.strerror}", fix="check its permissions")
