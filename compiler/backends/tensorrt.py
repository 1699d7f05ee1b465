"""TensorRT engines: built from ONNX on the GPU that will run them, and bound to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import Conversion
from compiler.errors import StepError
from compiler.stage import cache_folder


@dataclasses.dataclass(kw_only=True)
class Engine(Conversion):
    """ONNX to `model.engine`, with `model.engine.json`: to what it is bound, its layers and their tactics.

    `recipe` is the precision, and that is the ONNX's own: `fp16` of the cast model, `int8` of the Q/DQ model. The
    batches from `min_batch` to `max_batch` run, `opt_batch` fastest; they count where the ONNX leaves its batch open.
    With `timing_cache` the store keeps one file a GPU, driver and TensorRT version: it decides how long a build takes,
    and between kernels that are equally fast.
    """

    tools: ClassVar[tuple[str, ...]] = ("tensorrt", "cuda-bindings", "numpy")
    artifact: ClassVar[str] = "model.engine"
    runtime: ClassVar[str] = "tensorrt"
    on_gpu: ClassVar[bool] = True
    on_host: ClassVar[bool] = True
    not_portable: ClassVar[Mapping[str, str]] = {
        "model.engine": "TensorRT chooses kernels by timing them",
        "model.engine.json": "it names the kernels that were chosen",
        "facts.json": "it holds the time that the build took",
        "probe.npy": "another kernel sums in another order",
    }

    recipe: str = "fp16"
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1
    optimization_level: int = 3
    workspace_mb: int = 1024
    timing_cache: bool = True

    def precision(self) -> str:
        """That of the ONNX."""
        return self.recipe

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert` and `compiler.runtime.tensorrt_engine.build`."""
        from compiler.runtime.tensorrt_engine import build

        onnx = inputs["model"] / "model.onnx"
        if not onnx.exists():
            raise StepError(
                "the step before wrote no model.onnx", fix="put this step behind one that makes an ONNX model"
            )
        return build(
            onnx,
            out,
            precision=self.recipe,
            profile=(self.min_batch, self.opt_batch, self.max_batch),
            optimization_level=self.optimization_level,
            workspace_mb=self.workspace_mb,
            timing_cache=cache_folder("tensorrt") if self.timing_cache else None,
        )
