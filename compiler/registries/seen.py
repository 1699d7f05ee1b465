"""What tags meant when they were last pulled by this user, so that one that moved is noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.disk import write_atomically
from compiler.foreign_files import open_lock_file, read_limited
from compiler.registries.reference import Reference

MAX_ENTRIES = 1000
LARGEST_FILE = 16 << 20
FIELDS = ("model", "target", "version", "created")


def last(reference: Reference) -> dict[str, str] | None:
    """`digest`, and of the manifest `FIELDS`, of what the tag meant; None where it was not pulled before."""
    entry = _read().get(_key(reference))
    return (
        entry
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("digest", *FIELDS))
        else None
    )


def remember(reference: Reference, digest: str, manifest: Mapping[str, Any]) -> None:
    """Keeps what a tag means now. Where nothing can be written, nothing is kept."""
    file = _file()
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_lock_file(file.parent / "tags.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = _read()
            entries.pop(_key(reference), None)
            entries[_key(reference)] = {"digest": digest, **{name: str(manifest[name]) for name in FIELDS}}
            kept = dict(list(entries.items())[-MAX_ENTRIES:])
            write_atomically(file, json.dumps(kept, indent=1).encode())


def _key(reference: Reference) -> str:
    """One for all the ways to write the same place."""
    place = str(Path(reference.place).resolve()) if reference.kind == "file" else reference.place
    return f"{dataclasses.replace(reference.home, place=place)}:{reference.name}"


def _read() -> dict[str, Any]:
    file = _file()
    try:
        found = json.loads(read_limited(file, LARGEST_FILE)) if file is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _file() -> Path | None:
    """None where this user has no home."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    except RuntimeError:
        return None
    return Path(state) / "target-model-compiler" / "tags.json"
