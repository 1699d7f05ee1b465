"""Finished versions, `<artifacts_dir>/<model>/<target>/<version>/`, never changed once written; and `latest`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.canonical import digest, file_digest, plain
from compiler.disk import copy, explain_os_errors, fsync, make_folder, write_atomically
from compiler.errors import IntegrityError
from compiler.keys.memo import Memo
from compiler.keys.sources import source_closure
from compiler.outcome import Outcome
from compiler.runtime.verify import MANIFEST, read_manifest
from compiler.schema import Config
from compiler.store import Store, latest
from compiler.store.records import read_sealed, sealed

NOT_OF_THE_VERSION = ("artifacts_dir", "executor", "strict", "registry", "publish", "force", "signing")
"""Settings that change nothing in an artifact: a build with others finds the version that was written before."""
WRITERS = ("compiler.manifest", "compiler.unfinished")
"""Modules that write manifests. They and all that they import decide what a manifest says of the same results."""


def identity(config: Config, outcome: Outcome, memo: Memo) -> str:
    """What a version is the outcome of: equal identities mean that there is nothing new to write."""
    settings = {k: v for k, v in plain(config).items() if k not in NOT_OF_THE_VERSION}  # type: ignore[attr-defined]
    return digest(
        {
            "config": settings,
            "steps": {name: record.key for name, record in outcome.records.items()},
            "left_out": plain(outcome.left_out),
            "package": outcome.results["package"].digest,
            **({"finished_from": outcome.finished_from} if outcome.finished_from else {}),
            "rules": rules(memo),
        }
    )


def rules(memo: Memo) -> str:
    """Return the digest of the source of every module whose words may reach a manifest."""
    return digest(source_closure(WRITERS, memo))


def find(artifacts: Path, store: Store, name: str, memo: Memo) -> Path | None:
    """The intact version whose identity is `name`, or None."""
    try:
        record = read_sealed(_record(store, name))
        if record is None:
            return None
        folder: Path = artifacts / record["version"]
        _, manifest = read_manifest(folder)
        if memo.get("sha256", folder / MANIFEST, file_digest) != record["manifest"]:
            return None
        for file in manifest["files"]:
            if (folder / file["path"]).stat().st_size != file["size_bytes"]:  # hashing another size may take hours
                return None
            if memo.get("sha256", folder / file["path"], file_digest) != file["sha256"]:
                return None
        return folder
    except Exception:  # anything that is not a whole version is none
        return None


def deliver(
    artifacts: Path,
    store: Store,
    config: Config,
    outcome: Outcome,
    memo: Memo,
    assemble: Callable[[], dict[str, Any]],
) -> tuple[Path, dict[str, Any], bool]:
    """The version of what was built: its folder, its manifest, and whether it was written now.

    `assemble` makes the manifest, for the moment at which it is called.
    """
    name = identity(config, outcome, memo)
    known = find(artifacts, store, name, memo)
    if known is None:
        with store.lock(f"version-{name}"):  # two builds of the same thing write one version
            known = find(artifacts, store, name, memo)
            if known is None:
                manifest = assemble()
                while folder_of(artifacts, manifest).exists():  # a damaged version of this very second
                    time.sleep(0.2)
                    manifest = assemble()
                folder = write(artifacts, store, name, manifest, outcome)
                find(artifacts, store, name, memo)  # remembers the digests, so that the next call is quick
                return folder, manifest, True
    latest.restore(store, known.parent)  # it may have been removed, or a process killed before it was made
    return known, json.loads((known / MANIFEST).read_text()), False


def folder_of(artifacts: Path, manifest: dict[str, Any]) -> Path:
    """Where a manifest's version lies."""
    return artifacts.joinpath(manifest["model"], manifest["target"], manifest["version"])


def write(artifacts: Path, store: Store, name: str, manifest: dict[str, Any], outcome: Outcome) -> Path:
    """Writes a version and returns its folder; `latest` follows when it may be delivered.

    Raises:
        CompilerError: no space left, or the folder cannot be written.
    """
    version = folder_of(artifacts, manifest)
    home = version.parent
    source = outcome.results["package"].path
    with explain_os_errors(artifacts):
        make_folder(home)
        with store.work_folder("version") as work:
            temporary = work / version.name
            temporary.mkdir()
            for file in manifest["files"]:
                target = temporary / file["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(source / file["path"], target)
                if file_digest(target) != file["sha256"]:
                    raise IntegrityError(
                        f"the copy of {file['path']} is not what the store holds", fix="check the disk, then run again"
                    )
                target.chmod(0o444)
            text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
            write_atomically(temporary / MANIFEST, text.encode())
            (temporary / MANIFEST).chmod(0o444)
            for path in sorted(temporary.rglob("*"), reverse=True):  # what a folder holds before the folder
                fsync(path)
            fsync(temporary)
            temporary.rename(version)
        fsync(home)
        place = version.relative_to(artifacts).as_posix()
        with store.lock(latest.lock_of(home)):
            latest.record(store, version, manifest["status"])
            store.write(_record(store, name), sealed({"version": place, "manifest": file_digest(version / MANIFEST)}))
            latest.replace(store, home)
    return version


def _record(store: Store, name: str) -> Path:
    return store.root / "versions" / f"{name}.json"
