"""What machine this is, read from the system at run time; never from configuration."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.runtime import control_group, gpu

LEAST_MEMORY_SHARE = 0.8  # a board sold with 4 GB shows its system less
FINGERPRINTED = ("cpu_model", "isa", "cores", "memory_mb", "os", "kernel", "virtualized", "governor")
WHERE_THERE = ("cpu_quota", "memory_limit_mb", *gpu.DECISIVE)
"""Part of the fingerprint of the hosts that have it, so that the others keep theirs."""


@functools.cache
def profile() -> dict[str, Any]:
    """The part of `describe` that target files may refer to: `arch`, `isa`, `cores`, `memory_mb`."""
    info = _cpuinfo()
    return {
        "arch": platform.machine(),
        "isa": sorted((info.get("flags") or info.get("Features") or "").split()),
        "cores": control_group.usable_cores(),
        "memory_mb": _memory_mb(),
    }


def describe() -> dict[str, Any]:
    """This host as `measured_on` records it, with a `fingerprint` over what decides a latency."""
    info, limit = _cpuinfo(), control_group.memory_limit_mb()
    model = _read("/proc/device-tree/model").rstrip("\0")
    record: dict[str, Any] = {
        "cpu_model": info.get("model name") or ARM_PARTS.get(info.get("CPU part", "").lower()) or "unknown",
        "board": model or None,
        "arch": platform.machine(),
        "isa": [name for name in profile()["isa"] if re.match(NOTABLE, name)],
        "cores": profile()["cores"],
        "memory_mb": profile()["memory_mb"],
        "os": _os_name(),
        "kernel": platform.release(),
        "virtualized": "hypervisor" in (info.get("flags") or "").split(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "cpu_quota": control_group.cpu_quota(),
        "memory_limit_mb": limit and round(limit),
        **gpu.describe(),
    }
    decisive = {name: record[name] for name in FINGERPRINTED} | {n: record[n] for n in WHERE_THERE if record.get(n)}
    text = json.dumps(decisive, sort_keys=True)
    return record | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16]}


def is_target(
    host: Mapping[str, Any],
    arch: str,
    isa: list[str],
    cores: int,
    memory_mb: int,
    cpu_model: str | None,
    this_host: bool,
    gpu_model: str | None = None,
    compute_capability: str | None = None,
) -> bool:
    """Whether `host` (from `describe`) is the machine a target's profile describes.

    A profile that says neither how its CPU (`cpu_model`) nor how its GPU (`gpu_model`) is called matches nothing,
    unless it is `this_host`.
    """
    has = set(profile()["isa"])
    named = [(cpu_model, host["cpu_model"]), (gpu_model, host.get("gpu"))]
    asked = [(pattern, found) for pattern, found in named if pattern is not None]
    return (
        (this_host or bool(asked))
        and (this_host or all(found and re.search(pattern, str(found)) for pattern, found in asked))
        and compute_capability in (None, host.get("gpu_compute_capability"))
        and host["arch"] == arch
        and all(feature in has for feature in isa)
        and int(host["cores"]) >= cores
        and int(host["memory_mb"]) >= LEAST_MEMORY_SHARE * memory_mb
    )


NOTABLE = r"(sse4_2|avx|fma|f16c|amx|asimd|neon|sve|i8mm|bf16|dotprod|fphp)"
ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
}


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if not name.strip() and fields:
            break
        fields.setdefault(name.strip(), value.strip())
    return fields


def _memory_mb() -> int:
    match = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    total = int(match.group(1)) // 1024 if match else 0
    limit = control_group.memory_limit_mb()
    return total if limit is None else min(total, int(limit))


def _os_name() -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.M)
    return match.group(1) if match else platform.system()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
