"""Symmetric ranges of activations from the histograms of `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METHODS = ("minmax", "percentile", "mse")
CANDIDATES = 100
"""Limits that `mse` tries, evenly spaced up to the largest magnitude."""


def limits(calibration: Path, method: str, percentile: float) -> dict[str, float]:
    """The magnitude up to which each tensor is represented; int8 is symmetric around 0, so one number does.

    `minmax`: the largest magnitude. `percentile`: the least magnitude that `percentile` % of the values do not exceed
    (Wu et al., 2020, "Integer Quantization for Deep Learning Inference", section 5.1). `mse`: the one with the least
    mean squared error of rounding and clipping together (Sakr et al., 2022, "Optimal Clipping and Magnitude-aware
    Differentiation for Improved Quantization-aware Training").
    """
    import numpy as np

    result: dict[str, float] = {}
    with np.load(calibration / "histograms.npz", allow_pickle=False) as stored:
        rows = zip(stored["names"], stored["low"], stored["high"], stored["counts"], strict=True)
        for name, low, high, counts in rows:
            largest = max(abs(float(low)), abs(float(high)))
            if method == "minmax" or counts.sum() == 0 or not high > low:
                result[str(name)] = largest
                continue
            edges = np.linspace(low, high, len(counts) + 1)
            limit = _percentile(edges, counts, percentile) if method == "percentile" else _mse(edges, counts)
            result[str(name)] = min(limit, largest)
    return result


def _percentile(edges: NDArray[np.float64], counts: NDArray[np.int64], percentile: float) -> float:
    """`edges` (bins + 1), `counts` (bins): the outer edge, by magnitude, of the bin that completes the share."""
    import numpy as np

    magnitudes = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    order = np.argsort(magnitudes, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    return float(magnitudes[order][int(np.searchsorted(share, percentile / 100.0 * (1 - 1e-12)))])


def _mse(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    import numpy as np

    values, weights = ((edges[:-1] + edges[1:]) / 2)[counts > 0], counts[counts > 0]
    largest = float(np.abs(edges).max())
    tried = largest * np.arange(1, CANDIDATES + 1) / CANDIDATES
    scales = tried[:, None] / 127
    errors = np.square(values - np.clip(np.round(values / scales), -128, 127) * scales) @ weights
    return float(tried[int(np.argmin(errors))])
