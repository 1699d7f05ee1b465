"""Eager PyTorch on an NVIDIA GPU, the uncompiled baseline there: fp32, TF32 off, nothing recorded or fused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.runtime import pytorch, torch_gpu
from compiler.runtime.session import batch_of, tensor


def open(path: Path, options: Mapping[str, Any]) -> torch_gpu.TorchGpuSession:
    """Opens a `.safetensors` file. `options`: `threads`, `batch`, `architecture` (required), `cuda_graph`.

    Raises:
        MissingToolError: there is no GPU.
        ConfigError: no architecture is named, or the network cannot be run at the batch.
    """
    architecture = pytorch.architecture_of(options)
    torch_gpu.need_gpu()
    module, shape, _classes = pytorch.load(path, architecture, batch_of(options))
    graph = bool(options.get("cuda_graph", False))
    return torch_gpu.TorchGpuSession(module.to("cuda"), [tensor("input", "float32", shape)], graph=graph)
