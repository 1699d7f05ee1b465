"""A mock of a runtime on a GPU: a spinner that also has a GPU's own times, and runs out of its memory as told.

`options`: those of `spinner`; `gpu_mb` (megabytes of the GPU's memory a sample) against `gpu_free_mb`; `cores`;
`threads_file` (a file: which thread opened and ran which session); `crowded` (a file: the GPU is full once,
until it exists).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from compiler.errors import StepError
from tests.runtimes import spinner


class MockDevice(spinner.Spinner):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._cores = options.get("cores")
        self._told = options.get("threads_file")
        self._tell()
        wanted = float(options.get("gpu_mb", 0)) * self._batch
        crowded = Path(options["crowded"]) if "crowded" in options else None
        if crowded and not crowded.exists():
            crowded.touch()
            wanted = float("inf")
        if wanted == float("inf") or wanted > float(options.get("gpu_free_mb", "inf")):
            raise StepError("cudaMalloc failed: cudaErrorMemoryAllocation (out of memory)", fix="")

    def _tell(self) -> None:
        if self._told:
            with Path(self._told).open("a") as stream:
                stream.write(f"{id(self)} {threading.get_ident()}\n")

    def run(self, inputs: Any) -> list[Any]:
        self._tell()
        return super().run(inputs)

    def device_times(self, inputs: Any, calls: int) -> dict[str, list[float]]:
        self.run(inputs)
        return {"copy_in_ms": [0.25] * calls, "compute_ms": [1.5, 2.5] * (calls // 2), "copy_out_ms": [0.125] * calls}

    def tensor_cores(self) -> bool | None:
        return self._cores


def open(path: Any, options: Any) -> MockDevice:
    return MockDevice(options)
