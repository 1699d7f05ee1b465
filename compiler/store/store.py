"""Reading and writing of results.

objects/ab/<digest>/...     the files of a result; <digest> is the digest of their listing
actions/ab/<key>.json       which object a key produced, and what the key was made of
verified/ab/<digest>.json   what the object's files looked like (size, times, inode) when last hashed
last/<scope>/<step>.json    the key a step had last, to say why it runs again
reads/ab/<key>.json         which files steps of that key were seen to read; the key of their results covers these too
versions/<identity>.json    which finished version has that identity
latest/<model>/<target>.json  which version was delivered last, and `latest` leads to
work/, failures/, quarantine/, locks/
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.canonical import FileEntry, plain, tree_digest
from compiler.disk import explain_os_errors, explained, make_folder, remove_tree, write_atomically
from compiler.foreign_files import read_limited
from compiler.store import locks
from compiler.store.incoming import check_result, read_entries
from compiler.store.objects import Objects, look, tree_matches
from compiler.store.records import read_sealed, sealed
from compiler.store.session import Session, sweep, upkeep_lock

MOST_SETS = 32
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Result:
    """What a step produced: `path` is its folder in the store, `entries` its files, `digest` their identity."""

    key: str
    digest: str
    path: Path
    entries: tuple[FileEntry, ...]
    seconds: float
    loaded: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """See `Origin.loaded`: who reuses the result sees to it that they are still the same."""


@dataclass(frozen=True)
class Origin:
    """Which step of which build (`model/target`) made a result, and with what besides the tools that its key covers."""

    step: str = ""
    scope: str = ""
    loaded: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Identities of further distributions that the step turned out to have loaded (see `compiler.keys.tools`)."""


class Store:
    """The results below one `artifacts_dir`. Creating the object touches nothing on disk.

    One that writes is used as a context, `with store:`, at whose end its half-made files are gone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._session: Session | None = None
        self._mutex = threading.Lock()
        self.objects = Objects(root, self.write)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._session is not None:
                self._session.close()
                self._session = None

    # -- reading ---------------------------------------------------------------------------------------------------

    def lookup(self, key: str) -> Result | None:
        """The verified result of `key`, or None. A result that does not verify is set aside and not returned."""
        action = self._read_action(key)
        return self._found(action) if action else None

    def take(self, key: str) -> Result | None:
        """Like `lookup`, and nobody collects the result as long as this process lives.

        Raises:
            StepError: the disk fails.
        """
        if not self.action_path(key).exists():
            return None
        try:
            session = self._presence()
            with upkeep_lock(self.root, exclusive=False):
                found = self.lookup(key)
                if found is not None:
                    session.pin(object=found.digest)
                    with contextlib.suppress(OSError):
                        os.utime(self.action_path(key))  # when it was last of use
            return found
        except OSError as error:
            if error.errno in READ_ONLY:  # what is collected meanwhile is missing then, which is an error and no lie
                return self.lookup(key)
            raise explained(error, self.root) from error

    def state(self, key: str) -> str:
        """'absent', or 'damaged' where the key was built but its result is gone or does not verify, or 'stored'."""
        if self._read_action(key) is None:
            return "damaged" if os.path.lexists(self.action_path(key)) else "absent"
        return "stored" if self.lookup(key) else "damaged"

    def last(self, scope: str, step: str) -> dict[str, Any] | None:
        """The key document that `step` had when it was last needed."""
        return read_sealed(self.root / "last" / scope / f"{step}.json")

    def verify_fully(self, result: Result) -> bool:
        """Hashes every file of `result` anew; what does not verify is set aside."""
        if tree_matches(result.path, result.entries):
            return True
        self.objects.set_aside(result.digest, result.entries)
        return False

    def object_path(self, digest: str) -> Path:
        """The folder of the object `digest`, whether or not it exists."""
        return self.objects.path(digest)

    def action_path(self, key: str) -> Path:
        """The file of the action `key`, whether or not it exists."""
        return self.root / "actions" / key[:2] / f"{key}.json"

    # -- writing ---------------------------------------------------------------------------------------------------

    def commit(
        self,
        key: str,
        document: dict[str, Any],
        folder: Path,
        seconds: float,
        origin: Origin | None = None,
        deadline: float = float("inf"),
    ) -> Result:
        """Makes the files in `folder` the result of `key`; `folder` is consumed.

        The object's files are on disk before its name appears, and the object before the action that names it,
        so that whatever is visible is whole. `origin` says for people where it came from; `deadline`, by
        `time.monotonic`, is when the files must have been read.

        Raises:
            StepError: no space is left, or the disk fails.
            UnfitError: a result cannot hold what is in `folder`.
            TooSlow: the deadline has passed.
        """
        with explain_os_errors(self.root):
            sizes, seen = check_result(folder), look(folder)
            entries = read_entries(folder, sizes, deadline)
            object_ = tree_digest(entries)
            self._presence().pin(object=object_)
            with upkeep_lock(self.root, exclusive=False):
                self.objects.keep(folder, entries, seen)
            action: dict[str, Any] = {
                "key": key,
                "object": object_,
                "files": [plain(entry) for entry in entries],
                "seconds": round(seconds, 3),
                **dataclasses.asdict(origin or Origin()),
                "document": document,
            }
            self.write(self.action_path(key), sealed(action))
        return Result(key, object_, self.object_path(object_), entries, seconds, action["loaded"])

    def read_sets(self, key: str) -> list[list[str]]:
        """The sets of files that steps with this key (that covers no file read) were seen to read, the latest first."""
        record = read_sealed(self._reads_path(key))
        found: list[list[str]] = record["sets"] if record else []
        return found

    def remember_reads(self, key: str, names: list[str]) -> None:
        """Keeps a set of files for `read_sets`."""
        before = self.read_sets(key)
        after = [names, *(known for known in before if known != names)][:MOST_SETS]
        if after != before:
            self.write(self._reads_path(key), sealed({"sets": after}))

    def _reads_path(self, key: str) -> Path:
        return self.root / "reads" / key[:2] / f"{key}.json"

    def remember_last(self, scope: str, step: str, document: dict[str, Any]) -> None:
        """Keeps the key document of `step`, for the next run's explanation."""
        path, data = self.root / "last" / scope / f"{step}.json", sealed(document)
        with contextlib.suppress(OSError, ValueError):
            if read_limited(path, len(data)) == data:
                return
        self.write(path, data)

    def needs(self, scope: str) -> None:
        """Tells garbage collection that a build of `scope` is running: what its steps had last is kept for it."""
        with contextlib.suppress(OSError):
            self._presence().pin(scope=scope)

    def scratch(self) -> Path:
        """A folder on the store's own file system that is gone when this process is.

        Raises:
            OSError: the store cannot be written to.
        """
        return self._presence().folder

    @contextlib.contextmanager
    def work_folder(self, name: str) -> Iterator[Path]:
        """A private folder on the store's own file system, removed at the end whatever happens."""
        with explain_os_errors(self.root):
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch()))
        try:
            yield folder
        finally:
            remove_tree(folder)

    def keep_failure(self, key: str, folder: Path) -> Path:
        """Moves a failed step's work folder to where its diagnosis stays; replaces an earlier one."""
        with explain_os_errors(self.root):
            target = self.root / "failures" / key[:16]
            make_folder(target.parent)
            if os.path.lexists(target):
                target.rename(self.scratch() / f"failure-{time.monotonic_ns()}")
            with contextlib.suppress(FileNotFoundError):  # the step removed it: nothing is left to look at
                if not folder.is_symlink():
                    folder.chmod(0o700)  # or it could not be moved
                folder.rename(target)
            return target

    @contextlib.contextmanager
    def lock(
        self,
        name: str,
        waiting: Callable[[str], None] = lambda holder: None,
        cancel: threading.Event | None = None,
    ) -> Iterator[None]:
        """Held by one process at a time; the system frees it when the holder dies. See `locks.held`."""
        with contextlib.ExitStack() as stack:
            with explain_os_errors(self.root):
                stack.enter_context(locks.held(self.root / "locks" / name, waiting, cancel))
            yield

    def write(self, path: Path, data: bytes) -> None:
        """Writes a file below the store atomically; leftovers of a killed process lie in its own folder.

        Raises:
            OSError: the store cannot be written to.
        """
        self._make_room(path)
        write_atomically(path, data, self.scratch())

    def clean_leftovers(self) -> None:
        """Removes what processes that are gone left half-made."""
        if (self.root / "work").is_dir():
            with contextlib.suppress(BlockingIOError), upkeep_lock(self.root, exclusive=True, wait=False):
                sweep(self.root)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _make_room(self, path: Path) -> None:
        """Set aside anything that is not a regular file at the path of a record: a rename cannot replace a folder."""
        if not os.path.lexists(path) or (path.is_file() and not path.is_symlink()):
            return
        target = self.root / "quarantine" / f"{path.name}-{time.monotonic_ns()}"
        make_folder(target.parent)
        path.rename(target)
        self.objects.on_damage(f"{path} is not a regular file: set aside in {target}, made again")

    def _presence(self) -> Session:
        with self._mutex:
            if self._session is None:
                self._session = Session(self.root)
            return self._session

    def _found(self, action: dict[str, Any]) -> Result | None:
        entries = tuple(FileEntry(**entry) for entry in action["files"])
        if not self.objects.verify(action["object"], entries):
            self.objects.set_aside(action["object"], entries)
            return None
        path = self.object_path(action["object"])
        return Result(action["key"], action["object"], path, entries, float(action["seconds"]), action["loaded"])

    def _read_action(self, key: str) -> dict[str, Any] | None:
        """The action of `key`, whole and about that key; None otherwise."""
        action = read_sealed(self.action_path(key))
        try:
            if action is None or action["key"] != key:
                return None
            entries = [FileEntry(**entry) for entry in action["files"]]
            float(action["seconds"]), dict(action["loaded"])
            return action if tree_digest(entries) == action["object"] else None
        except (ValueError, TypeError, KeyError):
            return None
