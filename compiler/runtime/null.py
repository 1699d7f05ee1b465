"""A linear classifier in an `.npz` file, run by numpy: the whole build can be tested in seconds with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ConfigError
from compiler.runtime.inert import load_arrays
from compiler.runtime.session import Array, batch_of, settle, tensor

LARGEST = 256 << 20


class NullSession:
    """`weight` float32 (features, classes), `shape` of the input without the batch, `batch` where the file fixes it."""

    def __init__(self, path: Path, batch: int | None) -> None:
        try:
            stored = load_arrays(path, LARGEST)
            self._weight = stored["weight"].astype(np.float32) * stored["scale"].reshape(())
            self._shape = tuple(int(n) for n in stored["shape"])
            found = int(stored["batch"]) if "batch" in stored else None
            if self._weight.ndim != 2 or math.prod(self._shape) != len(self._weight):
                raise ValueError("the weights do not fit the input's shape")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cannot open {path.name}: {error}"[:300], fix="build or fetch it again") from None
        self._batch = settle(path, found, batch)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference."""
        return [inputs[0].reshape(len(inputs[0]), -1).astype(np.float32) @ self._weight]

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """One input, one output."""
        return {
            "inputs": [tensor("input", np.float32, (self._batch, *self._shape))],
            "outputs": [tensor("logits", np.float32, (self._batch, self._weight.shape[1]))],
        }


def open(path: Path, options: Mapping[str, Any]) -> NullSession:
    """Opens an `.npz` file. `options`: `batch`.

    Raises:
        ConfigError: it is no model, or fixes another batch.
    """
    return NullSession(path, batch_of(options))
