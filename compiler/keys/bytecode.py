"""Compiled source that is out of date. Python takes it for current by the source's size and full second alone.

An edit within the second of the last one, or one that keeps the file's time, would otherwise be in the key and not in
what the worker runs.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
from pathlib import Path

from compiler.errors import ConfigError
from compiler.keys.memo import SETTLED_NS

HEADER = 16
CHECKED = 0b10


def drop_outdated(source: Path, module: str) -> None:
    """Removes what Python would run in place of `source` although it was compiled from an earlier one.

    Raises:
        ConfigError: it cannot be removed, or this process has loaded it as `module`.
    """
    beside = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    for path in {beside, Path(importlib.util.cache_from_source(str(source), optimization=""))}:
        if not _is_outdated(path, source):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} is not compiled from {source} as it is now", fix="remove it") from error
        if module in sys.modules:
            raise ConfigError(
                f"{source} was loaded as it was before its last change, from a {path.name} now removed", fix="run again"
            )


def _is_outdated(path: Path, source: Path) -> bool:
    try:
        if path.stat().st_mtime_ns - source.stat().st_ctime_ns > SETTLED_NS:
            return False  # compiled after the source's last change
        data, info = path.read_bytes(), source.stat()
        if not _is_believed(data[:HEADER], info.st_mtime, info.st_size):
            return False
        wanted = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
        return bool(marshal.loads(data[HEADER:]) != wanted)  # noqa: S302 - Python would run it
    except (OSError, ValueError, EOFError, TypeError, SyntaxError):
        return False  # Python does not run it either


def _is_believed(header: bytes, mtime: float, size: int) -> bool:
    """Whether Python runs what follows `header` without a look at the source's text."""
    if header[:4] != importlib.util.MAGIC_NUMBER:
        return False
    flags, first, second = (int.from_bytes(header[i : i + 4], "little") for i in (4, 8, 12))
    if flags:
        return not flags & CHECKED
    return (first, second) == (int(mtime) & 0xFFFFFFFF, size & 0xFFFFFFFF)
