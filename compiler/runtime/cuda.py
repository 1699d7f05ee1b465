"""The few calls of the CUDA runtime that sessions need, by NVIDIA's own bindings; every status is checked."""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compiler.errors import OutOfMemory, StepError
from compiler.runtime.session import Array

MEMORY_ERRORS = ("cudaErrorMemoryAllocation", "cudaErrorMemoryValueTooLarge")
MB = 1 << 20


def call(name: str, *arguments: Any) -> Any:
    """What the CUDA runtime's function of that name returns, its status taken off: a value, a tuple of some, or None.

    Raises:
        OutOfMemory: the GPU, or the host's memory that cannot be swapped, is full.
        StepError: any other error, with the name that CUDA gives it.
    """
    library = _library()
    status, *values = getattr(library, name)(*arguments)
    if status != library.cudaError_t.cudaSuccess:
        _, error = library.cudaGetErrorName(status)
        _, text = library.cudaGetErrorString(status)
        what = f"{name} failed: {_text(error)} ({_text(text)})"
        if _text(error) in MEMORY_ERRORS:
            raise OutOfMemory(what, fix="a smaller batch, fewer streams, or end what else uses the GPU")
        raise StepError(what, fix="see what nvidia-smi says of the GPU, its driver and who else uses it")
    return tuple(values) if len(values) > 1 else values[0] if values else None


def device() -> dict[str, str]:
    """`gpu`, `compute_capability` and `cuda` (the runtime's version) of the GPU that this process uses."""
    found = call("cudaGetDeviceProperties", call("cudaGetDevice"))
    version = int(call("cudaRuntimeGetVersion"))
    return {
        "gpu": _text(found.name),
        "compute_capability": f"{found.major}.{found.minor}",
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
    }


def free_mb() -> float:
    """Free memory of this process's GPU in MB (2^20 bytes)."""
    free, _total = call("cudaMemGetInfo")
    return float(free) / MB


class Stream:
    """A queue of work for the GPU that waits for no other."""

    def __init__(self) -> None:
        self.handle = call("cudaStreamCreateWithFlags", _library().cudaStreamNonBlocking)
        self._end = weakref.finalize(self, _quietly, "cudaStreamDestroy", self.handle)

    def __int__(self) -> int:
        return int(self.handle)

    def wait(self) -> None:
        """Returns when all that is queued is done."""
        call("cudaStreamSynchronize", self.handle)

    def mark(self) -> Event:
        """An event that happens when what is queued so far is done."""
        event = Event()
        call("cudaEventRecord", event.handle, self.handle)
        return event


class Event:
    """A point of time on the GPU."""

    def __init__(self) -> None:
        self.handle = call("cudaEventCreate")
        self._end = weakref.finalize(self, _quietly, "cudaEventDestroy", self.handle)

    def since(self, earlier: Event) -> float:
        """Milliseconds from `earlier` to this; both must have happened."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))


class Buffer:
    """One tensor twice: in the host's memory, pinned, as the numpy array `array`, and in the GPU's at `address`."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        kind = np.dtype(dtype)
        self.size = math.prod(shape) * kind.itemsize
        room = max(1, self.size)
        self.address = int(call("cudaMalloc", room))
        self._ends = [weakref.finalize(self, _quietly, "cudaFree", self.address)]
        pinned = call("cudaHostAlloc", room, _library().cudaHostAllocDefault)
        self._ends.append(weakref.finalize(self, _quietly, "cudaFreeHost", pinned))
        memory = (ctypes.c_byte * self.size).from_address(int(pinned))
        self.array: Array = np.frombuffer(memory, dtype=kind).reshape(tuple(shape))
        self._pinned = int(pinned)

    def copy_in(self, stream: Stream) -> None:
        """Queues the copy from the host to the GPU."""
        kind = _library().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", self.address, self._pinned, self.size, kind, stream.handle)

    def copy_out(self, stream: Stream) -> None:
        """Queues the copy from the GPU to the host."""
        kind = _library().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", self._pinned, self.address, self.size, kind, stream.handle)


class Graph:
    """Work that was recorded once and is queued as a whole, without the host's time for each kernel."""

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        """Records what `work` queues on `stream`, which must already have run once outside."""
        library = _library()
        # thread-local: another stream's session may allocate meanwhile
        call("cudaStreamBeginCapture", stream.handle, library.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            library.cudaStreamEndCapture(stream.handle)  # its status says no more than the error that is on its way
            raise
        recorded = call("cudaStreamEndCapture", stream.handle)
        self._handle = call("cudaGraphInstantiate", recorded, 0)
        call("cudaGraphDestroy", recorded)
        self._end = weakref.finalize(self, _quietly, "cudaGraphExecDestroy", self._handle)

    def launch(self, stream: Stream) -> None:
        """Queues it."""
        call("cudaGraphLaunch", self._handle, stream.handle)


def _library() -> Any:
    from cuda.bindings import runtime

    return runtime


def _quietly(name: str, handle: Any) -> None:
    """Gives back what is no longer used; at the end of a process the driver may be gone before us."""
    with contextlib.suppress(Exception):
        getattr(_library(), name)(handle)


def _text(value: Any) -> str:
    return value.decode(errors="replace").rstrip("\0") if isinstance(value, bytes) else str(value)
