"""Installed distributions and what of them decides a result: their versions and what their RECORD files list.

    python -m compiler.keys.tools [NAME ...]      prints what `Tools.identities` gives, as JSON

It runs under a toolchain's interpreter too, so it imports what needs the standard library alone.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from compiler.foreign_files import read_limited
from compiler.installed import tops

ABSENT = "absent"
LARGEST_RECORD = 64 << 20
"""Of a distribution's list of files, or of its metadata, in bytes."""
LOCAL = re.compile(
    r"\.pyc$|(^|/)(INSTALLER|REQUESTED|RECORD|RECORD\.jws|direct_url\.json|uv_cache\.json|uv_build\.json)$"
)
"""What an installer adds, or what differs between two installations of one wheel."""
STANDS_FOR = {"onnxruntime": ("onnxruntime-gpu",), "tensorrt": ("tensorrt-cu13", "tensorrt-cu12")}
"""Distribution -> others that bring the same modules, and may be installed in its place."""
REQUIRES = re.compile(
    r"^Requires-Dist:[ \t]*([A-Za-z0-9][A-Za-z0-9._-]*)[ \t]*(?:\[([^\]]*)\])?([^;\n]*)(?:;(.*))?$", re.M
)
EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
VERSION = re.compile(r"^Version:\s*(\S+)", re.M)

Remember = Callable[[str, Path, Callable[[Path], Any]], Any]


def normal(name: str) -> str:
    """A distribution's name as the package index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Tools:
    """The distributions that this interpreter finds. `remember` keeps what was read of a file while it is unchanged."""

    def __init__(self, remember: Remember = lambda _kind, path, compute: compute(path)) -> None:
        self._remember = remember
        self._folders: dict[str, Path] | None = None
        self._known: dict[str, tuple[str, list[Any]]] = {}

    def version(self, name: str) -> str:
        """The installed version of a distribution, or 'absent'."""
        folder = self._found().get(normal(name))
        return str(self._metadata_of(folder)[0]) if folder else ABSENT

    def identities(self, names: Iterable[str]) -> dict[str, str]:
        """For `names` and all that they require, as far as it is installed: version, and digest of the files listed.

        The digest leaves out what differs between two installations of one wheel: scripts, bytecode, notes.
        """
        found: dict[str, str] = {}
        queue = [(normal(name), frozenset[str](), True) for name in names]
        done: set[tuple[str, frozenset[str]]] = set()
        while queue:
            name, extras, asked = queue.pop()
            if (name, extras) in done:
                continue
            done.add((name, extras))
            folder = self._found().get(name)
            if folder is None:
                if asked:
                    found[name] = ABSENT
                continue
            found[name], requires = self._describe(name, folder)
            for other, wanted, only_for in requires:
                if not only_for or extras & set(only_for):
                    queue.append((other, frozenset(wanted), False))
        return dict(sorted(found.items()))

    def own(self, names: Iterable[str]) -> dict[str, str]:
        """The identities of `names` alone; 'absent' where one is not installed."""
        folders = self._found()
        return {n: self._describe(n, folders[n])[0] if n in folders else ABSENT for n in sorted(map(normal, names))}

    def owners(self, modules: Iterable[str]) -> list[str]:
        """The distributions that bring the top-level `modules`; of names that none brings nothing is said."""
        wanted = set(modules)
        return sorted(name for name, folder in self._found().items() if wanted & set(self._tops_of(folder)))

    def _found(self) -> dict[str, Path]:
        if self._folders is None:
            folders: dict[str, Path] = {}
            for entry in sys.path:
                try:
                    names = sorted(os.listdir(entry or "."))  # noqa: PTH208 - names are all that is needed
                except OSError:
                    continue
                for name in names:
                    if name.endswith((".dist-info", ".egg-info")):
                        folders.setdefault(normal(name.split("-")[0].removesuffix(".egg")), Path(entry or ".", name))
            for name, others in STANDS_FOR.items():
                found = next((folders[other] for other in others if other in folders), None)
                if name not in folders and found is not None:
                    folders[name] = found
            self._folders = folders  # only now: steps end at the same time, and another thread must not see a part
        return self._folders

    def _describe(self, name: str, folder: Path) -> tuple[str, list[Any]]:
        if name not in self._known:
            version, requires = self._metadata_of(folder)
            try:
                files = self._remember("record", *_listing(folder, _record_digest))
            except OSError:
                files = ABSENT
            self._known[name] = f"{version} {files}", requires
        return self._known[name]

    def _tops_of(self, folder: Path) -> list[str]:
        try:
            found: list[str] = self._remember("top", *_listing(folder, _tops))
            return found
        except OSError:
            return []

    def _metadata_of(self, folder: Path) -> list[Any]:
        try:
            found: list[Any] = self._remember("metadata", *_metadata(folder))
            return found
        except OSError:
            return ["unknown", []]


def _metadata(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / "METADATA"
    path = path if path.exists() else folder / "PKG-INFO" if folder.is_dir() else folder
    return path, _read_metadata


def _read_metadata(path: Path) -> list[Any]:
    """Version, and for each requirement its name, its extras and the extras under which it counts."""
    text = _text(path).split("\n\n", 1)[0]
    version = VERSION.search(text)
    requires = [
        [normal(name), sorted(filter(None, map(str.strip, extras.split(",")))), EXTRA.findall(marker)]
        for name, extras, _, marker in REQUIRES.findall(text)
    ]
    return [version.group(1) if version else "unknown", requires]


def _listing(folder: Path, compute: Callable[[Path], Any]) -> tuple[Path, Callable[[Path], Any]]:
    record = folder / "RECORD"
    return (record if record.exists() else _metadata(folder)[0]), compute


def _rows(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    """Raise OSError if it is not a regular file, or larger than any installer writes."""
    try:
        return read_limited(path, LARGEST_RECORD).decode("utf-8", errors="replace").replace("\r\n", "\n")
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from None


def _record_digest(path: Path) -> str:
    """SHA-256 of the sorted lines of a RECORD file, without those that differ between installations."""
    kept = sorted(line for line in _rows(path) if not line.startswith("../") and not LOCAL.search(line.split(",")[0]))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _tops(path: Path) -> list[str]:
    """Top-level module names among the files of a RECORD."""
    return sorted(tops(_rows(path)))


@functools.cache
def tool_version(name: str) -> str:
    """The version of a distribution that this process would import, or 'absent'."""
    return Tools().version(name)


def main() -> int:
    """Prints identities and interpreter for `foreign_identities`."""
    from compiler.keys.environment import interpreter

    print(json.dumps([Tools().identities(sys.argv[1:]), interpreter()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
