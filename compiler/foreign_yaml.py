"""YAML within limits: size, depth, and what its aliases expand to, found without building any of it."""

from __future__ import annotations

from pathlib import Path

from compiler.foreign_files import read_limited

LARGEST_YAML = 1 << 20
DEEPEST = 64
MOST_NODES = 100_000
"""With every alias replaced by what it stands for: nine lines can stand for a thousand million values."""


def check_yaml(file: Path) -> None:
    """Refuses a file that a YAML library cannot read in bounded time and memory, or that is not a mapping.

    What is merely malformed passes: whoever reads it names the line.

    Raises:
        OSError: it cannot be read.
        ValueError: what is wrong with it.
    """
    import yaml

    data = read_limited(file, LARGEST_YAML)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _walk(yaml.parse(data, Loader=loader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return


def _walk(events: object) -> None:
    """Counts the nodes of a stream of events; `open_nodes` are the collections that it is inside of."""
    from yaml import events as kinds

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, kinds.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError(f"the anchor &{event.anchor} holds itself")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, kinds.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, kinds.NodeEvent):
            if not open_nodes and not isinstance(event, kinds.MappingStartEvent):
                if isinstance(event, kinds.ScalarEvent) and event.implicit[0] and event.value in ("", "null", "~"):
                    continue  # a file without content
                raise ValueError("it is not a mapping of keys to values")
            if isinstance(event, kinds.CollectionStartEvent):
                open_nodes.append((event.anchor, count))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            count += 1
        if len(open_nodes) > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        if count > MOST_NODES:
            raise ValueError(f"it stands for more than {MOST_NODES:,} values")
