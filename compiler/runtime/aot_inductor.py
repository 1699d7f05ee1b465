"""What `torch.compile` made ahead of time (`.pt2` with native code), on the GPU it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.runtime.packaged import open_packaged
from compiler.runtime.torch_gpu import TorchGpuSession


def open(path: Path, options: Mapping[str, Any]) -> TorchGpuSession:
    """Opens a package. `options`: `batch`, `cuda_graph`, `threads`, `streams`. See `open_packaged`."""
    return open_packaged(path, options, ("torch",), _load)


def _load(path: Path) -> Any:
    import torch._inductor

    # its locks between threads cannot be recorded as a CUDA graph; each session has one thread
    return torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
