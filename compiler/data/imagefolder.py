"""A folder with one sub-folder of images a class."""

from __future__ import annotations

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

    Raises:
        ConfigError: no folder, no images, or a sub-folder that the list of classes does not name.
    """

    def __init__(self, root: Path, classes: Path | None, geometry: Geometry) -> None:
        self._root = root
        self._geometry = geometry
        folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = _class_list(classes) if classes else folders
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
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ConfigError(f"cannot read the image {path}: {error}", fix="repair or remove the file") from None
        side, crop = self._geometry.resize, self._geometry.crop
        if side and min(picture.size) != side:
            scale = side / min(picture.size)
            size = tuple(max(side, round(length * scale)) for length in picture.size)
            picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        width, height = picture.size
        if width < crop or height < crop:
            raise ConfigError(f"{path} has {width} x {height} pixels after resizing, less than the crop of {crop}",
                              fix="set data.resize to at least data.crop")  # fmt: skip
        left, top = (width - crop) // 2, (height - crop) // 2
        return np.asarray(picture.crop((left, top, left + crop, top + crop)))


def _class_list(path: Path) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            f"{path} is empty or names a class twice", fix="one class name a line, in the network's order"
        )
    return names
