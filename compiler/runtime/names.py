"""The runtimes there are, and the distributions each needs beside numpy. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DISTRIBUTIONS = {
    "aot_inductor": ("torch",),
    "null": ("numpy",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime_cuda": ("onnxruntime-gpu", "cuda-bindings"),
    "openvino": ("openvino",),
    "pytorch": ("torch", "torchvision", "safetensors"),
    "pytorch_cuda": ("torch", "torchvision", "safetensors"),
    "reference": ("numpy",),
    "tensorrt": ("tensorrt", "cuda-bindings"),
    "tflite": ("ai-edge-litert",),
    "torch_export": ("torch",),
    "torch_tensorrt": ("torch", "torch-tensorrt"),
}

MAX_BATCH = 4096
"""A manifest is data too: it cannot ask for more memory than any real batch needs."""

ON_GPU = frozenset({"aot_inductor", "onnxruntime_cuda", "pytorch_cuda", "tensorrt", "torch_tensorrt"})
"""Runtimes that run on an NVIDIA GPU and nowhere else."""

STANDS_FOR = {"onnxruntime": ("onnxruntime-gpu",), "tensorrt": ("tensorrt-cu13", "tensorrt-cu12")}
"""Distribution -> others that bring the same modules, and may be installed in its place (as in compiler/keys/tools.py,
which imports nothing of ours)."""

ON_CPU = {"onnxruntime_cuda": "onnxruntime", "pytorch_cuda": "pytorch"}
"""Which runtime opens on a CPU what another opens on a GPU: the same function, for accuracy and never for time."""

LIBRARIES = {
    "aot_inductor": ("torch",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime_cuda": ("onnxruntime", "cuda.bindings.runtime"),
    "openvino": ("openvino",),
    "pytorch": ("torch", "torchvision", "safetensors"),
    "pytorch_cuda": ("torch", "torchvision", "safetensors"),
    "tensorrt": ("tensorrt", "cuda.bindings.runtime"),
    "tflite": ("ai_edge_litert.interpreter",),
    "torch_export": ("torch",),
    "torch_tensorrt": ("torch", "torch_tensorrt"),
}
"""What each runtime imports when it opens a model: a measurement imports it before, so that only the model is timed."""

SHIPPED = {
    "null": frozenset({"threads", "batch", "streams"}),
    "onnxruntime": frozenset({"threads", "batch", "streams"}),
    "onnxruntime_cuda": frozenset({"threads", "batch", "streams", "cuda_graph"}),
    "openvino": frozenset({"threads", "batch", "streams", "INFERENCE_PRECISION_HINT"}),
    "tensorrt": frozenset({"threads", "batch", "streams", "cuda_graph"}),
    "tflite": frozenset({"threads", "batch", "streams"}),
}
"""Runtimes that an artifact's manifest may name, and the options it may give them: none of them can name code.

Programs of PyTorch (`aot_inductor`, `torch_tensorrt`) are native code and pickles, so whoever opens one says so."""

FORMATS = {
    "null": ".npz", "onnxruntime": ".onnx", "onnxruntime_cuda": ".onnx", "openvino": ".xml", "tensorrt": ".engine",
    "tflite": ".tflite",
}  # fmt: skip
"""The one format that an artifact's runtime opens: what a file is called decides in some libraries who parses it."""

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""Candidates' ids become names of folders and arguments of processes."""


def check_id(name: Any) -> None:
    """Raises ValueError where a candidate's id is not one that builds write."""
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise ValueError(f"{name!r} is no candidate's id"[:200])


def module_of(runtime: str) -> str:
    """The module behind a runtime's name: one beside this, or a dotted name as it is."""
    return runtime if "." in runtime else f"compiler.runtime.{runtime}"


def modules_of(runtime: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The runtime's module, and the user's own where the options name a network in one."""
    architecture = str(options.get("architecture", ""))
    own = (architecture.partition(":")[0],) if ":" in architecture else ()
    return (module_of(runtime), *own)


def distributions_of(runtime: str) -> tuple[str, ...]:
    """The distributions whose versions decide what the runtime computes; none is known for a private one."""
    return DISTRIBUTIONS.get(runtime, ())


def libraries_of(runtime: str) -> tuple[str, ...]:
    """The modules that a runtime imports when it opens a model."""
    return LIBRARIES.get(runtime, ())
