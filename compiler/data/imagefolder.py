"""A folder with one sub-folder of images a class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.data.source import Geometry
from compiler.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
MAX_PIXELS = 100_000_000


class ImageFolder:
    """See `compiler.data.source.Source`. Files are taken in sorted order; `classes` fixes the class order.

    Pixels are taken as stored: like torchvision's ImageFolder, this does not apply EXIF rotation.

    Raises:
        ConfigError: no folder, no images, or a sub-folder that the list of classes does not name.
    """

    def __init__(self, root: Path, classes: Path | None, geometry: Geometry) -> None:
        self._root = root
        self._geometry = geometry
        folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = _class_list(classes) if classes else folders
        for name in folders:
            if not name.isprintable():
                raise ConfigError(f"the folder {name!r} cannot name a class", fix="rename it")
        index = {name: i for i, name in enumerate(self.classes)}
        for name in folders:
            if name not in index:
                raise ConfigError(
                    f"the folder {root / name} is no class of {classes}{did_you_mean(name, self.classes)}",
                    fix="name every sub-folder in the list of classes, one a line, in the network's order",
                )
        self.ids: list[str] = []
        self.labels: list[int] = []
        for name in folders:
            for path in sorted((root / name).iterdir()):
                if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                    self.ids.append(f"{name}/{path.name}")
                    self.labels.append(index[name])
        if not self.ids:
            raise ConfigError(
                f"there are no images below {root}", fix=f"expected CLASS/FILE with one of {', '.join(SUFFIXES)}"
            )

    def image(self, index: int) -> NDArray[np.uint8]:
        """Sample `index` as uint8 RGB of shape (crop, crop, 3).

        Raises:
            ConfigError: the file is not an image that can be read, or smaller than the crop.
        """
        import numpy as np
        from PIL import Image

        path = self._root / self.ids[index]
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            with warnings.catch_warnings(), Image.open(path) as opened:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                deep = opened.mode.startswith("I")  # 16 bits, which Pillow would clip, not scale
                eight = (np.asarray(opened) >> 8).clip(0, 255).astype(np.uint8) if deep else None
                picture = (opened if eight is None else Image.fromarray(eight)).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
            raise ConfigError(f"cannot read the image {path}: {error}", fix="repair or remove the file") from None
        side, crop = self._geometry.resize, self._geometry.crop
        if side and min(picture.size) != side:
            scale = side / min(picture.size)
            if max(picture.size) * scale * side > MAX_PIXELS:
                raise ConfigError(f"{path} is too long and thin to resize", fix="crop or remove the file")
            size = tuple(max(side, round(length * scale)) for length in picture.size)
            picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        width, height = picture.size
        if width < crop or height < crop:
            raise ConfigError(f"{path} has {width} x {height} pixels after resizing, less than the crop of {crop}",
                              fix="set data.resize to at least data.crop")  # fmt: skip
        left, top = (width - crop) // 2, (height - crop) // 2
        return np.asarray(picture.crop((left, top, left + crop, top + crop)))


def _class_list(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the list of classes {path}: {error}", fix="one name a line, in UTF-8") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            f"{path} is empty or names a class twice", fix="one class name a line, in the network's order"
        )
    return names
