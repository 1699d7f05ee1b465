"""Layers whose output channels have ranges too different for one scale: why int8 fails where nothing else is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORD = "calibration.json"
CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""Operator -> the axis of its output that holds channels; the first output of each is quantized with one scale."""
UNEVEN = 50.0
"""Largest channel range over the median one. At 50, half of the channels share 5 of the 256 steps of int8."""
MOST = 3
"""Layers that are named."""


class ChannelRanges:
    """Collects the largest magnitude of every channel of the layers' outputs over the calibration samples."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        """`nodes`: of an ONNX graph, in order."""
        self._layers = {
            node.output[0]: (node.name or node.output[0], CHANNEL_AXIS[node.op_type])
            for node in nodes
            if node.op_type in CHANNEL_AXIS
        }
        self._largest: dict[str, NDArray[np.float32]] = {}

    def add(self, tensor: str, value: NDArray[np.float32]) -> None:
        """Take in one sample's activation `value`, float32 of any shape; infinite values are left out."""
        import numpy as np

        if tensor not in self._layers or value.ndim < 2:
            return
        axis = self._layers[tensor][1]
        magnitude = np.abs(np.moveaxis(value, axis, -1)).reshape(-1, value.shape[axis])
        largest = np.where(np.isfinite(magnitude), magnitude, 0.0).max(axis=0)
        known = self._largest.get(tensor)
        self._largest[tensor] = largest if known is None else np.maximum(known, largest)

    def uneven(self) -> list[dict[str, Any]]:
        """The layers over `UNEVEN`, the worst first: name, largest and median range of a channel that is in use."""
        import numpy as np

        rows = []
        for tensor, largest in self._largest.items():
            used = largest[largest > 0]
            if used.size < 2:
                continue
            median, most = float(np.median(used)), float(used.max())
            if most > UNEVEN * median:
                rows.append({"layer": self._layers[tensor][0], "largest": most, "median": median})
        return sorted(rows, key=lambda row: (-row["largest"] / row["median"], row["layer"]))[:MOST]


def uneven_layers(calibration: Path | None) -> list[str]:
    """What `calibrate` found in its result folder, a sentence for each layer; nothing without such a folder."""
    if calibration is None or not (calibration / RECORD).is_file():
        return []
    rows = json.loads((calibration / RECORD).read_text()).get("uneven", [])
    return [
        f"the channels of {row['layer']} have ranges of up to {row['largest']:.3g}, and of {row['median']:.3g} in the "
        f"median: one scale for all leaves {max(1, round(256 * row['median'] / row['largest']))} of 256 steps to half "
        "of the channels"
        for row in rows
    ]
