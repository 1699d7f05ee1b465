"""Immutable results under their keys: committed atomically, verified on read.

objects/ab/<digest>/...     the files of a result; <digest> is the digest of their listing
actions/ab/<key>.json       which object a key produced, and what the key was made of
verified/ab/<digest>.json   what the object's files looked like (size, times, inode) when last hashed
last/<scope>/<step>.json    the key a step had last, to say why it runs again
work/, failures/, quarantine/, locks/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.canonical import FileEntry, list_files, plain, tree_digest, tree_entries
from compiler.errors import CompilerError, ConfigError, StepError

GUARD = ".guard"
GUARD_GRACE_S = 60.0


@dataclass(frozen=True)
class Result:
    """What a step produced: `path` is its folder in the store, `entries` its files, `digest` their identity."""

    key: str
    digest: str
    path: Path
    entries: tuple[FileEntry, ...]
    seconds: float


@contextlib.contextmanager
def explain_os_errors(root: Path) -> Iterator[None]:
    """Turns a full disk and a read-only folder into errors that say what to do."""
    try:
        yield
    except OSError as error:
        raise explained(error, root) from error


def explained(error: OSError, root: Path) -> CompilerError:
    """The error the user sees for an operating-system error below `root`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepError(
            f"no space left where {root} lies",
            fix="free some space or set artifacts_dir to another disk, then run again: finished steps are kept",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return ConfigError(
            f"cannot write below {root}: {error.strerror}", fix="set artifacts_dir to a folder that you may write to"
        )
    return StepError(f"cannot read or write below {root}: {error.strerror or error}", fix="check the disk")


class Store:
    """The results below one `artifacts_dir`. Creating the object touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- reading ---------------------------------------------------------------------------------------------------

    def lookup(self, key: str) -> Result | None:
        """The verified result of `key`, or None. A result that does not verify is set aside and not returned."""
        action = self._read_action(key)
        if action is None:
            return None
        entries = tuple(FileEntry(**entry) for entry in action["files"])
        path = self.object_path(action["object"])
        if not self._verify(action["object"], path, entries):
            self._set_aside(action["object"])
            return None
        return Result(key, action["object"], path, entries, float(action["seconds"]))

    def state(self, key: str) -> str:
        """'absent', or 'damaged' where the key was built but its result is gone or does not verify, or 'stored'."""
        if self._read_action(key) is None:
            return "absent"
        return "stored" if self.lookup(key) else "damaged"

    def last(self, scope: str, step: str) -> dict[str, Any] | None:
        """The key document that `step` had when it was last needed."""
        try:
            record: dict[str, Any] = json.loads((self.root / "last" / scope / f"{step}.json").read_text())
            return record if isinstance(record, dict) else None
        except (OSError, ValueError):
            return None

    def verify_fully(self, result: Result) -> bool:
        """Hashes every file of `result` anew; what does not verify is set aside."""
        if tree_matches(result.path, result.entries):
            return True
        self._set_aside(result.digest)
        return False

    def object_path(self, digest: str) -> Path:
        """The folder of the object `digest`, whether or not it exists."""
        return self.root / "objects" / digest[:2] / digest

    # -- writing ---------------------------------------------------------------------------------------------------

    def commit(self, key: str, document: dict[str, Any], folder: Path, seconds: float) -> Result:
        """Makes the files in `folder` the result of `key`; `folder` is consumed.

        The object's files are on disk before its name appears, and the object before the action that names it,
        so that whatever is visible is whole.

        Raises:
            StepError: no space is left.
        """
        with explain_os_errors(self.root):
            entries = tuple(tree_entries(folder))
            digest = tree_digest(entries)
            target = self.object_path(digest)
            if target.exists() and not tree_matches(target, entries):
                self._set_aside(digest)
            if not target.exists():
                for path in list_files(folder):
                    path.chmod(0o444)
                    _fsync(path)
                for sub in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
                    _fsync(sub)
                _fsync(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    folder.rename(target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                _fsync(target.parent)
            self._remember_verified(digest, target, entries)
            action = {
                "key": key,
                "object": digest,
                "files": [plain(entry) for entry in entries],
                "seconds": round(seconds, 3),
                "document": document,
            }
            self._write(self.root / "actions" / key[:2] / f"{key}.json", json.dumps(action, sort_keys=True))
        return Result(key, digest, target, entries, seconds)

    def remember_last(self, scope: str, step: str, document: dict[str, Any]) -> None:
        """Keeps the key document of `step`, for the next run's explanation."""
        path = self.root / "last" / scope / f"{step}.json"
        text = json.dumps(document, sort_keys=True)
        if not path.exists() or path.read_text() != text:
            self._write(path, text)

    @contextlib.contextmanager
    def work_folder(self, name: str) -> Iterator[Path]:
        """A private folder on the store's own file system, removed at the end whatever happens."""
        with explain_os_errors(self.root):
            base = self.root / "work"
            base.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
            guard = (folder / GUARD).open("w")
        with guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            try:
                yield folder
            finally:
                remove_tree(folder)

    def keep_failure(self, key: str, folder: Path) -> Path:
        """Moves a failed step's work folder to where its diagnosis stays; replaces an earlier one."""
        with explain_os_errors(self.root):
            target = self.root / "failures" / key[:16]
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_tree(target)
            folder.rename(target)
            return target

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held by one process at a time; the system frees it when the holder dies."""
        path = self.root / "locks" / key
        with explain_os_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def clean_leftovers(self) -> None:
        """Removes work folders whose build is gone: nobody holds the lock inside, wherever the builder ran."""
        for folder in (self.root / "work").glob("*"):
            try:
                with (folder / GUARD).open("r+") as guard:
                    fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(folder)
            except BlockingIOError:
                continue
            except FileNotFoundError:  # between its making and its lock, or long dead
                if time.time() - folder.stat().st_mtime > GUARD_GRACE_S:
                    remove_tree(folder)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _read_action(self, key: str) -> dict[str, Any] | None:
        try:
            action: dict[str, Any] = json.loads((self.root / "actions" / key[:2] / f"{key}.json").read_text())
            [FileEntry(**entry) for entry in action["files"]], str(action["object"]), float(action["seconds"])
            return action if action["key"] == key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _verify(self, digest: str, path: Path, entries: tuple[FileEntry, ...]) -> bool:
        """Cheap where nothing about the files changed since they were last hashed, else hashes them."""
        if tree_digest(entries) != digest or not path.is_dir():
            return False
        try:
            seen = _fingerprint(path)
            if json.loads(self._verified_path(digest).read_text()) == seen:
                return True
        except (OSError, ValueError):
            pass
        if not tree_matches(path, entries):
            return False
        with contextlib.suppress(OSError):  # a read-only store is verified anew each time
            self._remember_verified(digest, path, entries)
        return True

    def _verified_path(self, digest: str) -> Path:
        return self.root / "verified" / digest[:2] / f"{digest}.json"

    def _remember_verified(self, digest: str, path: Path, entries: tuple[FileEntry, ...]) -> None:
        self._write(self._verified_path(digest), json.dumps(_fingerprint(path)))

    def _set_aside(self, digest: str) -> None:
        """Moves a damaged object out of the way, kept for diagnosis."""
        path = self.object_path(digest)
        with contextlib.suppress(OSError):
            self._verified_path(digest).unlink(missing_ok=True)
            if path.exists():
                target = self.root / "quarantine" / digest
                target.parent.mkdir(parents=True, exist_ok=True)
                remove_tree(target)
                path.rename(target)

    def _write(self, path: Path, text: str) -> None:
        write_atomically(path, text.encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder: readers see the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp gives a string
        Path(temporary).replace(path)
        _fsync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_tree(path: Path) -> None:
    """Removes a folder, read-only files in it too; one that is not there is fine."""

    def make_writable(function: Any, name: str, _info: Any) -> None:
        with contextlib.suppress(OSError):
            Path(name).parent.chmod(0o755)
            Path(name).chmod(0o755)
            function(name)

    if path.exists():
        shutil.rmtree(path, onerror=make_writable)


def tree_matches(folder: Path, entries: tuple[FileEntry, ...]) -> bool:
    """Whether `folder` holds exactly `entries`, every byte hashed."""
    try:
        return tuple(tree_entries(folder)) == entries
    except (OSError, ValueError):
        return False


def _fingerprint(folder: Path) -> list[list[object]]:
    rows: list[list[object]] = []
    for path in list_files(folder):
        info = path.stat()
        rows.append(
            [path.relative_to(folder).as_posix(), info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]
        )
    return rows


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
