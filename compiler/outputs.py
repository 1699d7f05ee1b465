"""Where results may be written: regular files and folders, and never into an artifact."""

from __future__ import annotations

import stat
from pathlib import Path

from compiler.disk import write_atomically
from compiler.errors import ConfigError
from compiler.runtime.verify import MANIFEST

ELSEWHERE = "choose another place"


def check_output_file(path: Path) -> None:
    """Refuses an output that is there and is not a regular file, and one inside an artifact. Before any work is done.

    An atomic rename would replace a device, a FIFO or a link by a file.

    Raises:
        ConfigError: with what is there instead.
    """
    kind = _kind(path)
    if kind not in (None, "a regular file"):
        raise ConfigError(f"the output {path} is {kind}, not a regular file", fix=ELSEWHERE)
    _check_not_inside(path.parent, path)


def check_output_folder(path: Path) -> None:
    """Refuses an output folder that is there and is something else, and one inside an artifact.

    Raises:
        ConfigError: with what is there instead.
    """
    kind = _kind(path)
    if kind not in (None, "a folder", "a link") or (kind == "a link" and not path.is_dir()):
        raise ConfigError(f"the output {path} is {kind}, not a folder", fix=ELSEWHERE)
    _check_not_inside(path, path)


def write_output(path: Path, data: bytes) -> None:
    """Writes a file that the user named, atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    check_output_file(path)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", fix=ELSEWHERE) from None


def _kind(path: Path) -> str | None:
    """What lies at `path`, links not followed; None for nothing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise ConfigError(f"cannot write {path}: {error.strerror}", fix=ELSEWHERE) from None
    kinds = ((stat.S_ISREG, "a regular file"), (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"),
             (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))  # fmt: skip
    return next((name for test, name in kinds if test(mode)), "a device")


def _check_not_inside(folder: Path, path: Path) -> None:
    """An artifact is known by its manifest: whatever is added to its folder makes it fail verification."""
    try:
        place = folder.resolve()
        for around in (place, *place.parents):
            if (around / MANIFEST).is_file():
                raise ConfigError(f"{path} is inside the artifact {around}, which nothing changes", fix=ELSEWHERE)
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise ConfigError(f"cannot write {path}: {error}"[:300], fix=ELSEWHERE) from None
