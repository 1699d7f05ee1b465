"""The runtimes there are, and the distribution each needs beside numpy. Imports nothing."""

from __future__ import annotations

DISTRIBUTIONS = {
    "null": "numpy",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "pytorch": "torch",
    "reference": "numpy",
    "tflite": "ai-edge-litert",
}


def module_of(runtime: str) -> str:
    """The module behind a runtime's name: one beside this, or a dotted name as it is."""
    return runtime if "." in runtime else f"compiler.runtime.{runtime}"


def distribution_of(runtime: str) -> tuple[str, ...]:
    """The distribution whose version decides what the runtime computes; none is known for a private one."""
    return (DISTRIBUTIONS[runtime],) if runtime in DISTRIBUTIONS else ()
