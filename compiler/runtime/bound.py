"""Artifacts that run on the GPU, driver and library they were made with and nowhere else, and the file that says so.

`model.engine` has `model.engine.json` beside it: `bound_to`, the artifact's `sha256`, and what else its maker states.
It is read, and the artifact's digest taken, before any library sees the artifact: an engine is executable code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from compiler.errors import IntegrityError, MissingToolError
from compiler.foreign_json import read_json
from compiler.runtime import gpu
from compiler.runtime.names import STANDS_FOR

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
DISTRIBUTIONS = {"tensorrt": "tensorrt", "torch": "torch", "torch_tensorrt": "torch-tensorrt"}


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
        MissingToolError: it is bound to something else than is here, or there is no GPU.
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
        raise _elsewhere(artifact.name, bound_to, now, other)
    return dict(record)


def check_manifest(manifest: Mapping[str, Any]) -> str:
    """What the selected artifact is bound to, in words; empty where it is bound to nothing.

    Nothing is imported: versions are those that are installed. A host without a GPU runs no such artifact, and may look
    after it all the same.

    Raises:
        MissingToolError: this host has a GPU, and could not run it there.
        IntegrityError: the manifest says something else than builds write.
    """
    row: Mapping[str, Any] = next((c for c in manifest["candidates"] if c["id"] == manifest["selected"]), {})
    bound_to = row.get("bound_to")
    if bound_to is None:
        return ""
    if not isinstance(bound_to, Mapping) or not all(isinstance(v, str) for v in bound_to.values()):
        raise IntegrityError("the manifest does not say what its artifact is bound to", fix="build or fetch it again")
    said = f"bound to {_sentence(bound_to, list(bound_to))}"
    if gpu.describe()["gpu"] is None:
        return f"{said}; this host has no NVIDIA GPU and cannot run it"
    now = here(**{name: _installed(name) for name in DISTRIBUTIONS if name in bound_to})
    other = [name for name in now if name in bound_to and bound_to[name] != now[name]]
    if other:
        raise _elsewhere(str(manifest["selected"]), bound_to, now, other)
    return f"{said}, as this host has"


def _elsewhere(name: str, bound_to: Mapping[str, str], now: Mapping[str, str], other: list[str]) -> MissingToolError:
    return MissingToolError(
        f"{name} is bound to {_sentence(bound_to, other)}; here is {_sentence(now, other)}",
        fix="build it again on this machine, from the ONNX or the program that it was made of",
        details=[f"it is bound to {_sentence(bound_to, list(bound_to))}"],
    )


def _installed(name: str) -> str:
    """A library's version as it says it itself, or that it is not installed."""
    for distribution in (DISTRIBUTIONS[name], *STANDS_FOR.get(DISTRIBUTIONS[name], ())):
        try:
            return metadata.version(distribution).partition(".post")[0]
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _sentence(binding: Mapping[str, Any], names: list[str]) -> str:
    known = [name for name in NAMES if name in names]
    ordered = [*known, *(name for name in sorted(names) if name not in known)]
    return ", ".join(f"{NAMES.get(name, name)} {binding.get(name, 'unknown')}" for name in ordered)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
