"""Small JSON files that say of themselves whether they are whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from compiler.foreign_files import read_limited

HEAD, TAIL = b'{"sha256": "', b'", '
LENGTH = 64
LARGEST_RECORD = 1 << 30
"""What is remembered of a million files in a folder of images is a quarter of it."""


def sealed(record: dict[str, Any]) -> bytes:
    """The record as JSON whose first member, `sha256`, is the digest of the bytes of all others."""
    rest = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()[1:]
    return HEAD + hashlib.sha256(rest).hexdigest().encode() + TAIL + rest


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The record at `path`, or None where there is none or any bit of it is not as it was written."""
    try:
        data = read_limited(path, LARGEST_RECORD)
        start = len(HEAD) + LENGTH + len(TAIL)
        rest = data[start:]
        expected = HEAD + hashlib.sha256(rest).hexdigest().encode() + TAIL
        if data[:start] != expected:
            return None
        record: dict[str, Any] = json.loads(b"{" + rest)
        return record
    except (OSError, ValueError, RecursionError):
        return None
