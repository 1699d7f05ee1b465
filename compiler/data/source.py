"""What a dataset offers to the build."""

from __future__ import annotations

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
