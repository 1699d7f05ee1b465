"""Which modules an installed distribution brings: by the metadata that lies in the same folder as they do.

A library may lie in any folder of PYTHONPATH; that the folder is called `site-packages` is a custom of installers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path

FOLDERS = ("site-packages", "dist-packages")
RECORD = "RECORD"
"""The list of a distribution's files; a checkout that is installed to be edited has no such list next to its source."""


def is_installed(file: str | Path) -> bool:
    """Return whether a distribution brings the module at `file`."""
    path = str(file)
    if any(f"/{name}/" in path for name in FOLDERS):
        return True
    for entry in sys.path:
        folder = os.path.abspath(entry or ".").rstrip("/") + "/"  # noqa: PTH100
        if path.startswith(folder) and path[len(folder) :].partition("/")[0].partition(".")[0] in _brought(folder):
            return True
    return False


@functools.cache
def _brought(folder: str) -> frozenset[str]:
    """Top-level names of the modules that the distributions with metadata in `folder` bring."""
    found: set[str] = set()
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return frozenset()
    for name in names:
        if name.endswith(".dist-info"):
            with contextlib.suppress(OSError):
                found |= tops(Path(folder, name, RECORD).read_text(encoding="utf-8", errors="replace").splitlines())
    return frozenset(found)


def tops(lines: list[str]) -> set[str]:
    """Return the top-level module names among the lines of a RECORD."""
    names = set()
    for line in lines:
        first, _, rest = line.split(",")[0].strip('"').partition("/")
        if rest and first.isidentifier():
            names.add(first)
        elif not rest and first.endswith((".py", ".so", ".pyd")):
            names.add(first.partition(".")[0])
    return names
