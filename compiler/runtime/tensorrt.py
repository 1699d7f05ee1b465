"""TensorRT engines (`.engine`) on the GPU they were built on; anywhere else they are refused before they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import OutOfMemory, StepError
from compiler.runtime import bound
from compiler.runtime.cuda_session import CudaSession
from compiler.runtime.session import batch_of, check_range, settle, tensor
from compiler.runtime.tensorrt_engine import binding
from compiler.runtime.tensorrt_versions import Versions, installed, is_full


class TensorrtSession(CudaSession):
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, batch: int | None, graph: bool) -> None:
        self._trt = installed()
        facts = bound.check(path, tensorrt=self._trt.version)
        binding(self._trt)
        self._tensor_cores = facts.get("tensor_cores")
        self._engine = self._trt.load(path.read_bytes())
        if self._engine is None:
            raise _refused(self._trt, f"TensorRT {self._trt.version} refuses {path.name}", "build it again here")
        inputs, outputs = self._trt.tensors(self._engine)
        size = _batch(path, inputs[0], batch)
        shapes = {entry["name"]: [size, *entry["shape"][1:]] for entry in inputs}
        super().__init__(
            [tensor(entry["name"], entry["dtype"], shapes[entry["name"]]) for entry in inputs],
            [tensor(e["name"], e["dtype"], [size if n == -1 else n for n in e["shape"]]) for e in outputs],
        )
        tensors = [*zip(self.entries_in, self.buffers_in, strict=True)]
        tensors += zip(self.entries_out, self.buffers_out, strict=True)
        addresses = {entry["name"]: buffer.address for entry, buffer in tensors}
        self._context = _context(self._trt, self._engine, shapes, addresses)
        for entry in self.entries_out:
            found = self._trt.shape_of(self._context, entry["name"])
            if found != entry["shape"]:
                raise StepError(f"the output {entry['name']!r} has the shape {found}", fix="give logits of one size")
        if graph:
            self.record()

    def tensor_cores(self) -> bool | None:
        """By the names of the tactics, as the builder's inspector gave them."""
        return self._tensor_cores

    def _enqueue(self) -> None:
        if not self._trt.enqueue(self._context, int(self.stream)):
            fix = "set cuda_graph to false in the candidate's options" if self.recording else ""
            raise _refused(self._trt, "TensorRT could not run the engine", fix)


def _batch(path: Path, entry: Mapping[str, Any], wanted: int | None) -> int:
    """The batch to run at.

    Raises:
        ConfigError: it lies outside the engine's profile.
    """
    if "range" not in entry:
        return settle(path, entry["shape"][0], wanted)
    size = wanted or max(1, entry["range"][0])
    check_range(path, size, entry["range"])
    return size


def _context(trt: Versions, engine: Any, shapes: Mapping[str, list[int]], addresses: dict[str, int]) -> Any:
    found = trt.context(engine, dict(shapes), addresses)
    if isinstance(found, list):
        raise _refused(trt, f"TensorRT refuses {found[0]}", "a smaller batch", found)
    return found


def _refused(trt: Versions, what: str, fix: str, more: Sequence[str] = ()) -> StepError:
    """The error for a call that TensorRT answers with nothing; a full GPU is told apart by the log."""
    said = trt.log.worst()
    kind = OutOfMemory if is_full(said) else StepError
    return kind(what, fix=fix, details=[*more, *said])


def open(path: Path, options: Mapping[str, Any]) -> TensorrtSession:
    """Opens an engine. `options`: `batch`, `cuda_graph` (record the call once, at this batch), `threads`, `streams`.

    Raises:
        ConfigError: the engine is bound to another GPU, driver or TensorRT, or does not run at the batch.
        IntegrityError: the engine is not the file that was built.
    """
    return TensorrtSession(path, batch_of(options), bool(options.get("cuda_graph", False)))
