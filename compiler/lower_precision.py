"""An exported program again, in half precision behind float32 inputs and outputs, for compilers of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, StepError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
LARGEST_BATCH = 4096


def check(precision: str, batch: int | None) -> None:
    """Refuses settings that mean nothing.

    Raises:
        ConfigError: an unknown precision, or a batch below 1.
    """
    if precision not in DTYPES:
        raise ConfigError(f"precision is {precision!r}", fix=f"one of {', '.join(DTYPES)}")
    if batch is not None and not 1 <= batch <= LARGEST_BATCH:
        raise ConfigError(f"batch is {batch}", fix=f"give 1 to {LARGEST_BATCH}, or null to leave it open")


def export(
    program: Path, precision: str, batch: int | None, device: str, range_: tuple[int, int] = (1, LARGEST_BATCH)
) -> tuple[Any, dict[str, Any]]:
    """The program on `device`, weights and computation in `precision`, channels last; inputs and outputs float32.

    `batch` is what it takes, None for any in `range_`. Returns it with `inputs` and `outputs` (entries
    of a signature) and `batch`.

    Raises:
        StepError: the program cannot be exported so.
    """
    import torch
    from torch.export.passes import move_to_device_pass

    from compiler.runtime.torch_export import at_any_batch

    loaded = torch.export.load(program)
    names = loaded.graph_signature
    values = {node.name: node.meta["val"] for node in loaded.graph.nodes if "val" in node.meta}
    shape = [n if isinstance(n, int) else 1 for n in values[names.user_inputs[0]].shape]
    module = move_to_device_pass(loaded, device).module(check_guards=False)
    if batch != shape[0] and isinstance(values[names.user_inputs[0]].shape[0], int):
        module = at_any_batch(torch, module, shape[0])
    dtype = getattr(torch, DTYPES[precision])
    module = module.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)

    class Boundary(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Any) -> Any:
            found = self.inner(x.to(dtype).contiguous(memory_format=torch.channels_last))
            return (found[0] if isinstance(found, tuple | list) else found).float()

    # not 1 where any batch is wanted: an example of 1 would be taken for a constant
    example = torch.zeros((batch or max(2, range_[0]), *shape[1:]), dtype=torch.float32, device=device)
    dynamic = {"x": {0: torch.export.Dim("batch", min=range_[0], max=range_[1])}} if batch is None else None
    try:
        exported = torch.export.export(Boundary(), (example,), dynamic_shapes=dynamic)
    except Exception as error:  # the library's own classes have no other base
        raise StepError(
            f"the program cannot be exported at batch {batch or 'any'} in {precision}: {_first(error)}",
            fix="set batch to the batch that the network was exported with, usually 1",
        ) from error
    classes = list(exported.graph_signature.user_outputs)
    value = next(node.meta["val"] for node in exported.graph.nodes if node.name == classes[0])
    size = batch or range_[0]
    return exported, {
        "inputs": [{"name": names.user_inputs[0], "dtype": "float32", "shape": [size, *shape[1:]]}],
        "outputs": [{"name": names.user_outputs[0], "dtype": "float32", "shape": [size, int(value.shape[1])]}],
        "batch": batch,
        "precision": precision,
    }


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
