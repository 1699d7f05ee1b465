"""history: the versions in a repository of a registry, newest first, with the tags that lead to each."""

from __future__ import annotations

import json
from typing import Any

from compiler.commands.arguments import parser
from compiler.commands.transfers import megabytes
from compiler.errors import ConfigError
from compiler.registries import connect
from compiler.registries.reference import parse
from compiler.runtime.fetch import versions
from compiler.words import printable

COLUMNS = ("version", "created", "status", "selected", "size", "signed", "tags")


def run(arguments: list[str]) -> int:
    """Prints a line a version; the digests with `--json`."""
    options = parser("history", __doc__ or "")
    options.add_argument("reference", metavar="REF", help="file:PATH or oci://HOST/REPOSITORY")
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    given = options.parse_args(arguments)
    reference = parse(given.reference)
    found = versions(connect(reference))
    if not found:
        raise ConfigError(f"nothing is published in {reference.home}", fix="check the reference")
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    entries = [printable(entry) for entry in found]
    print(f"{entries[0]['model']} for {entries[0]['target']} in {reference.home}")
    rows = [COLUMNS, *map(_row, entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    status = f"{entry['status']}, forced" if entry["forced"] else entry["status"]
    tags = ", ".join(tag for tag in entry["tags"] if tag != entry["version"])
    signed = "yes" if entry["signed"] else "no"
    return entry["version"], entry["created"], status, entry["selected"], megabytes(entry["bytes"]), signed, tags
