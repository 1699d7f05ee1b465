"""Files on disk: written so that readers see the old bytes or the new ones, copied cheaply, removed for good."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compiler.errors import CompilerError, ConfigError, DiskFullError, StepError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
FICLONE = 0x40049409
"""Linux's ioctl that makes a file share another's blocks (btrfs, XFS, bcachefs); others refuse it."""
NAMED_WRONG = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors that another path mends."""
QUIET_S, POLL_S = 0.5, 0.1
"""A wait for a lock that takes longer is said; how often the lock is tried until then."""
logger = logging.getLogger(__name__)


def lock_alone(handle: int, waiting_for: str) -> None:
    """Locks an open file or folder for this process alone. A long wait is said once, with what is waited for.

    Raises:
        OSError: the file system has no locks.
    """
    until = time.monotonic() + QUIET_S
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(POLL_S)
    logger.warning("waiting for %s", waiting_for)
    fcntl.flock(handle, fcntl.LOCK_EX)


IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
"""Errors where something else lies at a name that is ours."""


@contextlib.contextmanager
def explain_os_errors(root: Path, hint: str = "") -> Iterator[None]:
    """Turns a full disk and a read-only folder into errors that say what to do; `hint` as in `explained`."""
    try:
        yield
    except OSError as error:
        raise explained(error, root, hint) from error


def explained(error: OSError, root: Path, hint: str = "") -> CompilerError:
    """The error the user sees for an operating-system error below `root`.

    `hint`: what to do about a full disk, where `root` is no folder of artifacts that a build writes.
    """
    if hint:
        return _explained_elsewhere(error, root, hint)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"no space left where {root} lies",
            fix="free some space (python -m compiler store gc) or set artifacts_dir to another disk, then run again: "
            "finished steps are kept",
        )
    if error.errno in IN_THE_WAY and error.filename is not None and Path(error.filename).is_relative_to(root):
        return ConfigError(
            f"cannot write below {root}: {error.filename} is in the way ({error.strerror})",
            fix="python -m compiler store fsck --repair removes from a store what no build has made; for another place "
            "set artifacts_dir",
        )
    if error.errno in NAMED_WRONG:
        return ConfigError(
            f"cannot write below {root}: {error.strerror}", fix="set artifacts_dir to a folder that you may write to"
        )
    if error.errno == errno.EXDEV:
        return ConfigError(
            f"{root} is spread over several file systems", fix="keep artifacts_dir and all below it on one: no links"
        )
    return StepError(
        f"cannot read or write below {root}: {error.strerror or error}",
        fix="check the disk, then run again: finished steps are kept",
    )


def _explained_elsewhere(error: OSError, root: Path, hint: str) -> CompilerError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no space left where {root} lies", fix=hint)
    if error.errno in NAMED_WRONG:
        return ConfigError(
            f"cannot use {str(root)[:200]}: {error.strerror}", fix="choose a folder that you may read and write"
        )
    if error.errno == errno.EXDEV:
        return ConfigError(f"{root} is spread over several file systems", fix="keep it all on one: no links")
    return StepError(
        f"cannot read or write below {root}: {error.strerror or error}",
        fix="check the disk, then give the same command again",
    )


def write_atomically(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Temporary file, fsync, rename, fsync of the folder: readers see the old bytes or the new ones.

    `scratch` is a folder on the same file system for the temporary file, in place of the target's own.
    """
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=scratch or path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp gives a string
        Path(temporary).replace(path)
        fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, each on disk before what will be written into it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)


def copy(source: Path, target: Path) -> None:
    """Copies a file's bytes: sharing blocks where the file system can, else through the kernel."""
    with source.open("rb") as theirs, target.open("wb") as ours:
        try:
            fcntl.ioctl(ours.fileno(), FICLONE, theirs.fileno())
        except OSError:  # another file system, or one that cannot
            shutil.copyfile(source, target)


def exchange(new: Path, old: Path) -> None:
    """Puts the folder `new` at the name `old`, and what was there at the name `new`, in one step where Linux can."""
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)  # glibc 2.28
    if rename is not None and not rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE):
        return
    aside = new.with_name(new.name + ".old")  # a file system that cannot: for a moment nothing is there
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def remove_tree(path: Path) -> None:
    """Removes a folder, read-only files in it too, or anything else; what is not there is fine."""

    def make_writable(function: Any, name: str, _info: Any) -> None:
        with contextlib.suppress(OSError, TypeError):  # `os.open` wants more than a name
            Path(name).parent.chmod(0o755)
            if not Path(name).is_symlink():  # what it points to is none of ours
                Path(name).chmod(0o755)
            function(name)

    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(RecursionError, OSError):
        shutil.rmtree(path, onerror=make_writable)
    if path.exists():
        _remove_deep(path)


def _remove_deep(path: Path) -> None:
    """Removes a folder whose folders lie deeper in each other than a path can say, or cannot be entered as they are."""
    number, prefix = 0, f".{secrets.token_hex(8)}-"
    path.chmod(0o700)
    while folders := [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]:
        for folder in folders:
            folder.chmod(0o700)
            for entry in sorted(folder.iterdir()):
                if entry.is_symlink() or not entry.is_dir():
                    entry.unlink()
                    continue
                entry.chmod(0o700)
                entry.rename(path / f"{prefix}{number}")  # up: all that is left lies at most two folders deep
                number += 1
            folder.rmdir()
    shutil.rmtree(path)


def write_array(path: Path, array: Any) -> None:
    """Writes a `.npy` file as `numpy.save` does, which does not notice that the disk is full: it writes through C.

    Raises:
        OSError: not every byte could be written.
    """
    import numpy as np

    with path.open("wb") as stream:
        np.save(SimpleNamespace(write=stream.write), array)


def fsync(path: Path) -> None:
    """Waits until a file or folder is on disk.

    Raises:
        OSError: the disk says that it is not.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
