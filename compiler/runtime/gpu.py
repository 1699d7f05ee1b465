"""The NVIDIA GPU of this host, asked of its driver at run time; what lacks where there is none."""

from __future__ import annotations

import csv
import functools
import os
import re
import shutil
from importlib import metadata
from typing import Any

from compiler.errors import ConfigError
from compiler.runtime.inquiry import NoAnswerError, inquire
from compiler.runtime.names import ON_GPU, STANDS_FOR, distributions_of

DECISIVE = ("gpu", "driver", "gpu_compute_capability", "gpu_memory_mb")
"""What of a GPU decides a latency: part of a host's fingerprint where there is one."""
QUERY = ("name", "driver_version", "compute_cap", "memory.total")
TIME_LIMIT_S = 20.0
LONGEST_CELL, LONGEST_NUMBER = 200, 15
ANY = "any"
UNTOLD = re.compile(r"|\[.*\]")
"""What nvidia-smi says of a GPU that it cannot ask: nothing, or `[N/A]`, `[Unknown Error]` and their like."""
GPU = "an NVIDIA GPU with its driver"
THROTTLES = ("hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
PREFIXES = ("clocks_event_reasons", "clocks_throttle_reasons")
"""How newer drivers and older ones call the reasons."""
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
    if not rows or UNTOLD.fullmatch(rows[0][0]):
        return {"gpu": None, "driver": None}
    name, driver, capability, memory = rows[0]
    return {
        "gpu": name,
        "driver": driver,
        "gpu_compute_capability": capability,
        "gpu_memory_mb": int(float(memory)) if _is_number(memory) else 0,
    }


def check_same(name: str, capability: str) -> None:
    """Refuses to go on where a library's first GPU, of that `name` and compute `capability`, is not `describe`'s: what
    is said of the one would be measured on the other. Where the driver tells nothing, there is nothing to compare.

    Raises:
        ConfigError: they differ.
    """
    found = describe()
    if found["gpu"] not in (None, name) or found.get("gpu_compute_capability", capability) != capability:
        raise ConfigError(
            f"CUDA would use a {name}, while nvidia-smi lists a {found['gpu']} first",
            fix="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA_VISIBLE_DEVICES to one GPU",
        )


def query(*fields: str, what: str = "gpu") -> list[list[str]]:
    """What nvidia-smi says of each visible GPU, a list of texts in the order of `fields`; empty where it says nothing.

    `what` may be `compute-apps`: then of each process that computes on it.
    Source: `nvidia-smi --help-query-gpu`, `nvidia-smi --help-query-compute-apps`.
    """
    tool = shutil.which("nvidia-smi")
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", ANY).split(",")[0].strip()
    if tool is None or not chosen or chosen.startswith("-"):  # CUDA then shows none, whatever follows in the list
        return []
    only = [f"--id={chosen}"] if chosen != ANY else []
    command = [tool, *only, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        code, out, _ = inquire(command, TIME_LIMIT_S)
        rows = [[_cell(cell) for cell in row] for row in csv.reader(out.splitlines())] if code == 0 else []
    except (OSError, NoAnswerError, csv.Error):
        return []
    return [row for row in rows if len(row) == len(fields)]


def _cell(text: str) -> str:
    """A cell's text as it can be shown: what is on PATH under the tool's name may print anything."""
    return "".join(c for c in text if c.isprintable()).strip()[:LONGEST_CELL]


def throttling() -> tuple[str, ...]:
    """Why the GPU works slower than it could, of `THROTTLES`: heat or its power brake; empty where there is no reason.

    That a GPU keeps within its power limit is how a T4 always works, and no reason.
    """
    for prefix in PREFIXES:
        rows = query(*(f"{prefix}.{name}" for name in THROTTLES))
        if rows:
            return tuple(name for name, state in zip(THROTTLES, rows[0], strict=True) if state == "Active")
    return ()


def state() -> dict[str, float]:
    """`utilization` (percent of the last moments in which any kernel ran), `gpu_mhz` and `temperature_c`; what the
    driver does not tell is left out.
    """
    rows = query("utilization.gpu", "clocks.sm", "temperature.gpu")
    if not rows:
        return {}
    named = zip(("utilization", "gpu_mhz", "temperature_c"), rows[0], strict=True)
    return {name: float(value) for name, value in named if _is_number(value)}


def free_mb() -> float | None:
    """Free memory of the GPU in MB (2^20 bytes), None where the driver does not tell."""
    rows = query("memory.free")
    return float(rows[0][0]) if rows and _is_number(rows[0][0]) else None


def process_mb(pid: int) -> float | None:
    """Memory of the GPU in MB that the process `pid` has; None where the driver does not tell, as in most containers,
    whose processes have other numbers outside.
    """
    rows = query("pid", "used_memory", what="compute-apps")
    found = [float(used) for number, used in rows if number == str(pid) and _is_number(used)]
    return sum(found) if found else None


def _is_number(text: str) -> bool:
    return len(text) <= LONGEST_NUMBER and re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) is not None


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
    for name in (distribution, *STANDS_FOR.get(distribution, ())):
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False
