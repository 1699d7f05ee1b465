"""Looking after a store: what is in it, what may go, what is damaged. None of it is needed for a build to be right."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.canonical import FileEntry, digest, file_digest
from compiler.disk import explain_os_errors, explained, remove_tree
from compiler.foreign_json import read_json
from compiler.store import latest, locks
from compiler.store.objects import is_whole
from compiler.store.records import read_sealed
from compiler.store.session import UPKEEP, pinned, sweep, upkeep_lock
from compiler.store.store import Store

KEEP = 1
GROUPED = ("objects", "actions", "verified", "last", "latest", "reads")
"""Folders of the store that hold folders alone."""


@dataclass(frozen=True)
class Row:
    """One stored result: `used` is when a build last took it (seconds since 1970, by the clock of then)."""

    key: str
    object: str
    stage: str
    step: str
    scope: str
    size_bytes: int
    used: float
    kept_by: int
    """By how many finished versions it is needed."""
    reads: str = ""
    """The key under which the store remembers what own code read for it; empty for a step without own code."""


@dataclass
class Collected:
    """What garbage collection removed, or would."""

    results: list[Row] = field(default_factory=list)
    bytes_freed: int = 0
    bytes_left: int = 0
    results_left: int = 0
    other: dict[str, int] = field(default_factory=dict)
    """Leftovers, failures, quarantined objects, lists of files read, unheld locks: how many of each."""


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written. `mended` says what became of it under repair, or is empty."""

    what: str
    mended: str = ""


def rows(store: Store, artifacts: Path) -> list[Row]:
    """Every result, the least recently used first."""
    needed = _needed_keys(artifacts, None)
    return _by_use(_row(path, needed) for path in _actions(store))


def _actions(store: Store) -> list[Path]:
    return sorted((store.root / "actions").glob("*/*.json"))


def _by_use(found: Iterable[Row | None]) -> list[Row]:
    return sorted((row for row in found if row is not None), key=lambda row: (row.used, row.key))


def _row(path: Path, needed: Mapping[str, int]) -> Row | None:
    action = read_sealed(path)
    if action is None:
        return None
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError, AttributeError):
        return Row(
            key=action["key"],
            object=action["object"],
            stage=str(action["document"].get("stage", "")).rpartition(":")[2],
            step=action["step"],
            scope=action["scope"],
            size_bytes=sum(int(entry["size"]) for entry in action["files"]),
            used=path.stat().st_mtime,
            kept_by=needed.get(action["key"], 0),
            reads=_reads_key(action["document"]),
        )
    return None


def _reads_key(document: Mapping[str, Any]) -> str:
    return digest({k: v for k, v in document.items() if k != "reads"}) if "reads" in document else ""


def collect(store: Store, artifacts: Path, keep: int | None, max_bytes: int | None, dry_run: bool = False) -> Collected:
    """Removes results that neither a running build nor a kept version needs; versions themselves are never touched.

    Kept are the newest `keep` versions of each model and target, and `latest`. With `max_bytes` results go, least
    recently used first, only until the rest is no larger.

    Raises:
        CompilerError: the store cannot be written to.
    """
    done = Collected()
    early = {row.key: row for row in rows(store, artifacts)}  # the slow part, while builds go on
    trash = None if dry_run else _trash(store)
    with explain_os_errors(store.root), upkeep_lock(store.root, exclusive=True):
        all_rows = _by_use(early.get(path.stem) or _row(path, {}) for path in _actions(store))
        needed = _needed_keys(artifacts, keep)
        scopes, objects = _pinned(store)
        kept_objects = {row.object for row in all_rows if row.key in needed or row.scope in scopes} | objects
        last = {digest(document) for scope in scopes for document in _last_documents(store.root / "last" / scope)}
        kept_objects |= {row.object for row in all_rows if row.key in last}
        sizes = {row.object: row.size_bytes for row in all_rows}
        left = sum(sizes.values())
        for row in all_rows:
            if row.object in kept_objects or (max_bytes is not None and left <= max_bytes):
                continue
            done.results.append(row)
            left -= sizes.pop(row.object, 0)
        done.bytes_left, done.results_left = left, len(all_rows) - len(done.results)
        done.bytes_freed = sum({row.object: row.size_bytes for row in done.results}.values())
        gone = {row.object for row in done.results}
        rubbish = _rubbish(store, {row.object for row in all_rows} | objects)
        reads = {row.reads for row in all_rows if row.object not in gone}
        rubbish["lists of files read"] = [
            path for path in sorted((store.root / "reads").glob("*/*.json")) if path.stem not in reads
        ]
        done.other = {name: len(paths) for name, paths in rubbish.items()}
        if dry_run:
            return done
        # the action goes first: a result without its action is only rubbish, an action without its result looks damaged
        for row in done.results:
            store.action_path(row.key).unlink(missing_ok=True)
        objects_gone = [store.object_path(name) for name in sorted(gone)]
        for number, path in enumerate(objects_gone + [p for paths in rubbish.values() for p in paths]):
            with contextlib.suppress(FileNotFoundError):
                if trash is None:
                    remove_tree(path)
                else:
                    path.rename(trash / str(number))
        for name in gone:
            (store.root / "verified" / name[:2] / f"{name}.json").unlink(missing_ok=True)
        done.other["leftovers"] = sweep(store.root)
        done.other["locks"] = locks.remove_unused(store.root / "locks", frozenset({UPKEEP}))
    if trash is not None:
        remove_tree(trash)  # the slow part, outside the lock
    return done


def _trash(store: Store) -> Path | None:
    """Where to move what goes, to remove it later; None on a full disk, which is what collecting is good for.

    Raises:
        CompilerError: the store cannot be written to.
    """
    try:
        trash = store.scratch() / "trash"
        trash.mkdir(exist_ok=True)
        return trash
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return None
        raise explained(error, store.root) from error


def check(store: Store, artifacts: Path, repair: bool, told: Callable[[str], None]) -> Iterator[Damage]:
    """Hashes everything in full: results, what names them, remembered inputs, finished versions.

    With `repair` what is damaged is set aside or forgotten, and the next build makes it again; a finished version is
    only named, because it may be elsewhere already. `told` hears what is being checked.
    """
    told("folders and locks")
    for path in _in_the_way(store):
        yield _forget(path, f"{_short(store, path)} is nothing that a build has made", repair)
    told("results")
    aside: set[str] = set()
    yield from _check_results(store, repair, aside)
    told("records")
    for path in _actions(store):
        action = read_sealed(path)
        if action is None or not _is_action(action, path.stem):
            yield _forget(path, f"the record {_short(store, path)} is not as it was written", repair)
        elif not store.object_path(action["object"]).is_dir():
            missing = _forget(path, f"the result of {action['step'] or path.stem[:12]} is missing", repair)
            if action["object"] not in aside:  # else it has been told
                yield missing
    for folder in ("verified", "last", "versions", "latest", "reads"):
        for path in sorted((store.root / folder).rglob("*.json")):
            if read_sealed(path) is None:
                yield _forget(path, f"the record {_short(store, path)} is not as it was written", repair)
    told("remembered inputs")
    yield from _check_memo(store, repair)
    told("finished versions")
    yield from _check_versions(artifacts)
    for what, mended in latest.problems(store, artifacts, repair):
        yield Damage(what, "restored" if mended else "")


def _check_results(store: Store, repair: bool, aside: set[str]) -> Iterator[Damage]:
    """Results that are not what their names say; those that were set aside are added to `aside`."""
    known = _known_entries(store)
    for path in sorted((store.root / "objects").glob("*/*")):
        if is_whole(path, known.get(path.name)) or not os.path.lexists(path):  # collected by somebody meanwhile
            continue
        if repair and store.object_path(path.name) == path:
            store.objects.set_aside(path.name, known.get(path.name))
            aside.add(path.name)
        elif repair:  # nothing that a store has made
            with contextlib.suppress(OSError):
                remove_tree(path)
        mended = repair and not os.path.lexists(path)
        yield Damage(
            f"the result {path.name[:12]} ({_short(store, path)}) does not match its digest",
            "set aside in quarantine/, made again by the next build" if mended else "",
        )


def _in_the_way(store: Store) -> list[Path]:
    """What lies where folders and locks of the store belong, and is neither."""
    folders = [store.root / name for name in (*GROUPED, "versions", "work", "failures", "quarantine", "locks")]
    folders += [path for name in GROUPED for path in sorted((store.root / name).glob("*"))]
    wrong = [path for path in folders if os.path.lexists(path) and not path.is_dir()]
    locks = sorted((store.root / "locks").glob("*"))  # gc may remove one at any moment
    return [*wrong, *(path for path in locks if os.path.lexists(path) and not path.is_file())]


def _known_entries(store: Store) -> dict[str, tuple[FileEntry, ...]]:
    """The files of each result, as the record of its step lists them."""
    found = {}
    for action in map(read_sealed, _actions(store)):
        if action is not None:
            with contextlib.suppress(KeyError, TypeError):
                found[str(action["object"])] = tuple(FileEntry(**entry) for entry in action["files"])
    return found


def _is_action(action: Mapping[str, Any], key: str) -> bool:
    try:
        named = (action["object"], action["step"], action["scope"])
        return action["key"] == key == digest(action["document"]) and all(isinstance(name, str) for name in named)
    except (KeyError, TypeError, ValueError):
        return False


def _check_memo(store: Store, repair: bool) -> Iterator[Damage]:
    """Content that a digest is remembered for, hashed again although its size and times are as they were."""
    path = store.root / "memo.json"
    memo = read_sealed(path)
    if memo is None:
        if os.path.lexists(path):
            yield _forget(path, "what is remembered of inputs (memo.json) is not as it was written", repair)
        return
    wrong = []
    for name, (seen, value) in sorted(memo["rows"].items()):
        kind, _, file = name.partition(":")
        if kind not in ("sha256", "source"):
            continue
        with contextlib.suppress(OSError):
            info = Path(file).stat()
            now = [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]
            if now == seen and Path(file).is_file() and file_digest(Path(file)) != value:
                wrong.append(file)
    for file in wrong:
        yield Damage(f"{file} has other content than when it was last read, though its size and times are the same")
    if wrong and repair:
        yield _forget(path, "digests of inputs are remembered that are no longer true", repair)


def _check_versions(artifacts: Path) -> Iterator[Damage]:
    from compiler.errors import CompilerError
    from compiler.runtime.verify import verify

    for folder in _versions(artifacts):
        try:
            verify(folder)
        except CompilerError as error:
            yield Damage(f"the version {folder.relative_to(artifacts)}: {error.what}")


def _forget(path: Path, what: str, repair: bool) -> Damage:
    if repair:
        with contextlib.suppress(OSError):
            remove_tree(path)
    return Damage(what, "forgotten, made again by the next build" if repair and not os.path.lexists(path) else "")


def _short(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()


def _rubbish(store: Store, named: set[str]) -> dict[str, list[Path]]:
    """What no action names: objects of builds that were killed before their action, failures, quarantine."""
    return {
        "nameless results": [p for p in sorted((store.root / "objects").glob("*/*")) if p.name not in named],
        "failures": sorted((store.root / "failures").glob("*")),
        "quarantined": sorted((store.root / "quarantine").glob("*")),
    }


def _pinned(store: Store) -> tuple[set[str], set[str]]:
    pins = pinned(store.root)
    return {p["scope"] for p in pins if "scope" in p}, {p["object"] for p in pins if "object" in p}


def _last_documents(folder: Path) -> list[dict[str, Any]]:
    found = [read_sealed(path) for path in sorted(folder.glob("*.json"))]
    return [record for record in found if record is not None]


def _needed_keys(artifacts: Path, keep: int | None) -> dict[str, int]:
    """Key -> number of versions that it was built for: of all, or of the newest `keep` of each model and target."""
    homes: dict[Path, list[Path]] = {}
    for folder in _versions(artifacts):
        homes.setdefault(folder.parent, []).append(folder)
    needed: dict[str, int] = {}
    for home, folders in homes.items():
        kept = folders if keep is None else folders[max(0, len(folders) - keep) :]
        link = home / latest.NAME
        if kept and link.is_symlink() and (there := home / os.readlink(link)) in folders and there not in kept:  # noqa: PTH115
            kept = [*kept, there]
        for folder in kept:
            for key in _keys_of(folder):
                needed[key] = needed.get(key, 0) + 1
    return needed


def _versions(artifacts: Path) -> list[Path]:
    """The folders of finished versions, by model, target and version."""
    folders = artifacts.glob("[!.]*/[!.]*/[!.]*")
    return sorted(p for p in folders if not p.is_symlink() and os.path.lexists(p / latest.MANIFEST))


def _keys_of(folder: Path) -> list[str]:
    try:
        steps = read_json(folder / "manifest.json")["steps"]
        return [step["key"] for step in steps if isinstance(step.get("key"), str)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []
