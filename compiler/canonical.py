"""Canonical JSON and the digests made of it: the one place that turns values into identities."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from compiler.foreign_files import open_regular

CHUNK = 1 << 20


def plain(value: object) -> object:
    """`value` as JSON types: dataclasses and mappings to dicts, sequences to lists, enums to values, paths to strings.

    Raises:
        TypeError: the value has no canonical JSON form (a set, a function, NaN).
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is dict:
        return {name if type(name) is str else str(name): plain(item) for name, item in value.items()}  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        raise TypeError("NaN has no canonical form")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical form")


def encode(value: object) -> bytes:
    """Canonical JSON: keys sorted, no white space, UTF-8, no NaN or infinity."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: object) -> str:
    """SHA-256, in hex, of the canonical JSON of `value`."""
    return hashlib.sha256(encode(value)).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a regular file's bytes, read in constant memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, which could be without end.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True, order=True)
class FileEntry:
    """One file of a result: its path relative to the result's folder (POSIX form), size and SHA-256."""

    path: str
    size: int
    sha256: str


def list_files(folder: Path) -> list[Path]:
    """Every regular file below `folder`, sorted by relative path.

    Raises:
        ValueError: something below is neither a regular file nor a folder (a link, a socket).
    """
    found: list[str] = []
    queue = [""]
    while queue:
        prefix = queue.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    queue.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    found.append(prefix + entry.name)
                else:
                    raise ValueError(f"{entry.path} is not a regular file")
    return [folder / name for name in sorted(found)]


def tree_entries(folder: Path) -> list[FileEntry]:
    """The files below `folder` with size and digest, sorted by path."""
    return [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, file_digest(path))
        for path in list_files(folder)
    ]


def tree_digest(entries: Iterable[FileEntry]) -> str:
    """The identity of a set of files: SHA-256 of their sorted canonical listing."""
    return digest([{"path": entry.path, "size": entry.size, "sha256": entry.sha256} for entry in sorted(entries)])
