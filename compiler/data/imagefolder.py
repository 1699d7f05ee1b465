"""A folder with one sub-folder of images a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.data.listing import LARGEST_CLASS_LIST, Found, class_folders, images_below, one_form, samples_in
from compiler.errors import ConfigError, did_you_mean
from compiler.foreign_files import read_limited
from compiler.pictures import FLATTENED, SUFFIXES, TURNED, read_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNREADABLE = ("error", "skip")
SHOWN_NAMES = 5


class ImageFolder:
    """See `compiler.data.source.Source`. Files are taken in sorted order; `classes` fixes the class order.

    `how` is the preprocessing (`compiler.pictures.read_picture`). `found` records what was taken, skipped and why; its
    counts of turned and flattened samples grow as they are read. Names are compared in one Unicode form.

    Raises:
        ConfigError: no folder, no images, a class without images, images one folder deeper than expected, a sub-folder
            that the list of classes does not name, or, unless `unreadable` is `skip`, an image that cannot be read.
    """

    def __init__(self, root: Path, classes: Path | None, how: Mapping[str, Any], unreadable: str = "error") -> None:
        self._how = how
        self.found = Found()
        folders = class_folders(root, self.found)
        self.classes = _class_list(classes) if classes else list(folders)
        _check_names(root, folders, self.classes, classes)
        index = {name: i for i, name in enumerate(self.classes)}
        self.ids: list[str] = []
        self.labels: list[int] = []
        self._paths: list[Path] = []
        counts = dict.fromkeys(folders, 0)
        for name, folder in folders.items():
            for sample, path in samples_in(folder, name, self.found):
                if unreadable == "skip" and not self._readable(sample, path):
                    continue
                self.ids.append(sample)
                self.labels.append(index[name])
                self._paths.append(path)
                counts[name] += 1
        _check_filled(root, folders, counts, self.found)
        self.found.absent = [name for name in self.classes if not counts.get(name)]
        self.found.notes = _notes(self.classes, classes, self.found)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Sample `index` as uint8 RGB of shape (crop, crop, 3).

        Raises:
            ConfigError: the file is not an image that can be read, or smaller than the crop.
        """
        changes: list[str] = []
        picture = read_picture(self._paths[index], self._how, changes)
        self.found.turned += TURNED in changes
        self.found.flattened += FLATTENED in changes
        return picture

    def _readable(self, sample: str, path: Path) -> bool:
        try:
            read_picture(path, self._how)
        except ConfigError:
            self.found.taken -= 1
            self.found.skip(sample, "unreadable, too large, or smaller than the crop")
            return False
        return True


def _check_names(root: Path, folders: Mapping[str, Path], names: list[str], classes: Path | None) -> None:
    for name in folders:
        if not name.isprintable():
            raise ConfigError(f"the folder {name!r} cannot name a class", fix="rename it")
        if name not in names:
            raise ConfigError(
                f"the folder {root / name} is not a class of {classes}{did_you_mean(name, names)}",
                fix="name every sub-folder in the list of classes, one a line, in the network's order",
            )


def _check_filled(root: Path, folders: Mapping[str, Path], counts: Mapping[str, int], found: Found) -> None:
    """Every folder of a class must hold images: an empty one shifts every class behind it, or hides a mistake."""
    deeper = [name for name in folders if not counts[name] and images_below(folders[name])]
    details = list(found.examples)
    if deeper and not any(counts.values()):
        raise ConfigError(
            f"the images lie one folder deeper than expected: {root} is one level too high",
            fix=" or ".join(f"data.root={folders[name]}" for name in deeper[:SHOWN_NAMES]),
            details=details,
        )
    if not any(counts.values()):
        raise ConfigError(
            f"there are no images below {root}", fix=f"expected CLASS/FILE with one of {', '.join(SUFFIXES)}",
            details=details,
        )  # fmt: skip
    empty = [name for name in folders if not counts[name]]
    if empty:
        named = ", ".join(empty[:SHOWN_NAMES]) + (
            f" and {len(empty) - SHOWN_NAMES} more" if empty[SHOWN_NAMES:] else ""
        )
        raise ConfigError(
            f"there are no images in the folder of the class {named}" if len(empty) == 1
            else f"there are no images in the folders of {len(empty)} classes: {named}",
            fix=f"put images ({', '.join(SUFFIXES)}) directly into it, or remove the folder; a class that the network "
            "knows and the data does not have belongs in data.classes",
            details=details,
        )  # fmt: skip


def _notes(names: list[str], classes: Path | None, found: Found) -> list[str]:
    notes = []
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    if classes is None and len(numbers) == len(names) and numbers != sorted(numbers):
        notes.append(
            "the classes are numbers, taken in the order of text (0, 1, 10, 11, 2): if the network's order is that of "
            "the numbers, give it as data.classes=FILE, one name a line"
        )
    if found.absent:
        notes.append(f"{len(found.absent)} of {len(names)} classes have no samples")
    return notes


def _class_list(path: Path) -> list[str]:
    try:
        text = read_limited(path, LARGEST_CLASS_LIST).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the list of classes {path}: {error}", fix="one name a line, in UTF-8") from None
    names = [one_form(line.strip()) for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            f"{path} is empty or names a class twice", fix="one class name a line, in the network's order"
        )
    return names
