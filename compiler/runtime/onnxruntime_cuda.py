"""ONNX files by ONNX Runtime on an NVIDIA GPU: its CUDA provider or nothing, with buffers of ours and fp32 in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, MissingToolError, StepError
from compiler.runtime import cuda, gpu
from compiler.runtime.cuda_session import WARM_CALLS, CudaSession
from compiler.runtime.onnxruntime import DIMENSION, DTYPES, session_options
from compiler.runtime.session import batch_of, fixed_batch, settle, tensor

PROVIDER = "CUDAExecutionProvider"
SHAPES = frozenset(
    {"Shape", "Size", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Constant", "ConstantOfShape", "Range",
     "Cast", "Add", "Sub", "Mul", "Div", "Equal", "Where", "Reshape"}
)  # fmt: skip
"""What the library computes on the CPU on purpose, where it is of shapes."""


class OnnxruntimeCudaSession(CudaSession):
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int, batch: int | None, graph: bool) -> None:
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            raise MissingToolError(
                "the installed onnxruntime has no CUDA provider",
                fix="pip uninstall onnxruntime && pip install 'target-model-compiler[onnxruntime-gpu]'",
            )
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their own packages, where the system has none
        stream = cuda.Stream()
        used = cuda.device()
        gpu.check_same(used["gpu"], used["compute_capability"])
        self._session = _session(onnxruntime, path, threads, DIMENSION, batch or 1, graph, stream)
        first = self._session.get_inputs()[0].shape[0]
        size = settle(path, first, batch)
        if isinstance(first, str):  # somebody else's file, with another name for it
            self._session = _session(onnxruntime, path, threads, first, size, graph, stream)
        inputs, outputs = (
            [tensor(node.name, DTYPES[node.type], node.shape, batch=size) for node in nodes]
            for nodes in (self._session.get_inputs(), self._session.get_outputs())
        )
        super().__init__(inputs, outputs, stream)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding = self._session.io_binding()
        for entry, buffer in zip(self.entries_in, self.buffers_in, strict=True):
            kind = buffer.array.dtype.type
            self._binding.bind_input(entry["name"], "cuda", 0, kind, entry["shape"], buffer.address)
        for entry, buffer in zip(self.entries_out, self.buffers_out, strict=True):
            kind = buffer.array.dtype.type
            self._binding.bind_output(entry["name"], "cuda", 0, kind, entry["shape"], buffer.address)
        try:
            for _ in range(WARM_CALLS if graph else 1):  # with graphs, the library records in its first calls
                self._enqueue()
            self.stream.wait()
        except Exception as error:  # the library's own classes have no other base
            if size == 1 or "memory" in str(error).lower():
                raise
            raise fixed_batch(path, 1, size, str(error).splitlines()[:1]) from error

    def _enqueue(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)


def _session(
    onnxruntime: Any, path: Path, threads: int, dimension: str, batch: int, graph: bool, stream: cuda.Stream
) -> Any:  # fmt: skip
    """A session on the GPU whose open `dimension` is fixed.

    Raises:
        MissingToolError: the provider does not load.
        StepError: it leaves an operator to the CPU.
        ConfigError: the model cannot be recorded as a CUDA graph.
    """
    options = session_options(threads, dimension, batch)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    how = {
        "device_id": "0",
        "user_compute_stream": str(int(stream)),
        "use_tf32": "0",  # fp32 is fp32: on newer GPUs the library would round its factors to 10 bits
        "enable_cuda_graph": "1" if graph else "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(PROVIDER, how)])
    except Exception as error:  # the library's own classes have no other base
        if not graph or "raph" not in str(error) or "memory" in str(error).lower():
            raise
        raise ConfigError(
            f"ONNX Runtime cannot record {path.name} as a CUDA graph: {str(error).splitlines()[0]}",
            fix="set cuda_graph to false in the candidate's options",
        ) from error
    if PROVIDER not in session.get_providers():
        raise MissingToolError(
            "ONNX Runtime's CUDA provider does not load here, and its CPU provider is no substitute",
            fix="install the CUDA and cuDNN that this onnxruntime-gpu was built for: "
            "pip install 'target-model-compiler[onnxruntime-gpu]'",
        )
    apart = _on_the_cpu(session)
    if apart:
        raise StepError(
            f"the CUDA provider does not take every operator of {path.name}: {', '.join(apart)} would run on the CPU",
            fix="leave this candidate out, or replace the operators",
        )
    return session


def _on_the_cpu(session: Any) -> list[str]:
    """The operators that the library left to its CPU provider, but for those that only work out shapes.

    `get_providers` does not tell: it lists the CPU's provider always, and the library says nothing of single nodes.
    """
    found = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
    }
    return sorted(found - SHAPES)


def open(path: Path, options: Mapping[str, Any]) -> OnnxruntimeCudaSession:
    """Opens an `.onnx` file. `options`: `threads`, `batch`, `cuda_graph`, `streams`.

    Raises:
        MissingToolError: the CUDA provider is not there or does not load.
        ConfigError: the file fixes another batch.
    """
    graph = bool(options.get("cuda_graph", False))
    return OnnxruntimeCudaSession(path, int(options.get("threads", 1)), batch_of(options), graph)
