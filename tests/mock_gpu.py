"""What stands in for an NVIDIA GPU where there is none: a mock `nvidia-smi`, and a mock of CUDA's runtime bindings.

The mock runtime keeps the GPU's memory in the host's and runs what is queued at once; what is queued while a stream
is being captured runs when the graph is launched. It takes the arguments that cuda-bindings 13.5 states, no others.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.runtime import gpu

T4 = {
    "name": "Tesla T4", "driver_version": "580.95.05", "compute_cap": "7.5", "memory.total": "15360",
    "memory.used": "312", "memory.free": "14734", "utilization.gpu": "87", "clocks.sm": "1590",
    "temperature.gpu": "61", "power.draw": "68.31", "pstate": "P0",
    "clocks_event_reasons.hw_thermal_slowdown": "Not Active",
    "clocks_event_reasons.sw_thermal_slowdown": "Not Active",
    "clocks_event_reasons.hw_power_brake_slowdown": "Not Active",
    "clocks_event_reasons.sw_power_cap": "Active",
}  # fmt: skip
"""As `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` prints it for a T4 at work."""

SCRIPT = '''#!{python} -IS
"""A mock of nvidia-smi: prints what the file beside it says."""
import json, pathlib, sys
state = json.loads(pathlib.Path({state!r}).read_text())
wanted = dict(a[2:].partition("=")[::2] for a in sys.argv[1:])
chosen = state["gpus"]
if "id" in wanted:
    if not (wanted["id"].isdigit() and int(wanted["id"]) < len(chosen)):
        print("No devices were found")
        sys.exit(6)
    chosen = [chosen[int(wanted["id"])]]
rows, asked = (chosen, "query-gpu") if "query-gpu" in wanted else (state["apps"], "query-compute-apps")
for name in wanted[asked].split(","):
    if rows and name not in rows[0]:
        print(f'Field "{{name}}" is not a valid field to query.')
        sys.exit(2)
for row in rows:
    print(", ".join(str(row[name]) for name in wanted[asked].split(",")))
'''


class MockNvidiaSmi:
    """An executable `nvidia-smi` first on PATH. `set` changes what it says of a GPU."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[dict[str, str]]) -> None:
        folder.mkdir(exist_ok=True)
        self._state = folder / "state.json"
        self._gpus, self.apps = [dict(g) for g in gpus], list[dict[str, Any]]()
        self.save()
        tool = folder / "nvidia-smi"
        tool.write_text(SCRIPT.format(python=sys.executable, state=str(self._state)))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        gpu.describe.cache_clear()

    def set(self, number: int = 0, **values: str) -> None:
        """Field names with `_` for `.` where that is meant."""
        for name, value in values.items():
            known = next(key for key in self._gpus[number] if key.replace(".", "_") == name)
            self._gpus[number][known] = value
        self.save()

    def save(self) -> None:
        self._state.write_text(json.dumps({"gpus": self._gpus, "apps": self.apps}))
        gpu.describe.cache_clear()


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class MockCudaRuntime(types.ModuleType):
    """In place of `cuda.bindings.runtime`: functions return a status first, as there."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, memory_mb: int = 14734, name: str = "Tesla T4") -> None:
        super().__init__("cuda.bindings.runtime")
        self.free, self.device_name = memory_mb << 20, name
        self.blocks: dict[int, Any] = {}
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launched = 0
        self._count = 100

    def _new(self) -> int:
        self._count += 1
        return self._count

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        """For other mocks: what the GPU would do."""
        if int(stream) in self.captured:
            self.captured[int(stream)].append(work)
        else:
            work()

    def cudaGetErrorName(self, error: int) -> Any:
        return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error: int) -> Any:
        return cudaError_t.cudaSuccess, {2: b"out of memory"}.get(int(error), b"invalid argument")

    def cudaGetDevice(self) -> Any:
        return cudaError_t.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> Any:
        assert device == 0
        return cudaError_t.cudaSuccess, types.SimpleNamespace(name=self.device_name.encode(), major=7, minor=5)

    def cudaRuntimeGetVersion(self) -> Any:
        return cudaError_t.cudaSuccess, 13050

    def cudaMemGetInfo(self) -> Any:
        return cudaError_t.cudaSuccess, self.free, 15360 << 20

    def cudaMalloc(self, size: int) -> Any:
        if size > self.free:
            return cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        self.free -= size
        return cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, devPtr: int) -> Any:
        self.free += len(self.blocks.pop(devPtr))
        return (cudaError_t.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        assert flags == 0
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaFreeHost(self, ptr: int) -> Any:
        del self.blocks[ptr]
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> Any:
        if not isinstance(kind, cudaMemcpyKind) or dst not in self.blocks or src not in self.blocks:
            return (cudaError_t.cudaErrorInvalidValue,)
        self.queue(stream, lambda: ctypes.memmove(dst, src, count) and None)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        return cudaError_t.cudaSuccess, self._new()

    def cudaStreamDestroy(self, stream: int) -> Any:
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert stream not in self.captured, "waiting is an error while a stream is captured"
        return (cudaError_t.cudaSuccess,)

    def cudaEventCreate(self) -> Any:
        return cudaError_t.cudaSuccess, [0.0]

    def cudaEventRecord(self, event: list[float], stream: int) -> Any:
        event[0] = time.perf_counter()
        return (cudaError_t.cudaSuccess,)

    def cudaEventDestroy(self, event: list[float]) -> Any:
        return (cudaError_t.cudaSuccess,)

    def cudaEventElapsedTime(self, start: list[float], end: list[float]) -> Any:
        return cudaError_t.cudaSuccess, (end[0] - start[0]) * 1e3

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> Any:
        assert isinstance(mode, cudaStreamCaptureMode)
        self.captured[stream] = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        return cudaError_t.cudaSuccess, self.captured.pop(stream)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        number = self._new()
        self.graphs[number] = graph
        return cudaError_t.cudaSuccess, number

    def cudaGraphDestroy(self, graph: Any) -> Any:
        return (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: int) -> Any:
        return (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> Any:
        self.launched += 1
        for work in self.graphs[graphExec]:
            work()
        return (cudaError_t.cudaSuccess,)


def install_cuda(monkeypatch: pytest.MonkeyPatch, runtime: MockCudaRuntime) -> MockCudaRuntime:
    """Puts the mock where `from cuda.bindings import runtime` finds it."""
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    package.bindings, bindings.runtime = bindings, runtime  # type: ignore[attr-defined]
    for name, module in (("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.runtime", runtime)):
        monkeypatch.setitem(sys.modules, name, module)
    return runtime
