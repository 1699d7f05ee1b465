"""What a dataset offers to the build, and the lookup of a dataset by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Source(Protocol):
    """Labelled images in a fixed order.

    `ids[i]` names sample `i` (stable across machines), `labels[i]` is its class index (0-based), and
    `classes[c]` the name of class `c`.
    """

    ids: list[str]
    labels: list[int]
    classes: list[str]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Sample `index` as uint8 RGB of shape (height, width, 3), resized and cropped, not normalised."""
        ...


@dataclass(frozen=True)
class Geometry:
    """How an image is brought to the network's input size, in pixels."""

    resize: int
    """Length of the shorter side after resizing (bilinear); 0 keeps the image's own size."""
    crop: int
    """Side of the centre crop."""
