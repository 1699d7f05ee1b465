"""Exported PyTorch programs (`.pt2`), run operator by operator: for checking conversions, not for speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.runtime.session import Array, tensor


class TorchExportSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        program = torch.export.load(path)
        self._module = program.module(check_guards=False)
        names = program.graph_signature
        values = {n.name: n.meta["val"] for n in program.graph.nodes if "val" in n.meta}
        self._inputs = [(name, values[name]) for name in names.user_inputs]
        self._outputs = [(name, values[name]) for name in names.user_outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference, in inference mode."""
        with self._torch.inference_mode():
            result = self._module(*(self._torch.from_numpy(value) for value in inputs))
        results = result if isinstance(result, tuple | list) else [result]
        return [value.numpy() for value in results]

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the exported graph's."""
        return {
            "inputs": [tensor(name, str(v.dtype).removeprefix("torch."), v.shape) for name, v in self._inputs],
            "outputs": [tensor(name, str(v.dtype).removeprefix("torch."), v.shape) for name, v in self._outputs],
        }


def open(path: Path, options: Mapping[str, Any]) -> TorchExportSession:
    """Opens a `.pt2` file. `options`: `threads`."""
    return TorchExportSession(path, int(options.get("threads", 1)))
