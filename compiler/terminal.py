"""What all tables share: where they are printed, and the libraries that they need."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from compiler.errors import MissingToolError

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 220


def console() -> Console:
    """Standard output; without colours and of a fixed width where it is no terminal, so that no table is folded."""
    from rich.console import Console

    found = Console(markup=False, emoji=False)
    if found.is_terminal:
        return found
    return Console(file=found.file, width=PIPE_WIDTH, no_color=True, highlight=False, markup=False, emoji=False)


def with_rich() -> bool:
    """Whether tables can be drawn: hosts that only run, verify or finish have no library for that."""
    return importlib.util.find_spec("rich") is not None


def need_tables() -> None:
    """Before work whose outcome is a table.

    Raises:
        MissingToolError: the library for it is not installed.
    """
    if not with_rich():
        raise MissingToolError(
            "the table of figures needs the Python package 'rich', which is not installed",
            fix="pip install 'target-model-compiler[build]', or say --json",
        )


def need_pages() -> None:
    """Before work whose outcome is a page of HTML.

    Raises:
        MissingToolError: the library for it is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingToolError(
            "the report needs the Python package 'jinja2', which is not installed",
            fix="pip install 'target-model-compiler[build]', or leave --report out",
        )
