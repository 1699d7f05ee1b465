"""Objects: folders named by the digest of what is in them, verified before they are served, set aside when damaged."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.canonical import FileEntry, file_digest, list_files, tree_digest, tree_entries
from compiler.disk import fsync, make_folder, remove_tree
from compiler.errors import IntegrityError
from compiler.store import locks
from compiler.store.records import read_sealed, sealed

SMALL_BYTES = 64 << 10
"""Hashing a file of this size costs hardly more than asking when it changed."""


class Objects:
    """The objects of the store at `root`. `write` writes a record; `on_damage` is told in words what was set aside."""

    def __init__(self, root: Path, write: Callable[[Path, bytes], None]) -> None:
        self._root = root
        self._write = write
        self.on_damage: Callable[[str], None] = lambda text: None

    def path(self, digest: str) -> Path:
        """The folder of the object `digest`, whether or not it exists."""
        return self._root / "objects" / digest[:2] / digest

    def keep(self, folder: Path, entries: tuple[FileEntry, ...], seen: list[list[Any]]) -> None:
        """Makes `folder` the object that `entries` are the files of, or sees that there is a whole one already.

        `seen` is what the files looked like before they were hashed.

        Raises:
            IntegrityError: a damaged one is there and cannot be moved away.
            OSError: the store cannot be written to.
        """
        digest = tree_digest(entries)
        target = self.path(digest)
        if os.path.lexists(target):
            if self._matches(digest, target, entries):
                return
            self.set_aside(digest, entries)
        _place(folder, target, entries)
        placed = look(target)
        # they were hashed before they were moved: the move and the change of mode leave size, mtime and inode alone
        if [(*row[:3], row[4]) for row in placed] == [(*row[:3], row[4]) for row in seen]:
            self._remember_verified(digest, placed)

    def verify(self, digest: str, entries: tuple[FileEntry, ...]) -> bool:
        """Cheap where nothing about the files changed since they were last hashed, else hashes them.

        Small files, which builds read themselves, are hashed each time: a disk may rot without telling.
        """
        path = self.path(digest)
        if not path.is_dir():
            return False
        try:
            known = read_sealed(self._verified_path(digest))
            if known is not None and known["files"] == look(path):
                return _small_files_match(path, entries)
        except (OSError, ValueError, KeyError):
            pass
        return self._matches(digest, path, entries)

    def _matches(self, digest: str, path: Path, entries: tuple[FileEntry, ...]) -> bool:
        """Hashes an object; remembers what it looked like, unless it was written to meanwhile."""
        with contextlib.suppress(OSError, ValueError):
            seen = look(path)
            if not tree_matches(path, entries):
                return False
            with contextlib.suppress(OSError):  # a read-only store is verified anew each time
                if look(path) == seen:
                    self._remember_verified(digest, seen)
            return True
        return False

    def _verified_path(self, digest: str) -> Path:
        return self._root / "verified" / digest[:2] / f"{digest}.json"

    def _remember_verified(self, digest: str, seen: list[list[Any]]) -> None:
        self._write(self._verified_path(digest), sealed({"files": seen}))

    def set_aside(self, digest: str, entries: tuple[FileEntry, ...] | None = None) -> None:
        """Moves a damaged object out of the way, kept for diagnosis; one that is whole stays.

        Where its `entries` are known, a file of another size is not read to see that.

        Of several processes that find the same damage one moves it, and none what another has made again since.
        """
        path = self.path(digest)
        with contextlib.suppress(OSError), locks.held(self._root / "locks" / "aside"):
            if not os.path.lexists(path) or is_whole(
                path, entries
            ):  # in this order: a missing one may be made at any moment
                return
            self._verified_path(digest).unlink(missing_ok=True)
            target = self._root / "quarantine" / digest
            make_folder(target.parent)
            remove_tree(target)
            path.rename(target)
            self.on_damage(f"a stored result is not as it was written: set aside in {target}, made again")


def _place(folder: Path, target: Path, entries: tuple[FileEntry, ...]) -> None:
    for path in list_files(folder):
        path.chmod(0o444)
        fsync(path)
    for sub in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        fsync(sub)
    fsync(folder)
    make_folder(target.parent)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not tree_matches(target, entries):  # else another process has just made the same
            raise IntegrityError(
                f"{target} is damaged and could not be set aside", fix="remove it, then run again"
            ) from None
    fsync(target.parent)


def is_whole(path: Path, entries: tuple[FileEntry, ...] | None = None) -> bool:
    """Whether an object is what its name says, and what `entries` say, where they are known."""
    if entries is not None and tree_digest(entries) == path.name:
        return tree_matches(path, entries)
    try:
        return tree_digest(tree_entries(path)) == path.name
    except (OSError, ValueError):
        return False


def _small_files_match(folder: Path, entries: tuple[FileEntry, ...]) -> bool:
    try:
        return all(file_digest(folder / e.path) == e.sha256 for e in entries if e.size <= SMALL_BYTES)
    except (OSError, ValueError):
        return False


def tree_matches(folder: Path, entries: tuple[FileEntry, ...]) -> bool:
    """Whether `folder` holds exactly `entries`: names and sizes, then every byte hashed."""
    try:
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in list_files(folder)}
        if sizes != {entry.path: entry.size for entry in entries}:
            return False
        return tuple(tree_entries(folder)) == entries
    except (OSError, ValueError):
        return False


def look(folder: Path) -> list[list[Any]]:
    """Of every file below `folder`: relative path, size, mtime and ctime (ns), inode."""
    rows: list[list[Any]] = []
    for path in list_files(folder):
        info = path.stat()
        rows.append(
            [path.relative_to(folder).as_posix(), info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]
        )
    return rows
