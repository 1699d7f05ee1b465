"""Functions of a user's own that a configuration names: whether their source has them, seen without importing it."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from compiler.errors import ConfigError, did_you_mean
from compiler.keys.sources import source_of

HOW = "name it package.module:function, importable from the working folder (or set PYTHONPATH)"

BIND_ANY = frozenset({"__import__", "eval", "exec", "globals", "locals", "vars"})
"""Functions by which a module can bind names that its source does not show."""


def check(setting: str, reference: str) -> None:
    """Looks for the function that `setting` names as `package.module:function`.

    Only what is certain is refused: a module may make names as it is imported.

    Raises:
        ConfigError: the module does not exist, its source is not Python, or it does not define the name.
    """
    module, _, name = reference.partition(":")
    path = source_of(module)
    if path is None:
        if not _exists(module.partition(".")[0]):
            raise ConfigError(f"{setting} {reference!r}: there is no module {module.partition('.')[0]!r}", fix=HOW)
        return  # a compiled module, or one below a package that finds its modules by other means
    try:
        bound = _names(path)
    except (SyntaxError, ValueError) as error:
        line, why = getattr(error, "lineno", None), getattr(error, "msg", error)
        raise ConfigError(
            f"{setting} {reference!r}: {path}{f':{line}' if line else ''} is not Python: {why}", fix="correct that line"
        ) from None
    except (OSError, RecursionError):
        return
    if bound is None or name in bound:
        return
    known = sorted(n for n in bound if not n.startswith("_"))
    raise ConfigError(
        f"{setting} {reference!r}: {_shown(path)} has no {name!r}{did_you_mean(name, known)}",
        fix=f"it has {', '.join(known[:10])}" if known else HOW,
    )


def _exists(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


@functools.cache
def _names(path: Path) -> frozenset[str] | None:
    """Return the names that the module at `path` binds; None if it may bind others while it is imported.

    Raises:
        OSError, SyntaxError, ValueError, RecursionError: the file cannot be read or parsed.
    """
    tree = ast.parse(path.read_bytes(), filename=str(path))
    bound = frozenset(_bound(tree))
    return None if "__getattr__" in bound or any(map(_may_bind_any, ast.walk(tree))) else bound


def _may_bind_any(node: ast.AST) -> bool:
    """Whether code with this node, at any place in a module, can bind names that the source does not show."""
    if isinstance(node, ast.Attribute):  # sys.modules[__name__]; any `modules` would be every network's own
        of_sys = isinstance(node.value, ast.Name) and node.value.id == "sys"
        return node.attr == "__dict__" or (node.attr == "modules" and of_sys)
    return (
        isinstance(node, ast.Global)
        or (isinstance(node, ast.Name) and node.id in BIND_ANY)
        or (isinstance(node, ast.alias) and node.name in ("*", "modules"))
    )


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that a module binds outside its functions."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            queue += node.decorator_list
            continue
        if isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        queue += ast.iter_child_nodes(node)


def _shown(path: Path) -> str:
    """Relative to the working folder where it lies in there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
