"""Functions of a user's own that a configuration names: whether their source has them, seen without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from compiler.errors import ConfigError, did_you_mean
from compiler.keys.sources import source_of

HOW = "name it package.module:function, importable from the working folder (or set PYTHONPATH)"

BIND_ANY = ("globals", "setattr", "exec")
"""Functions by which a module can bind a name that its source does not show."""


def check(setting: str, reference: str) -> None:
    """Looks for the function that `setting` names as `package.module:function`.

    Only what is certain is refused: a module may make names as it is imported.

    Raises:
        ConfigError: the module does not exist, its source is not Python, or it does not define the name.
    """
    module, _, name = reference.partition(":")
    path = source_of(module)
    if path is None:
        if source_of(module.partition(".")[0]) is None:
            raise ConfigError(f"{setting} {reference!r}: there is no module {module.partition('.')[0]!r}", fix=HOW)
        return  # below a package that finds its modules by other means
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line, why = getattr(error, "lineno", None), getattr(error, "msg", error)
        raise ConfigError(
            f"{setting} {reference!r}: {path}{f':{line}' if line else ''} is not Python: {why}", fix="correct that line"
        ) from None
    except (OSError, RecursionError):
        return
    bound = set(_bound(tree))
    if name in bound or bound & {"*", "__getattr__", *BIND_ANY}:
        return
    known = sorted(n for n in bound if not n.startswith("_"))
    raise ConfigError(
        f"{setting} {reference!r}: {_shown(path)} has no {name!r}{did_you_mean(name, known)}",
        fix=f"it has {', '.join(known[:10])}" if known else HOW,
    )


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that a module binds outside its functions, `*` for what it imports unnamed, and calls that bind others."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            queue += node.decorator_list
            continue
        if isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in BIND_ANY):
            yield node.id
        queue += ast.iter_child_nodes(node)


def _shown(path: Path) -> str:
    """Relative to the working folder where it lies in there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
