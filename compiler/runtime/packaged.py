"""Programs that PyTorch compiled for one GPU (`aot_inductor`, `torch_tensorrt`) and how they are opened there.

Both hold native code and may hold pickles: whoever opens one has verified it, and says so by naming the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compiler.runtime import bound, torch_gpu
from compiler.runtime.session import batch_of, check_range, settle


def versions(*libraries: str) -> dict[str, str]:
    """The versions of the imported `libraries`, under their module names."""
    import importlib

    return {name: str(importlib.import_module(name).__version__) for name in libraries}


def open_packaged(
    path: Path, options: Mapping[str, Any], libraries: tuple[str, ...], load: Callable[[Path], Any]
) -> torch_gpu.TorchGpuSession:
    """A session of the program at `path`, once it is known to be whole and of this GPU; `load` makes it a function.

    Raises:
        ConfigError: it is bound to something else than is here, or fixes another batch.
        IntegrityError: it is not the file that was built.
    """
    torch_gpu.need_gpu()
    facts = bound.check(path, **versions(*libraries))
    batch = settle(path, facts["batch"], batch_of(options))
    if facts.get("range"):
        check_range(path, batch, facts["range"])
    inputs = [{**entry, "shape": [batch, *entry["shape"][1:]]} for entry in facts["inputs"]]
    names = [entry["name"] for entry in facts["outputs"]]
    return torch_gpu.TorchGpuSession(load(path), inputs, names, graph=bool(options.get("cuda_graph", False)))
