"""A MOCK of an engine builder: a step that needs a GPU, and copies the null model where one is listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.backends.null import Convert
from compiler.runtime import gpu


@dataclasses.dataclass(kw_only=True)
class Engine(Convert):
    """Says to which GPU the result is bound."""

    on_gpu: ClassVar[bool] = True
    on_host: ClassVar[bool] = True
    not_portable: ClassVar[Mapping[str, str]] = {"model.npz": "bound to the GPU that it was built on"}

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        found = gpu.describe()
        assert found["gpu"] is not None, "no step that needs a GPU may run without one"
        return super().convert(inputs, out) | {
            "bound_to": {"gpu": found["gpu"], "compute_capability": found["gpu_compute_capability"]}
        }
