"""What a step's key is made of: source closure, content of outside files, tool versions, this host.

Reading source and hashing files is remembered by size, times and inode, so that a build with nothing to do
reads next to nothing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from compiler.canonical import digest, file_digest, list_files
from compiler.errors import ConfigError, MissingToolError
from compiler.store import write_atomically

PACKAGE = "compiler"


class Memo:
    """A small file that remembers what was computed from a file, valid while the file's stat is unchanged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        try:
            rows = json.loads(path.read_text())
        except (OSError, ValueError):
            rows = None
        self._rows: dict[str, list[Any]] = rows if isinstance(rows, dict) else {}

    def get(self, kind: str, path: Path, compute: Any) -> Any:
        """What `compute(path)` gave when `path` last looked as it does now, else computes it."""
        info = path.stat()
        seen = [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]
        name = f"{kind}:{path}"
        row = self._rows.get(name)
        if isinstance(row, list) and len(row) == 2 and row[0] == seen:
            return row[1]
        value = compute(path)
        after = path.stat()
        if [after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino] != seen:
            raise ConfigError(f"{path} changed while it was read", fix="run again once it is written completely")
        self._rows[name] = [seen, value]
        self._changed = True
        return value

    def save(self) -> None:
        """Writes what is new; a folder that cannot be written to is no error, only slower next time."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_atomically(self._path, json.dumps(self._rows).encode())
            self._changed = False


def content_digest(path: Path, memo: Memo) -> str:
    """SHA-256 of a file, or of the listing (relative path, digest) of a folder.

    Raises:
        ConfigError: nothing is there.
    """
    if path.is_dir():
        try:
            files = list_files(path)
            [file.name.encode() for file in files]
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{path} holds a file whose name is not UTF-8: {error.object!r}", fix="rename it"
            ) from None
        except ValueError as error:
            raise ConfigError(
                str(error), fix="a data folder holds regular files only; copy what links point to"
            ) from None
        return digest([[f.relative_to(path).as_posix(), memo.get("sha256", f, file_digest)] for f in files])
    if path.is_file():
        return str(memo.get("sha256", path, file_digest))
    raise ConfigError(
        f"there is no file or folder {path}", fix="check the path; a relative one counts from the working folder"
    )


def source_closure(modules: tuple[str, ...], memo: Memo) -> dict[str, str]:
    """Digest of the source of `modules` and of every first-party module they import, by name.

    First-party are this package and, for a module outside it, the modules beside it in the same folder or package.
    """
    found: dict[str, str] = {}
    queue = list(modules)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        path = _source_of(name)
        if path is None:
            continue
        found[name] = str(memo.get("sha256", path, file_digest))
        imported: list[str] = memo.get("imports", path, functools.partial(_imports, module=name))
        queue.extend(other for other in imported if _first_party(other, name))
        if "." in name:
            queue.append(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _first_party(name: str, importer: str) -> bool:
    """Ours, or a user's: source that no installed distribution or standard library brings."""
    top = name.partition(".")[0]
    if top == PACKAGE:
        return True
    if importer.partition(".")[0] == PACKAGE or top in sys.stdlib_module_names:
        return False
    found = _source_of(name) or _source_of(top)
    return found is not None and is_users_own(found)


@functools.cache
def is_users_own(path: Path) -> bool:
    """Whether a source file belongs neither to an installed distribution nor to Python itself."""
    installed = {
        Path(folder) for folder in (sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib"))
    }
    return "site-packages" not in path.parts and not any(path.is_relative_to(folder) for folder in installed)


@functools.cache
def _source_of(name: str) -> Path | None:
    """The source file of a module, found without importing anything: `find_spec` would import its parents."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return path
    return None


def _imports(path: Path, module: str) -> list[str]:
    """Names of modules that the source at `path` imports anywhere, functions included; attributes too, harmlessly."""
    names: set[str] = set()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is not valid Python: {error}", fix="correct the file") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return sorted(names)


@functools.cache
def tool_version(distribution: str) -> str:
    """The installed version of a distribution, or 'absent'."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@functools.cache
def foreign_versions(python: str, distributions: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """What `tool_version` and `interpreter` say under another interpreter.

    Raises:
        MissingToolError: the interpreter cannot be run.
    """
    script = (
        "import importlib.metadata as m, json, os, platform, sys\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return 'absent'\n"
        "i = f'{platform.python_implementation()}-{platform.python_version()}-{platform.machine()}-{os.name}'\n"
        "print(json.dumps([{n: v(n) for n in sys.argv[1:]}, i]))"
    )
    try:
        done = subprocess.run(
            [python, "-c", script, *distributions], capture_output=True, text=True, timeout=60, check=True
        )
        versions, runs_on = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise MissingToolError(
            f"the toolchain's interpreter {python} cannot be run: {error}",
            fix="create the environment, or correct toolchains.NAME.python",
        ) from None
    return versions, str(runs_on)


def interpreter() -> str:
    """The interpreter and machine type that a step's result may depend on."""
    return f"{platform.python_implementation()}-{platform.python_version()}-{platform.machine()}-{os.name}"
