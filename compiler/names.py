"""Names of the files that travel: an allow-list, so that none means anything else on another system."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_LENGTH = 255
MAX_PARTS = 8
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


def check_name(name: str) -> None:
    """Checks the path of a file relative to its artifact's folder, in POSIX form.

    Raises:
        ValueError: it is longer or deeper than allowed, or a part of it is not letters, digits, `_`, `.`, `+` and `-`
            with one of the first three in front: so nothing hidden, no parent folder, no white space, no separator
            but `/`.
    """
    if not isinstance(name, str):
        raise ValueError(f"{type(name).__name__} is no name of a file")
    if len(name) > MAX_LENGTH:
        raise ValueError(f"the name {name[:40]!r}... has {len(name)} characters, {MAX_LENGTH} are allowed")
    parts = name.split("/")
    if len(parts) > MAX_PARTS:
        raise ValueError(f"{name!r} lies {len(parts) - 1} folders deep, {MAX_PARTS - 1} are allowed")
    if not all(PART.fullmatch(part) for part in parts):
        raise ValueError(f"{name!r} is no name that an artifact's file may have")


def check_names(names: Iterable[str]) -> None:
    """Checks each name, and that they can lie beside each other on any file system.

    Raises:
        ValueError: a name is not allowed, is there twice, differs from another only in case, or is a folder of another.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        check_name(name)
        other = files.get(name.lower())
        if other is not None:
            raise ValueError(f"{name!r} is there twice" if other == name else f"{other!r} and {name!r} differ in case")
        files[name.lower()] = name
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folders.setdefault(folder.lower(), folder) != folder:
                raise ValueError(f"{folders[folder.lower()]!r} and {folder!r} differ in case")
    for folder in sorted(folders.keys() & files.keys()):
        raise ValueError(f"{files[folder]!r} is a file, and a folder of others")
