"""Exported programs with TensorRT engines in them (`.ep`), by torch-tensorrt, on the GPU they were made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.runtime.packaged import open_packaged
from compiler.runtime.torch_gpu import TorchGpuSession


def open(path: Path, options: Mapping[str, Any]) -> TorchGpuSession:
    """Opens a program. `options`: `batch`, `cuda_graph`, `threads`, `streams`. See `open_packaged`."""
    return open_packaged(path, options, ("torch", "torch_tensorrt"), _load)


def _load(path: Path) -> Any:
    import torch_tensorrt

    return torch_tensorrt.load(str(path)).module()
