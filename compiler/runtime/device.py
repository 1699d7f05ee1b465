"""What sessions on a GPU share: a call is copy in, compute, copy out, queued on one stream and waited for.

`run` is as synchronous as on a CPU, copies included. `device_times` takes the same parts apart by the GPU's own events.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from compiler.runtime.session import Array, wrong_shape

TENSOR_CORES = re.compile(
    r"tensorop|tensor\d+x\d+x\d+|(?<![xe])mma|(?:h|s|i|bf)(?:884|1688|8816|8832|16816|16832|161616|16864)(?!\d)", re.I
)
"""In the names of kernels of cuBLAS, cuDNN, CUTLASS and TensorRT that run on Tensor Cores: `tensorop`, the shape of the
matrix instruction (`h1688`, `tensor16x8x16`) or the instruction (`hmma`, `imma`)."""
PLAIN_CORES = re.compile(r"simt|sgemm|scudnn|ffma|dp4a|fp32_vector", re.I)
"""In the names of kernels that do the same work on ordinary cores."""


class DeviceSession(ABC):
    """A session on a GPU; see `compiler.runtime.session.Session`."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference, copies included; returns when the outputs are in the host's memory."""
        self._stage(inputs)
        self._copy_in()
        self._compute()
        self._copy_out()
        return self._outputs()

    def device_times(self, inputs: Sequence[Array], calls: int) -> dict[str, list[float]]:
        """`copy_in_ms`, `compute_ms` and `copy_out_ms` of each of `calls` calls, by events on the GPU.

        Copies between the caller's arrays and pinned memory are the host's work, and in none of them.
        """
        found: dict[str, list[float]] = {"copy_in_ms": [], "compute_ms": [], "copy_out_ms": []}
        for _ in range(calls):
            self._stage(inputs)
            marks = [self._mark()]
            self._copy_in()
            marks.append(self._mark())
            self._compute()
            marks.append(self._mark())
            self._copy_out()
            marks.append(self._mark())
            self._outputs()
            for name, (before, after) in zip(found, itertools.pairwise(marks), strict=True):
                found[name].append(self._between(before, after))
        return found

    def tensor_cores(self) -> bool | None:
        """Whether a call's kernels run on Tensor Cores; None where it is not known."""
        return None

    @abstractmethod
    def _stage(self, inputs: Sequence[Array]) -> None:
        """Checks the inputs and puts them into pinned memory; nothing is queued."""

    @abstractmethod
    def _copy_in(self) -> None: ...

    @abstractmethod
    def _compute(self) -> None: ...

    @abstractmethod
    def _copy_out(self) -> None: ...

    @abstractmethod
    def _outputs(self) -> list[Array]:
        """Waits, and returns the outputs as the caller's own."""

    @abstractmethod
    def _mark(self) -> Any: ...

    @abstractmethod
    def _between(self, before: Any, after: Any) -> float:
        """Milliseconds."""


def check_inputs(inputs: Sequence[Array], entries: Sequence[dict[str, Any]]) -> None:
    """Refuses inputs of other shapes or types than the signature's `entries` say.

    Raises:
        ConfigError: see `wrong_shape`.
    """
    for value, entry in zip(inputs, entries, strict=True):
        if list(value.shape) != entry["shape"] or value.dtype.name != entry["dtype"]:
            raise wrong_shape(value.shape, entry["shape"], str(value.dtype), entry["dtype"])


def on_tensor_cores(kernels: Iterable[str]) -> bool | None:
    """Whether one of the kernels of these names runs on Tensor Cores; None where the names do not tell."""
    names = [name for name in kernels if name]
    if any(TENSOR_CORES.search(name) for name in names):
        return True
    opaque = any(re.search(r"triton|__myl|myelin", name) for name in names)
    return False if any(PLAIN_CORES.search(name) for name in names) and not opaque else None
