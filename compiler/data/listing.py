"""What lies in a folder of images: which files are taken as samples, and why others are not."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError
from compiler.pictures import SUFFIXES

JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
LARGEST_CLASS_LIST = 16 << 20
SHOWN = 20
"""Paths of skipped files that a record keeps; the counts cover all of them."""


@dataclass
class Found:
    """The record of a folder of images: `taken` files, how many were `skipped` for which reason, some of their paths.

    `turned` and `flattened` count the samples whose EXIF orientation or transparency changed what is seen; `absent` are
    classes of the list without a folder; `notes` are sentences for the user.
    """

    taken: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    turned: int = 0
    flattened: int = 0
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, path: str, why: str) -> None:
        """Counts a file or folder that is not taken."""
        self.skipped[why] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(f"{path}: {why}")

    def facts(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "taken": self.taken, "skipped": dict(sorted(self.skipped.items())), "examples": list(self.examples),
            "turned": self.turned, "flattened": self.flattened, "absent_classes": len(self.absent),
            "notes": list(self.notes),
        }  # fmt: skip


def one_form(name: str) -> str:
    """`name` in Unicode's composed form (NFC): file systems and editors write the same name in two ways."""
    return unicodedata.normalize("NFC", name)


def class_folders(root: Path, found: Found) -> dict[str, Path]:
    """Class name, in one Unicode form, to its folder; in the order of the names.

    Raises:
        ConfigError: `root` cannot be read, or two folders have one name in two Unicode forms.
    """
    folders: dict[str, Path] = {}
    for path in _entries(root):
        name = one_form(path.name)
        if (why := _unwanted(path)) is not None:
            found.skip(path.name, why)
        elif not path.is_dir():
            found.skip(path.name, _of_a_file(path) or "not in the folder of a class")
        elif path.is_symlink():
            found.skip(path.name, "a link to a folder")  # it may lead round in a circle, and its files are in no key
        elif name in folders:
            raise ConfigError(
                f"the folders {folders[name]} and {path} have one name, written in two Unicode forms",
                fix="rename or merge them",
            )
        else:
            folders[name] = path
    return dict(sorted(folders.items()))


def samples_in(folder: Path, name: str, found: Found) -> list[tuple[str, Path]]:
    """Sample names, `class/file` in one Unicode form, and their files: the images directly in the folder of a class.

    Raises:
        ConfigError: the folder cannot be read.
    """
    taken: list[tuple[str, Path]] = []
    for path in _entries(folder):
        shown = f"{name}/{one_form(path.name)}"
        if (why := _unwanted(path)) is not None:
            found.skip(shown, why)
        elif path.is_dir():
            _skip_below(path, shown, found)
        elif (why := _of_a_file(path)) is not None:
            found.skip(shown, why)
        else:
            taken.append((shown, path))
    found.taken += len(taken)
    return sorted(taken)


def images_below(folder: Path) -> bool:
    """Whether sub-folders of `folder` hold images: the sign of a root that was given one level too high."""
    return any(
        not path.is_symlink() and path.is_dir() and any(_of_a_file(file) is None for file in _entries(path))
        for path in _entries(folder)
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"cannot read the folder {folder}: {error.strerror}", fix="check its permissions, or remove it"
        ) from None


def _unwanted(path: Path) -> str | None:
    return "hidden, or written by an operating system" if path.name.startswith(".") or path.name in JUNK else None


def _of_a_file(path: Path) -> str | None:
    """Why `path`, which is not a folder, is not a sample; None where it is one."""
    if not path.is_file():
        return "a link that leads nowhere" if path.is_symlink() else "not a regular file"
    if path.suffix.lower() not in SUFFIXES:
        return f"not named as an image ({path.suffix.lower() or 'no suffix'})"
    return None


def _skip_below(folder: Path, shown: str, found: Found) -> None:
    """Counts the files of a folder inside a class, and does not follow links: they may lead round in a circle."""
    if folder.is_symlink():
        found.skip(shown, "a link to a folder")
        return
    empty = True
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            empty = False
            found.skip(f"{shown}/{(Path(where) / name).relative_to(folder).as_posix()}", "in a folder inside a class")
    if empty:
        found.skip(shown, "an empty folder inside a class")
