"""A session whose tensors are ours: pinned memory here, buffers on the GPU, one stream.

TensorRT and ONNX Runtime use it. PyTorch has memory and streams of its own: `torch_gpu`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.runtime import cuda
from compiler.runtime.device import DeviceSession, check_inputs
from compiler.runtime.session import Array

WARM_CALLS = 2
"""Before a call is recorded: libraries allocate and choose kernels in their first ones."""


class CudaSession(DeviceSession):
    """`entries_in` and `entries_out` are the signature's; `_enqueue` queues the computation on `stream`."""

    def __init__(
        self, entries_in: list[dict[str, Any]], entries_out: list[dict[str, Any]], stream: cuda.Stream | None = None
    ) -> None:
        self.stream = stream or cuda.Stream()
        self.entries_in, self.entries_out = entries_in, entries_out
        self.buffers_in = [cuda.Buffer(entry["shape"], entry["dtype"]) for entry in entries_in]
        self.buffers_out = [cuda.Buffer(entry["shape"], entry["dtype"]) for entry in entries_out]
        self._graph: cuda.Graph | None = None
        self.recording = False

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """See `compiler.runtime.session.Session`."""
        return {"inputs": list(self.entries_in), "outputs": list(self.entries_out)}

    def record(self) -> None:
        """Records the computation as a CUDA graph, which all later calls use."""
        for _ in range(WARM_CALLS):
            self._enqueue()
        self.stream.wait()
        self.recording = True
        self._graph = cuda.Graph(self.stream, self._enqueue)
        self.recording = False

    @abstractmethod
    def _enqueue(self) -> None: ...

    def _stage(self, inputs: Sequence[Array]) -> None:
        check_inputs(inputs, self.entries_in)
        for buffer, value in zip(self.buffers_in, inputs, strict=True):
            np.copyto(buffer.array, value, casting="no")

    def _copy_in(self) -> None:
        for buffer in self.buffers_in:
            buffer.copy_in(self.stream)

    def _compute(self) -> None:
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self.stream)

    def _copy_out(self) -> None:
        for buffer in self.buffers_out:
            buffer.copy_out(self.stream)

    def _outputs(self) -> list[Array]:
        self.stream.wait()
        return [np.array(buffer.array) for buffer in self.buffers_out]

    def _mark(self) -> cuda.Event:
        return self.stream.mark()

    def _between(self, before: cuda.Event, after: cuda.Event) -> float:
        return after.since(before)
