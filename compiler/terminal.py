"""What all tables share: where they are printed, and that data from files does not steer the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def printable(value: Any) -> Any:
    """A copy without control characters, in keys too: manifests and operators' names come from files."""
    if isinstance(value, dict):
        return {printable(name): printable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [printable(item) for item in value]
    return "".join(c if c.isprintable() else "?" for c in value) if isinstance(value, str) else value
