"""Artifacts that run on the GPU, driver and library they were made with and nowhere else, and the file that says so.

`model.engine` has `model.engine.json` beside it: `bound_to`, the artifact's `sha256`, and what else its maker states.
It is read, and the artifact's digest taken, before any library sees the artifact: an engine is executable code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, IntegrityError, MissingToolError
from compiler.foreign_json import read_json
from compiler.runtime import gpu

Binding = dict[str, str]
NAMES = {
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "driver": "driver",
    "tensorrt": "TensorRT",
    "torch": "PyTorch",
    "torch_tensorrt": "torch-tensorrt",
}
"""What an artifact may be bound to, and how it is called."""


def here(**libraries: str) -> Binding:
    """What is made here is bound to: `gpu`, `compute_capability`, `driver` and the versions of `libraries`.

    Raises:
        MissingToolError: there is no GPU.
    """
    found = gpu.describe()
    if found["gpu"] is None:
        raise MissingToolError("there is no NVIDIA GPU here, or its driver lists none", fix=gpu.DRIVER)
    return {
        "gpu": str(found["gpu"]),
        "compute_capability": str(found["gpu_compute_capability"]),
        "driver": str(found["driver"]),
        **libraries,
    }


def sidecar(artifact: Path) -> Path:
    """The file that says what an artifact is bound to; its name begins like the artifact's, so they travel together."""
    return artifact.with_name(f"{artifact.name}.json")


def write(artifact: Path, bound_to: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Writes the file beside a finished artifact."""
    record = {"schema_version": 1, "sha256": _digest(artifact), "bound_to": dict(bound_to), **facts}
    sidecar(artifact).write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def check(artifact: Path, **libraries: str) -> dict[str, Any]:
    """What the file beside an artifact says, if the artifact is whole and may be loaded here.

    Raises:
        IntegrityError: the artifact is not the one that the file describes, or the file is missing or damaged.
        ConfigError: it is bound to something else than is here.
        MissingToolError: there is no GPU.
    """
    try:
        record = read_json(sidecar(artifact))
        bound_to, digest = dict(record["bound_to"]), str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{sidecar(artifact).name} is missing or damaged, and says to which GPU {artifact.name} is bound",
            fix="build or fetch it again",
        ) from error
    if _digest(artifact) != digest:
        raise IntegrityError(
            f"{artifact.name} is not the file that {sidecar(artifact).name} describes", fix="build or fetch it again"
        )
    now = here(**libraries)
    other = [name for name in now if bound_to.get(name) != now[name]]
    if other:
        raise ConfigError(
            f"{artifact.name} is bound to {_sentence(bound_to, other)}; here is {_sentence(now, other)}",
            fix="build it again on this machine, from the ONNX or the program that it was made of",
            details=[f"it is bound to {_sentence(bound_to, list(now))}"],
        )
    return dict(record)


def _sentence(binding: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{NAMES.get(name, name)} {binding.get(name, 'unknown')}" for name in names)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
