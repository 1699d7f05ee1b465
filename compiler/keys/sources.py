"""The source behind a step: its modules and every first-party module that they import, found without importing any."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from compiler.canonical import file_digest
from compiler.errors import ConfigError
from compiler.installed import is_installed
from compiler.keys.bytecode import drop_outdated
from compiler.keys.memo import Memo

PACKAGE = "compiler"


def source_closure(modules: tuple[str, ...], memo: Memo) -> dict[str, str]:
    """Digest of the source of `modules` and of every first-party module they import, by name.

    First-party are this package and, for a module outside it, the modules beside it in the same folder or package.
    """
    found: dict[str, str] = memo.once("closure", "|".join(modules), lambda: _closure(modules, memo)[0])
    return found


def foreign_imports(modules: tuple[str, ...], memo: Memo) -> tuple[str, ...]:
    """Top-level names that the user's own among `modules`, with what lies beside them, import from elsewhere.

    Our own stages say in `tools` what they call; a user's module says it by its import statements.
    """
    found: tuple[str, ...] = memo.once("foreign", "|".join(modules), lambda: tuple(sorted(_closure(modules, memo)[1])))
    return found


def _closure(modules: tuple[str, ...], memo: Memo) -> tuple[dict[str, str], set[str]]:
    found: dict[str, str] = {}
    foreign: set[str] = set()
    queue = list(modules)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        path = source_of(name)
        if path is None:
            continue
        found[name] = str(memo.get("source", path, functools.partial(_source_digest, module=name)))
        imported: list[str] = memo.get(f"imports {name}", path, functools.partial(_imports, module=name))
        for other in imported:
            if _first_party(other, name):
                queue.append(other)
            elif name.partition(".")[0] != PACKAGE:
                foreign.add(other.partition(".")[0])
        if "." in name:
            queue.append(name.rpartition(".")[0])
    return dict(sorted(found.items())), foreign - set(sys.stdlib_module_names) - {""}


def _first_party(name: str, importer: str) -> bool:
    """Ours, or a user's: source that no installed distribution or standard library brings."""
    top = name.partition(".")[0]
    if top == PACKAGE:
        return True
    if importer.partition(".")[0] == PACKAGE or top in sys.stdlib_module_names:
        return False
    found = source_of(name) or source_of(top)
    return found is not None and is_users_own(found)


@functools.cache
def is_users_own(path: Path) -> bool:
    """Whether a source file belongs neither to an installed distribution nor to Python itself."""
    installed = {
        Path(folder) for folder in (sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib"))
    }
    return not is_installed(path) and not any(path.is_relative_to(folder) for folder in installed)


@functools.cache
def source_of(name: str) -> Path | None:
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


def _source_digest(path: Path, module: str) -> str:
    drop_outdated(path, module)
    return file_digest(path)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those below `if TYPE_CHECKING:`, which type checkers alone read."""
    queue = [tree]
    while queue:
        node = queue.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            queue.extend(node.orelse)
        else:
            queue.extend(ast.iter_child_nodes(node))


def _imports(path: Path, module: str) -> list[str]:
    """Names of modules that the source at `path` imports anywhere, functions included; attributes too, harmlessly."""
    names: set[str] = set()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is not valid Python: {error}", fix="correct the file") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running(tree):
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
