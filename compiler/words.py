"""Words that others wrote, for a terminal or a manifest: of one line, of bounded length, without control characters."""

from __future__ import annotations

from typing import Any

LONGEST_WORDS = 600
"""Of an error: what is longer is shown with dots at its end."""
LONGEST_LINE = 300
MOST_LINES = 40
"""Of an error's details: the last ones are kept."""


def printable(value: Any) -> Any:
    """A copy without control characters, in keys too: manifests and operators' names come from files."""
    if isinstance(value, dict):
        return {printable(name): printable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [printable(item) for item in value]
    return "".join(c if c.isprintable() else "?" for c in value) if isinstance(value, str) else value


def words(text: object, most: int = LONGEST_WORDS) -> str:
    """One line of at most `most` characters that can be printed, whatever `text` is."""
    try:
        shown = str(text)
    except Exception:  # whoever wrote the class is not us
        return "(its words cannot be had)"
    cut = len(shown) > most
    shown = str(printable(" ".join(shown[:most].replace("\t", " ").splitlines()).rstrip()))
    return f"{shown}..." if cut else shown


def lines(texts: object, most: int = MOST_LINES) -> list[str]:
    """The last lines of an error's details, as `words`."""
    return [words(text, LONGEST_LINE) for text in texts[-most:]] if isinstance(texts, list) else []
