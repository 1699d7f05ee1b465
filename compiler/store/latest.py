"""The link `latest` next to the versions of a model and target: which version it must lead to, and its repair.

latest/<model>/<target>.json in the store records the version that was delivered last. It is written before the
version's own record, and that before the link: wherever a process is killed, the next build knows what the link must
say. The clock does not decide, because it may go back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.disk import explain_os_errors, fsync
from compiler.errors import CompilerError, ConfigError
from compiler.store.records import read_sealed, sealed
from compiler.store.store import Store

NAME = "latest"
DELIVERABLE = ("pass", "provisional")
"""The statuses of a manifest whose version `latest` may lead to."""
MANIFEST = "manifest.json"


def lock_of(home: Path) -> str:
    """Return the name of the lock under which the record and the link of a model and target change."""
    return f"latest-{home.parent.name}-{home.name}"


def record(store: Store, version: Path, status: str) -> None:
    """Record that `version` was delivered last, if its status lets it be delivered. Callers hold `lock_of` its home."""
    if status in DELIVERABLE:
        store.write(_path(store, version.parent), sealed({"version": version.name}))


def wanted(store: Store, home: Path) -> str | None:
    """Return the name of the version in `home` that `latest` must lead to; None where none may be delivered.

    Without a record, or where the recorded version is gone, it is the newest by name.
    """
    known = read_sealed(_path(store, home))
    if known is not None and _may_be_delivered(home / str(known.get("version"))):
        return str(known["version"])
    from compiler.runtime.verify import VERSION

    names = sorted((path.parent.name for path in home.glob(f"[!.]*/{MANIFEST}")), reverse=True)
    versions = (home / name for name in names if VERSION.fullmatch(name))  # no copy, nor what was moved away
    return next((path.name for path in versions if not path.is_symlink() and _may_be_delivered(path)), None)


def problem(store: Store, home: Path) -> str:
    """Return what is wrong with the link in `home`, in words; empty where it is right."""
    link, name = home / NAME, wanted(store, home)
    if _target(link) == name:
        return ""
    if os.path.lexists(link) and not link.is_symlink():
        return f"{link} is not the link that builds make: move it away, and build again"
    found = _target(link)
    if found is None:
        return f"the link {link} is missing"
    should = f"it must lead to {name}" if name else "no version may be delivered"
    return f"the link {link} leads to {found}, {should}"


def restore(store: Store, home: Path) -> bool:
    """Make `latest` in `home` lead where it must; return whether it had to be changed.

    Raises:
        ConfigError: something else lies where the link belongs; it is left alone.
        CompilerError: the folder cannot be written to.
    """
    if not home.is_dir() or not problem(store, home):
        return False
    with store.lock(lock_of(home)):
        return replace(store, home)


def replace(store: Store, home: Path) -> bool:
    """Like `restore`, for callers that hold `lock_of(home)`."""
    link, name = home / NAME, wanted(store, home)
    if _target(link) == name:
        return False
    if os.path.lexists(link) and not link.is_symlink():
        if name is None:
            return False
        raise ConfigError(
            f"{link} is not the link that builds make, so it was left alone; the artifact is at {home / name}",
            fix="move it away and run again",
        )
    with explain_os_errors(home):
        if name is None:
            link.unlink()
        else:
            with store.work_folder(NAME) as work:
                (work / NAME).symlink_to(name)
                (work / NAME).replace(link)
        fsync(home)
    return True


def problems(store: Store, artifacts: Path, repair: bool) -> Iterator[tuple[str, bool]]:
    """Yield what is wrong with each link below `artifacts`, and whether it was repaired, which `repair` asks for."""
    homes = {path.parent.parent for path in artifacts.glob(f"[!.]*/[!.]*/[!.]*/{MANIFEST}")}
    homes |= {path.parent for path in artifacts.glob(f"[!.]*/[!.]*/{NAME}")}
    for home in sorted(homes):
        what = problem(store, home)
        if not what:
            continue
        mended = False
        if repair:
            try:
                mended = restore(store, home)
            except CompilerError:
                mended = False
        yield what, mended


def _path(store: Store, home: Path) -> Path:
    return store.root / "latest" / home.parent.name / f"{home.name}.json"


def _target(link: Path) -> str | None:
    return os.readlink(link) if link.is_symlink() else None  # noqa: PTH115 - the text itself, not resolved


def _may_be_delivered(version: Path) -> bool:
    from compiler.runtime.verify import read_manifest

    try:
        manifest: dict[str, Any] = read_manifest(version)[1]
    except (CompilerError, OSError):
        return False
    return manifest["status"] in DELIVERABLE
