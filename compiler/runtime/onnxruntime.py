"""ONNX files by ONNX Runtime on the CPU, all graph optimizations on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.runtime.session import Array, batch_of, fixed_batch, settle, tensor

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
          "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(double)": "float64"}  # fmt: skip
DIMENSION = "batch"  # what our exporter names the open first dimension


class OnnxruntimeSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int, batch: int | None, disabled: tuple[str, ...] = ()) -> None:
        self._session = _session(path, threads, DIMENSION, batch or 1, disabled)
        first = self._session.get_inputs()[0].shape[0]
        self._path, self._batch = path, settle(path, first, batch)
        if isinstance(first, str):  # somebody else's file, with another name for it
            self._session = _session(path, threads, first, self._batch, disabled)
        self._names = [node.name for node in self._session.get_inputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference. Raises ConfigError where an operator holds another batch than the input's."""
        try:
            outputs: list[Array] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        except Exception as error:  # the library's own classes have no other base
            if self._batch == 1:
                raise
            raise fixed_batch(self._path, 1, self._batch, str(error).splitlines()[:1]) from error
        return outputs

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the graph's own."""
        return {
            "inputs": [self._entry(n) for n in self._session.get_inputs()],
            "outputs": [self._entry(n) for n in self._session.get_outputs()],
        }

    def _entry(self, node: Any) -> dict[str, Any]:
        return tensor(node.name, DTYPES[node.type], node.shape, batch=self._batch)


def _session(path: Path, threads: int, dimension: str, batch: int, disabled: tuple[str, ...]) -> Any:
    """A session whose open `dimension` is fixed before the graph is optimized: an open batch then costs nothing."""
    import onnxruntime

    options = session_options(threads, dimension, batch)
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )


def session_options(threads: int, dimension: str, batch: int) -> Any:
    """onnxruntime.SessionOptions: all graph optimizations, the open `dimension` fixed at `batch`, ONNX files only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name(dimension, batch)
    # data beside the file is confined to its folder by the library itself, from 1.31 on (tests/test_malice.py)
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def open(path: Path, options: Mapping[str, Any]) -> OnnxruntimeSession:
    """Opens an `.onnx` file. `options`: `threads`, `batch`, and `disabled_optimizers`, names of graph optimizations
    that get a model wrong; no artifact may ask for that.

    Raises:
        ConfigError: the file fixes another batch.
    """
    disabled = tuple(map(str, options.get("disabled_optimizers", ())))
    return OnnxruntimeSession(path, int(options.get("threads", 1)), batch_of(options), disabled)
