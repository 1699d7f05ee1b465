"""Exported PyTorch programs (`.pt2`), run operator by operator: for checking conversions, not for speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.runtime.session import Array, batch_of, fixed_batch, tensor


class TorchExportSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int, batch: int | None) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        program = torch.export.load(path)
        self._module = program.module(check_guards=False)
        names = program.graph_signature
        values = {n.name: n.meta["val"] for n in program.graph.nodes if "val" in n.meta}
        self._inputs = [(name, values[name]) for name in names.user_inputs]
        self._outputs = [(name, values[name]) for name in names.user_outputs]
        first = self._inputs[0][1].shape[0]
        written = first if isinstance(first, int) else 1  # an open dimension is a SymInt
        self._path, self._written, self._batch = path, written, batch or written
        if isinstance(first, int) and self._batch != first:
            self._module = at_any_batch(torch, self._module, written)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference, in inference mode. Raises ConfigError where the program cannot be run at the batch."""
        try:
            with self._torch.inference_mode():
                result = self._module(*(self._torch.from_numpy(value) for value in inputs))
        except RuntimeError as error:
            if self._batch == self._written:
                raise
            raise fixed_batch(self._path, self._written, self._batch, str(error).splitlines()[:2]) from error
        results = [value.numpy() for value in (result if isinstance(result, tuple | list) else [result])]
        if any(len(value) != self._batch for value in results):
            raise fixed_batch(self._path, self._written, self._batch)
        return results

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the exported graph's."""
        return {
            "inputs": [self._entry(name, value) for name, value in self._inputs],
            "outputs": [self._entry(name, value) for name, value in self._outputs],
        }

    def _entry(self, name: str, value: Any) -> dict[str, Any]:
        return tensor(name, str(value.dtype).removeprefix("torch."), [self._batch, *value.shape[1:]])


def at_any_batch(torch: Any, module: Any, written: int) -> Any:
    """The program's module without its checks of shapes, and with -1, "what remains", where the new shape of a tensor
    holds the batch that it was exported with.
    """
    shaping = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)
    for node in module.graph.nodes:
        if node.target in shaping and list(node.args[1][:1]) == [written] and -1 not in node.args[1]:
            node.args = (node.args[0], [-1, *node.args[1][1:]])
    return torch.fx.GraphModule(module, module.graph)  # leaves the hook behind that compares the input's shape


def open(path: Path, options: Mapping[str, Any]) -> TorchExportSession:
    """Opens a `.pt2` file. `options`: `threads`, `batch`.

    The batch it was exported with is no limit, since most networks' programs hold it as a number nowhere else; `run`
    refuses one that does.
    """
    return TorchExportSession(path, int(options.get("threads", 1)), batch_of(options))
