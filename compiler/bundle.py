"""Writes measurement bundles: for a build's own measuring steps, and from a finished version.

`compiler.runtime.bundle` says what a bundle is and reads it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.canonical import file_digest, list_files
from compiler.disk import copy, write_array
from compiler.runtime.bundle import BUNDLE_VERSION, REFERENCE_ENTRY, SAMPLES, SPEC

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_COUNT = 16


@dataclass(frozen=True)
class Entry:
    """One candidate: `files` are copied, `artifact` is the name of the one that is opened."""

    id: str
    runtime: str
    files: Sequence[Path]
    artifact: str
    options: Mapping[str, Any]
    signature: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.stat().st_size for file in self.files)


def write(
    folder: Path,
    entries: Sequence[Entry],
    images: NDArray[np.uint8],
    protocol: Mapping[str, Any],
    baseline: str,
    decisions: Mapping[str, Any],
    with_runtime: bool = False,
) -> dict[str, Any]:
    """Fills the empty `folder`; returns what its `bundle.json` says.

    `images`: uint8 (n, height, width, 3). `with_runtime` adds the light runtime's source, for hosts without ours.
    """

    rows = []
    for entry in entries:
        (folder / entry.id).mkdir()
        for file in entry.files:
            copy(file, folder / entry.id / file.name)
        rows.append(
            {
                "id": entry.id, "runtime": entry.runtime, "file": f"{entry.id}/{entry.artifact}",
                "options": dict(entry.options), "signature": dict(entry.signature),
            }
        )  # fmt: skip
    write_array(folder / SAMPLES, images)
    if with_runtime:
        _copy_runtime(folder)
    spec = {
        "schema_version": BUNDLE_VERSION,
        "protocol": dict(protocol),
        "baseline": baseline,
        "decisions": dict(decisions),
        "candidates": [*rows, REFERENCE_ENTRY],
        "files": {p.relative_to(folder).as_posix(): file_digest(p) for p in list_files(folder)},
    }
    (folder / SPEC).write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n")
    return spec


def _copy_runtime(folder: Path) -> None:
    """The modules that a measurement imports: the runtime's package, and the few beside it that it uses."""
    source = Path(__file__).resolve().parent
    for name in (
        "__init__.py",
        "canonical.py",
        "errors.py",
        "foreign_files.py",
        "foreign_json.py",
        "reads.py",
        "runtime",
    ):
        target = folder / "compiler" / name
        target.parent.mkdir(exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copyfile(source / name, target)


@contextlib.contextmanager
def temporary(beside: Path) -> Iterator[Path]:
    """An empty folder for a bundle on the file system of `beside`, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=beside) as folder:
        yield Path(folder)
