"""What a worker runs on and in: interpreter, C library, CPU features, environment variables."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable

KERNELS = r"(sse|ssse|avx|fma|f16c|bmi|amx|vnni|asimd|neon|sve|sme|i8mm|bf16|dotprod|fphp|atomics)"
"""CPU features by which numeric libraries choose their kernels."""
DECIDING = ("LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "CUDA_HOME")
"""Variables that workers get from the user's environment, and that keys therefore cover."""


def interpreter() -> str:
    """The interpreter, machine type and C library that a step's result may depend on."""
    return f"{platform.python_implementation()}-{platform.python_version()}-{platform.machine()}-{os.name}-{libc()}"


def libc() -> str:
    """Name and version of the C library."""
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError, AttributeError):
        found = None
    return found or " ".join(platform.libc_ver()).strip() or "unknown"


def build_isa() -> list[str]:
    """The CPU features of this machine that choose numeric kernels, sorted, after its architecture."""
    from compiler.runtime.host import profile

    known = profile()
    return [known["arch"], *(name for name in known["isa"] if re.match(KERNELS, name))]


def deciding(names: Iterable[str]) -> dict[str, str]:
    """Name -> digest of the value of each variable that is set: a key need not hold what may be a secret."""
    chosen = sorted({*DECIDING, *names})
    return {
        name: hashlib.sha256(os.environ[name].encode(errors="surrogateescape")).hexdigest()
        for name in chosen
        if name in os.environ
    }
