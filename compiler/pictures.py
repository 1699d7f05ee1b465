"""A picture file as a network's input image: opened with care, as a viewer shows it, resized and cropped.

The build reads its samples by this module and the runtime reads its pictures by it, so that both see the same pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import ConfigError, MissingToolError
from compiler.foreign_files import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
MAX_PIXELS = 100_000_000
"""Of a file: 300 MB as RGB. A small file can claim any size."""
ORIENTATIONS = ("exif", "stored")
UPRIGHT = 1
ORIENTATION_TAG = 0x0112
TURNED, FLATTENED = "turned", "flattened"


def read_picture(path: Path, how: Mapping[str, Any], changes: list[str] | None = None) -> NDArray[np.uint8]:
    """The picture as uint8 RGB of shape (crop, crop, 3), not normalised.

    `how`, as a manifest's `preprocessing` records it:

    - `orientation`: `exif` turns and mirrors it as its EXIF entry says, `stored` does not;
    - `background`: three numbers from 0 to 255, the colour behind what is transparent; null keeps the stored colours;
    - `resize`: length of the shorter side (bilinear), 0 for the picture's own; `crop`: side of the centre crop; pixels.

    `changes` is appended `turned` or `flattened` where orientation or transparency changed what is seen.

    Raises:
        ConfigError: it is not a picture that can be read, has more than `MAX_PIXELS`, or is smaller than the crop.
        MissingToolError: Pillow is not installed.
    """
    import numpy as np

    picture = _open(
        path, str(how.get("orientation", "stored")), how.get("background"), [] if changes is None else changes
    )
    return np.asarray(_fit(picture, path, int(how["resize"]), int(how["crop"])))


def _open(path: Path, orientation: str, background: Any, changes: list[str]) -> Image.Image:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MissingToolError("Pillow, which reads pictures, is not installed", fix="pip install pillow") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limits, which its users may have moved: ours is below
            with open_regular(path) as stream, Image.open(stream) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ConfigError(
                        f"the image {path} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}",
                        fix="make it smaller, or remove the file",
                    )
                return _upright(_flat(opened, background, changes), opened, orientation, changes)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path}: {error}", fix="repair or remove the file") from None


def _flat(opened: Image.Image, background: Any, changes: list[str]) -> Image.Image:
    """`opened` as RGB, on `background` where it is transparent."""
    import numpy as np
    from PIL import Image

    if opened.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        return Image.fromarray((np.asarray(opened) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if background is None or not opened.has_transparency_data:
        return opened.convert("RGB")
    picture = opened.convert("RGBA")
    if picture.getextrema()[3] == (255, 255):
        return picture.convert("RGB")
    changes.append(FLATTENED)
    behind = Image.new("RGBA", picture.size, (*(int(value) for value in background), 255))
    return Image.alpha_composite(behind, picture).convert("RGB")


def _upright(picture: Image.Image, opened: Image.Image, orientation: str, changes: list[str]) -> Image.Image:
    """`picture` turned as the EXIF entry of `opened` says."""
    from PIL import Image

    if orientation != "exif":
        return picture
    try:
        number = opened.getexif().get(ORIENTATION_TAG, UPRIGHT)
    except Exception:  # Pillow raises whatever its parser meets; a viewer shows a file with broken EXIF as stored
        return picture
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(number)  # fmt: skip
    if turn is None:
        return picture
    changes.append(TURNED)
    return picture.transpose(turn)


def _fit(picture: Image.Image, path: Path, side: int, crop: int) -> Image.Image:
    from PIL import Image

    if side and min(picture.size) != side:
        scale = side / min(picture.size)
        if max(picture.size) * scale * side > MAX_PIXELS:
            raise ConfigError(f"{path} is too long and thin to resize", fix="crop or remove the file")
        size = tuple(max(side, round(length * scale)) for length in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    width, height = picture.size
    if width < crop or height < crop:
        raise ConfigError(
            f"{path} has {width} x {height} pixels after resizing, less than the crop of {crop}",
            fix="set data.resize to at least data.crop",
        )
    left, top = (width - crop) // 2, (height - crop) // 2
    return picture.crop((left, top, left + crop, top + crop))
