"""PyTorch's own compiler ahead of time, on a GPU without TensorRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import Conversion

TRITON_CAPABILITY = (8, 0)


@dataclasses.dataclass(kw_only=True)
class Compile(Conversion):
    """`program.pt2` to `model.pt2`: native code for this GPU, in `recipe` (fp16, bf16 or fp32), channels last.

    Inputs and outputs stay float32. `batch` is what it takes: one number compiles best, null leaves it open.
    """

    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    artifact: ClassVar[str] = "model.pt2"
    runtime: ClassVar[str] = "aot_inductor"
    on_gpu: ClassVar[bool] = True
    loads_programs: ClassVar[bool] = True
    on_host: ClassVar[bool] = True
    not_portable: ClassVar[Mapping[str, str]] = {
        "model.pt2": "kernels are chosen by timing them",
        "model.pt2.json": "it holds the digest of model.pt2",
        "probe.npy": "another kernel sums in another order",
    }

    recipe: str = "fp16"
    batch: int | None = 1
    max_autotune: bool = True

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("torch",)

    def precision(self) -> str:
        """That of the weights and of the computation."""
        return self.recipe

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`."""
        from compiler.runtime import bound, packaged, torch_gpu

        torch_gpu.need_gpu()
        torch_gpu.need_precision(self.recipe)
        facts = compile_package(inputs["model"] / "program.pt2", out / "model.pt2", self.recipe, self.batch, "cuda",
                                self.max_autotune)  # fmt: skip
        bound_to = bound.here(**packaged.versions("torch"))
        bound.write(out / "model.pt2", bound_to, facts)
        return {"batch": self.batch, "bound_to": bound_to}


def compile_package(
    program: Path, package: Path, precision: str, batch: int | None, device: str, max_autotune: bool = False
) -> dict[str, Any]:
    """Writes a package for `device`; returns its signature's entries and batch.

    Raises:
        ConfigError: `precision` or `batch` mean nothing.
        StepError: the program cannot be exported again, or not be compiled.
    """
    import torch._inductor

    from compiler import lower_precision
    from compiler.errors import StepError

    lower_precision.check(precision, batch)
    exported, facts = lower_precision.export(program, precision, batch, device)
    try:
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(package), inductor_configs=_how(device, max_autotune)
        )
    except Exception as error:  # the library's own classes have no other base
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise StepError(
            f"PyTorch cannot compile the program ahead of time: {lines[0]}",
            fix="a C++ compiler and the CUDA toolkit's headers must be installed; else leave this candidate out",
            details=lines[:8],
        ) from error
    return facts


def _how(device: str, max_autotune: bool) -> dict[str, Any]:
    """Settings of torch._inductor. Below compute capability 8.0 convolutions and products are cuDNN's and cuBLAS':
    Triton from 3.3 on has no Tensor Cores there, and its compiler ends the process on a float16 product
    (triton-lang/triton pull request 5066 and issue 6698).
    """
    import torch

    how: dict[str, Any] = {"max_autotune": max_autotune}
    if device == "cuda" and torch.cuda.get_device_capability(0) < TRITON_CAPABILITY:
        how |= {"max_autotune_gemm_backends": "ATEN", "max_autotune_conv_backends": "ATEN"}
    return how
