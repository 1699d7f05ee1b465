"""scikit-learn's 1,797 scanned digits (8 x 8 pixels, 10 classes): real data that needs no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, test part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNT = 1797
"""Of the pictures, known without opening them."""


class Digits:
    """See `compiler.data.source.Source`. Images are scaled up to `side` pixels and made RGB."""

    def __init__(self, side: int) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self._images = bunch.images  # float64 (1797, 8, 8), 0 to 16
        self._side = side
        self.labels = [int(label) for label in bunch.target]
        self.ids = [f"digits/{i:04d}" for i in range(len(self.labels))]
        self.classes = [str(name) for name in bunch.target_names]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Sample `index` as uint8 RGB of shape (side, side, 3)."""
        import numpy as np
        from PIL import Image

        grey = np.rint(self._images[index] * (255.0 / 16.0)).astype(np.uint8)
        big = Image.fromarray(grey).resize((self._side, self._side), Image.Resampling.BILINEAR)
        return np.repeat(np.asarray(big)[:, :, None], 3, axis=2)
