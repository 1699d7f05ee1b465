"""Files that own code was seen to read (`compiler.reads`): their names in keys, and what they hold now.

A name is `module:path`: the path counts from the folder in which the top-level module, or its package, lies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from compiler.keys.sources import PACKAGE, source_of
from compiler.reads import ABSENT, state


def roots(modules: Iterable[str]) -> dict[str, Path]:
    """Return for each top-level name of a user's own `modules` the folder in which it is found."""
    found: dict[str, Path] = {}
    for module in sorted(modules):
        top = module.partition(".")[0]
        if top != PACKAGE and top not in found and (root := _root(module)) is not None:
            found[top] = root
    return found


def named(paths: Mapping[str, str], known: Mapping[str, Path]) -> dict[str, str]:
    """Return the states of `paths` under their names."""
    found = {}
    for path, value in paths.items():
        for top, root in known.items():
            base = next((b for b in (str(root), os.path.realpath(root)) if path.startswith(f"{b.rstrip('/')}/")), None)
            if base is not None:
                found[f"{top}:{path[len(base.rstrip('/')) + 1 :]}"] = value
                break
    return found


def tops_on_path(paths: Iterable[str]) -> dict[str, Path]:
    """Return for the top-level modules that source files on `sys.path` belong to the folders in which these lie."""
    entries = sorted((os.path.abspath(entry or ".") for entry in sys.path), key=len, reverse=True)  # noqa: PTH100
    found: dict[str, Path] = {}
    for path in paths:
        entry = next((e for e in entries if path.startswith(f"{e}/")), None)
        if entry is not None:
            found.setdefault(path[len(entry) + 1 :].partition("/")[0].removesuffix(".py"), Path(entry))
    return found


def states(names: Iterable[str], known: Mapping[str, Path]) -> dict[str, str]:
    """Return what the files and folders of these names hold now."""
    found = {}
    for name in names:
        top, _, path = name.partition(":")
        root = known.get(top) or _root(top)
        found[name] = state(os.path.join(root, path)) if root is not None else ABSENT  # noqa: PTH118 - keeps a last /
    return found


def _root(module: str) -> Path | None:
    source = source_of(module)
    if source is None:
        return None
    return source.absolute().parents[module.count(".") + (source.name == "__init__.py")]
