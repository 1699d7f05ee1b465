"""The NVIDIA GPU of this host, asked of its driver at run time; what lacks where there is none."""

from __future__ import annotations

import csv
import functools
import os
import shutil
import subprocess
from importlib import metadata
from typing import Any

from compiler.runtime.names import ON_GPU, distributions_of

DECISIVE = ("gpu", "driver", "gpu_compute_capability", "gpu_memory_mb")
"""What of a GPU decides a latency: part of a host's fingerprint where there is one."""
QUERY = ("name", "driver_version", "compute_cap", "memory.total")
TIME_LIMIT_S = 20.0
GPU = "an NVIDIA GPU with its driver"
DRIVER = "install NVIDIA's driver on a machine with its GPU (nvidia-smi must list it)"
INSTALL = {
    "cuda-bindings": "pip install 'target-model-compiler[tensorrt]'",
    "onnxruntime-gpu": "pip uninstall onnxruntime && pip install 'target-model-compiler[onnxruntime-gpu]'",
    "tensorrt": "pip install 'target-model-compiler[tensorrt]'",
    "torch-tensorrt": "pip install 'target-model-compiler[torch-tensorrt]'",
}
"""The line that installs a distribution which a runtime on a GPU needs."""


@functools.cache
def describe() -> dict[str, Any]:
    """`gpu` (its name), `driver`, `gpu_compute_capability` (such as "7.5"), `gpu_memory_mb`: of the first GPU that
    processes here may see; the first two are None where there is none, the others left out.
    """
    rows = query(*QUERY)
    if not rows:
        return {"gpu": None, "driver": None}
    name, driver, capability, memory = rows[0]
    return {
        "gpu": name,
        "driver": driver,
        "gpu_compute_capability": capability,
        "gpu_memory_mb": int(float(memory)) if memory.replace(".", "", 1).isdigit() else 0,
    }


def query(*fields: str) -> list[list[str]]:
    """What nvidia-smi says of each visible GPU, a list of texts in the order of `fields`; empty where it says nothing.

    Source: `nvidia-smi --help-query-gpu`.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    only = [f"--id={chosen}"] if chosen else []
    try:
        done = subprocess.run(
            [tool, *only, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    if done.returncode != 0:
        return []
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines())]
    return [row for row in rows if len(row) == len(fields)]


def lacking(runtime: str, distributions: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """What this host lacks to run `runtime`, with `distributions` besides its own: (what, the line that installs it).

    Imports nothing: a GPU that its driver lists, and distributions that are installed. Empty for runtimes of the CPU
    that ask for nothing else.
    """
    found = []
    if runtime in ON_GPU and describe()["gpu"] is None:
        found.append((GPU, DRIVER))
    needed = (*distributions_of(runtime), *distributions) if runtime in ON_GPU else distributions
    for name in dict.fromkeys(needed):
        if not _installed(name):
            found.append((name, INSTALL.get(name, "pip install 'target-model-compiler[build]'")))
    return found


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
