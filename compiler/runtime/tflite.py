"""TFLite files by LiteRT (package ai-edge-litert), with XNNPACK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime.session import Array, tensor


class TfliteSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference."""
        for detail, value in zip(self._inputs, inputs, strict=True):
            self._interpreter.set_tensor(detail["index"], value)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the file's own; `scale` and `zero_point` where the tensor is quantized per tensor."""
        return {"inputs": [_entry(d) for d in self._inputs], "outputs": [_entry(d) for d in self._outputs]}


def _entry(detail: dict[str, Any]) -> dict[str, Any]:
    scale, zero = detail["quantization"]
    return tensor(detail["name"], np.dtype(detail["dtype"]), detail["shape"], scale, zero)


def open(path: Path, options: Mapping[str, Any]) -> TfliteSession:
    """Opens a `.tflite` file. `options`: `threads`."""
    return TfliteSession(path, int(options.get("threads", 1)))
