"""From an image to a model's input tensor and from its output tensor to logits, as the signature says.

Arrays: images uint8 (n, height, width, 3) RGB; logits float32 (n, classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import ConfigError
from compiler.runtime.session import Array


def encode(images: NDArray[np.uint8], signature: Mapping[str, Any]) -> Array:
    """`images` as the first input of the model: normalised, in its layout, quantized where its dtype is an integer.

    Raises:
        ConfigError: the images do not have the size that the model takes.
    """
    entry = signature["inputs"][0]
    how = signature["preprocessing"]
    height, width = spatial(entry)
    if images.ndim != 4 or images.shape[1:] != (height, width, 3):
        raise ConfigError(
            f"images have the shape {tuple(images.shape)}",
            fix=f"the model takes uint8 RGB of shape (n, {height}, {width}, 3)",
        )
    mean = np.asarray(how["mean"], np.float32)
    std = np.asarray(how["std"], np.float32)
    values = (images.astype(np.float32) / np.float32(255.0) - mean) / std
    if entry["layout"] == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    return quantize(np.ascontiguousarray(values, dtype=np.float32), entry)


def quantize(values: NDArray[np.float32], entry: Mapping[str, Any]) -> Array:
    """Float values in the dtype of a signature's tensor: rounded to its grid where it has a scale."""
    dtype = np.dtype(entry["dtype"])
    if not np.issubdtype(dtype, np.integer):
        return np.asarray(values, dtype)
    limits = np.iinfo(dtype)
    grid = np.round(values / np.float32(entry["scale"])) + entry["zero_point"]
    return np.asarray(np.clip(grid, limits.min, limits.max), dtype)


def decode(output: Array, entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """A model's output tensor as float32, undoing the scale where it is quantized."""
    if np.issubdtype(output.dtype, np.integer) and "scale" in entry:
        return (output.astype(np.float32) - np.float32(entry["zero_point"])) * np.float32(entry["scale"])
    return output.astype(np.float32)


def spatial(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an image input."""
    shape = entry["shape"]
    return (shape[2], shape[3]) if entry["layout"] == "NCHW" else (shape[1], shape[2])
