"""A session of PyTorch on a GPU: pinned memory, one stream, and the call recorded as a CUDA graph where that is asked.

Between the copies is a function of tensors: an eager module, a compiled package or a program with TensorRT in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from compiler.errors import ConfigError, MissingToolError, StepError
from compiler.runtime import gpu
from compiler.runtime.device import DeviceSession, check_inputs, on_tensor_cores
from compiler.runtime.session import Array, tensor

BF16_CAPABILITY = (8, 0)
WARM_CALLS = 3
"""Before a call is recorded: libraries choose kernels and allocate in their first ones."""


class TorchGpuSession(DeviceSession):
    """`call` takes the inputs' tensors on `device`; `inputs` are their entries in the signature, and so is `outputs`
    where they are known before a call.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        inputs: list[dict[str, Any]],
        output_names: Sequence[str] = ("logits",),
        *,
        graph: bool = False,
        device: str = "cuda",
    ) -> None:
        import torch

        self._torch, self._call, self._entries_in = torch, call, inputs
        self._cuda = device == "cuda"
        self._stream = torch.cuda.Stream() if self._cuda else None
        self._host = [self._pinned(entry["shape"], getattr(torch, entry["dtype"])) for entry in inputs]
        self._device = [value.to(device) for value in self._host]
        self._graph: Any = None
        for _ in range(WARM_CALLS if graph else 1):
            self._compute()
        self._wait()
        self._results_host = [self._pinned(value.shape, value.dtype) for value in self._results]
        self._entries_out = [
            tensor(name, str(value.dtype).removeprefix("torch."), value.shape)
            for name, value in zip(output_names, self._results, strict=True)
        ]
        if graph:
            self._record()

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """See `compiler.runtime.session.Session`."""
        return {"inputs": list(self._entries_in), "outputs": list(self._entries_out)}

    def tensor_cores(self) -> bool | None:
        """By the names of the kernels of one call, as PyTorch's profiler lists them."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
            self._compute()
            self._wait()
        return on_tensor_cores(event.key for event in seen.key_averages())

    def _pinned(self, shape: Any, dtype: Any) -> Any:
        return self._torch.zeros(tuple(shape), dtype=dtype, pin_memory=self._cuda)

    def _record(self) -> None:
        self._graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.inference_mode(), self._torch.cuda.graph(self._graph, stream=self._stream):
                self._results = _listed(self._call(*self._device))
        except self._torch.OutOfMemoryError:
            raise  # a RuntimeError too, and no fault of the graph
        except RuntimeError as error:
            raise ConfigError(
                f"the call cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}",
                fix="set cuda_graph to false in the candidate's options",
            ) from error

    def _stage(self, inputs: Sequence[Array]) -> None:
        check_inputs(inputs, self._entries_in)
        for host, value in zip(self._host, inputs, strict=True):
            host.copy_(self._torch.from_numpy(value))

    def _copy_in(self) -> None:
        with self._on_stream():
            for host, device in zip(self._host, self._device, strict=True):
                device.copy_(host, non_blocking=True)

    def _compute(self) -> None:
        with self._on_stream():
            if self._graph is not None:
                self._graph.replay()
            else:
                self._results = _listed(self._call(*self._device))

    def _copy_out(self) -> None:
        with self._on_stream():
            for host, value in zip(self._results_host, self._results, strict=True):
                host.copy_(value, non_blocking=True)

    def _outputs(self) -> list[Array]:
        self._wait()
        return [host.numpy().copy() for host in self._results_host]

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def _between(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after))

    @contextlib.contextmanager
    def _on_stream(self) -> Any:
        stream = self._torch.cuda.stream(self._stream) if self._cuda else contextlib.nullcontext()
        with self._torch.inference_mode(), stream:
            yield


def need_gpu() -> None:
    """Readies PyTorch: a GPU is there, and fp32 means fp32.

    Raises:
        MissingToolError: PyTorch has none.
        ConfigError: PyTorch's first GPU is not nvidia-smi's.
    """
    import torch

    if not torch.cuda.is_available():
        why = "" if gpu.describe()["gpu"] is None else f": this PyTorch is built for CUDA {torch.version.cuda}"
        raise MissingToolError(f"PyTorch finds no NVIDIA GPU here{why}", fix=gpu.DRIVER)
    major, minor = torch.cuda.get_device_capability(0)
    gpu.check_same(torch.cuda.get_device_name(0), f"{major}.{minor}")
    # the older of two ways to say it: set by the newer one, PyTorch 2.14 fails whoever reads the older
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def need_precision(precision: str) -> None:
    """Refuses bf16 before anything is compiled where the GPU only imitates it.

    PyTorch itself would say that it supports it (`torch.cuda.is_bf16_supported`), and run it slower than fp32.

    Raises:
        StepError: the GPU's compute capability is below 8.0, as a T4's is.
    """
    import torch

    capability = torch.cuda.get_device_capability(0)
    if precision == "bf16" and capability < BF16_CAPABILITY:
        found = f"{torch.cuda.get_device_name(0)} has {capability[0]}.{capability[1]}"
        raise StepError(
            f"bf16 needs compute capability 8.0, and the {found}", fix="take the fp16 candidate, or leave this one out"
        )


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]
