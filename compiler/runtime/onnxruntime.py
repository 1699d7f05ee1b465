"""ONNX files by ONNX Runtime on the CPU, all graph optimizations on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.runtime.session import Array, tensor

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
          "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(double)": "float64"}  # fmt: skip


class OnnxruntimeSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_inputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference."""
        outputs: list[Array] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return outputs

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the graph's own."""
        return {
            "inputs": [tensor(n.name, DTYPES[n.type], n.shape) for n in self._session.get_inputs()],
            "outputs": [tensor(n.name, DTYPES[n.type], n.shape) for n in self._session.get_outputs()],
        }


def open(path: Path, options: Mapping[str, Any]) -> OnnxruntimeSession:
    """Opens an `.onnx` file. `options`: `threads`."""
    return OnnxruntimeSession(path, int(options.get("threads", 1)))
