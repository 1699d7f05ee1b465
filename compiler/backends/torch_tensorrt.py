"""torch-tensorrt: the exported program with TensorRT engines in it, and PyTorch for what TensorRT does not take."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import Conversion
from compiler.errors import ConfigError, StepError

ENGINE, REST = "_run_on_acc", "_run_on_gpu"
"""How torch-tensorrt's partitioner calls what becomes an engine, and what stays with PyTorch."""


@dataclasses.dataclass(kw_only=True)
class Compile(Conversion):
    """`program.pt2` to `model.ep`; the facts say how many operators are in engines, and which stay with PyTorch.

    Inputs and outputs stay float32; between them the network runs in `recipe` (fp16, bf16 or fp32). The batches from
    `min_batch` to `max_batch` run, `opt_batch` fastest. Fewer than `min_block_size` operators in a row stay with
    PyTorch.
    """

    tools: ClassVar[tuple[str, ...]] = ("torch", "torch-tensorrt", "tensorrt", "numpy")
    artifact: ClassVar[str] = "model.ep"
    runtime: ClassVar[str] = "torch_tensorrt"
    on_gpu: ClassVar[bool] = True
    loads_programs: ClassVar[bool] = True
    on_host: ClassVar[bool] = True
    not_portable: ClassVar[Mapping[str, str]] = {
        "model.ep": "TensorRT chooses kernels by timing them",
        "model.ep.json": "it holds the digest of model.ep",
        "probe.npy": "another kernel sums in another order",
    }

    recipe: str = "fp16"
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1
    optimization_level: int = 3
    workspace_mb: int = 1024
    min_block_size: int = 5

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("torch", "torch_tensorrt")

    def precision(self) -> str:
        """That of the weights and of the computation."""
        return self.recipe

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`. Raises StepError where nothing of the program fits TensorRT, or a build fails."""
        import torch
        import torch_tensorrt

        from compiler import lower_precision
        from compiler.runtime import bound, packaged, torch_gpu

        batches = (self.min_batch, self.opt_batch, self.max_batch)
        if not 1 <= batches[0] <= batches[1] <= batches[2]:
            raise ConfigError(f"the profile is {batches}", fix="give min_batch <= opt_batch <= max_batch")
        batch = self.min_batch if self.min_batch == self.max_batch else None
        lower_precision.check(self.recipe, batch)
        torch_gpu.need_gpu()
        torch_gpu.need_precision(self.recipe)
        # the partitioner takes an engine's profile from the program's own range, not from `arg_inputs`
        program, facts = lower_precision.export(
            inputs["model"] / "program.pt2", self.recipe, batch, "cuda", (self.min_batch, self.max_batch)
        )
        shape = facts["inputs"][0]["shape"][1:]
        least, best, most = ((n, *shape) for n in batches)
        example = torch_tensorrt.Input(min_shape=least, opt_shape=best, max_shape=most, dtype=torch.float32)
        if batch is not None:
            example = torch_tensorrt.Input(shape=best, dtype=torch.float32)
        try:
            with tempfile.TemporaryDirectory() as notes:  # its default is one file for every GPU and version
                compiled = torch_tensorrt.dynamo.compile(
                    program,
                    arg_inputs=[example],
                    disable_tf32=True,
                    min_block_size=self.min_block_size,
                    optimization_level=self.optimization_level,
                    workspace_size=self.workspace_mb << 20,
                    timing_cache_path=str(Path(notes) / "timing"),
                )
        except Exception as error:  # the library's own classes have no other base
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise StepError(
                f"torch-tensorrt cannot compile the program: {lines[0]}",
                fix="leave this candidate out, or raise min_block_size",
                details=lines[:8],
            ) from error
        parts = partition(compiled, count_operators(program.graph))
        if not parts["engines"]:
            raise StepError(
                "torch-tensorrt left the whole program to PyTorch",
                fix="lower min_block_size, or leave this candidate out",
                details=[f"{name}: {count}" for name, count in parts["operators_in_torch"].items()],
            )
        # saving traces it again: an example alone would fix the batch, and one of 1 be taken for a constant
        example = torch.zeros((max(2, best[0]) if batch is None else batch, *shape), device="cuda")
        dynamic = {"x": {0: torch.export.Dim("batch", min=self.min_batch, max=self.max_batch)}}
        torch_tensorrt.save(
            compiled, str(out / "model.ep"), arg_inputs=[example], dynamic_shapes=dynamic if batch is None else None
        )
        bound_to = bound.here(**packaged.versions("torch", "torch_tensorrt"))
        limits = [self.min_batch, self.max_batch] if batch is None else None
        bound.write(out / "model.ep", bound_to, {**facts, **parts, "range": limits})
        return {**parts, "batch": batch, "bound_to": bound_to}


def partition(compiled: Any, operators: int) -> dict[str, Any]:
    """What a compiled torch.fx.GraphModule is made of: `engines` (their number), `operators_in_torch` (name -> how
    often) and `operators_in_tensorrt`, of the `operators` of the program before.
    """
    engines, rest = 0, Counter[str]()
    for node in compiled.graph.nodes:
        if node.op == "call_module" and ENGINE in str(node.target):
            engines += 1
        elif node.op == "call_module":
            inner = getattr(compiled.get_submodule(node.target), "graph", None)
            names = _operators(inner) if inner is not None else [str(node.target)]
            rest.update(names)
        elif node.op == "call_function":
            rest.update(_operators(compiled.graph, node))
    return {
        "engines": engines,
        "operators_in_torch": dict(sorted(rest.items())),
        "operators_in_tensorrt": max(0, operators - sum(rest.values())),
    }


def count_operators(graph: Any) -> int:
    """How many operators a torch.fx.Graph calls."""
    return len(_operators(graph))


def _operators(graph: Any, only: Any = None) -> list[str]:
    nodes = [only] if only is not None else [n for n in graph.nodes if n.op == "call_function"]
    names = [str(node.target) for node in nodes]
    return [name for name in names if "getitem" not in name]
