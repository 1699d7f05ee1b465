"""From a reference to a verified folder: nothing appears under its name before all of it is checked."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.canonical import digest, file_digest, list_files
from compiler.disk import exchange, explain_os_errors, fsync, lock_alone, remove_tree
from compiler.errors import CompilerError, ConfigError, IntegrityError
from compiler.registries import GO_ON, Registry, connect, seen
from compiler.registries.oci import Descriptor, Image, digest_of, parse
from compiler.registries.reference import Reference
from compiler.registries.transfer import MAX_BYTES, Progress, fetch, resolve, silent
from compiler.runtime.trust import Policy, Trust, check, demand
from compiler.runtime.verify import MANIFEST, SIGNATURE, read_manifest
from compiler.runtime.verify import VERSION as VERSION_NAME

logger = logging.getLogger(__name__)
REPORT = "report.html"
"""Travels with the artifact, for people: it is no part of what a device gets."""
CREATED, VERSION = "org.opencontainers.image.created", "org.opencontainers.image.version"
ANNOTATION = "target-model-compiler."
"""What our own annotations begin with."""
FORCED = ANNOTATION + "forced"


@dataclass(frozen=True)
class Pulled:
    """An artifact that has arrived. `digest` is its manifest's in the registry; `notes` are for the user."""

    folder: Path
    digest: str
    trust: Trust
    notes: list[str] = field(default_factory=list)
    new: bool = True
    """False where the folder held it already."""

    @property
    def manifest(self) -> dict[str, Any]:
        """The artifact's own manifest."""
        return self.trust.manifest


def pull(
    reference: Reference,
    folder: Path,
    policy: Policy | None = None,
    tell: Progress = silent,
    max_bytes: int = MAX_BYTES,
) -> Pulled:
    """Fetches what `reference` means into `folder`, which is not there yet, empty, or holds an artifact to be replaced.

    Raises:
        ConfigError: there is no such artifact, or the folder holds something else.
        IntegrityError: something does not match; nothing is left behind, and the folder is as it was.
        StepError: the registry cannot be reached, or the disk is full; the next call goes on where this one was.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - `resolve` would follow a link that is to be replaced
    _check_place(folder)
    installed = _installed(folder)
    registry = connect(reference)
    image = resolve(registry, reference)
    notes = _moved(registry, reference, image)
    with explain_os_errors(folder, GO_ON), _alone(folder) as partial:
        installed = _installed(folder)  # as another process may have left it meanwhile
        new = installed is None or not _holds(folder, image)
        try:
            if new:
                _fetch(registry, image, partial, folder, installed, tell, max_bytes)
            trust = check(partial if new else folder, policy, installed if new else None)
            _agree(reference, image, trust.manifest)
        except (IntegrityError, ConfigError):
            remove_tree(partial)
            raise
        if new:
            _settle(partial, folder)
        remove_tree(partial)
    _remember(reference, image, trust.manifest)
    if trust.manifest.get("forced"):
        notes = [*notes, f"it was published by force: its status is {_plain(trust.manifest['status'])}"]
    return Pulled(folder, image.digest, trust, notes, new)


def cached(reference: Reference, policy: Policy | None = None, tell: Progress = silent) -> Pulled:
    """The artifact in the user's cache, under its digest, fetched if it is not there. A pinned one needs no registry.

    Raises: as `pull`.
    """
    home = _cache()
    refused: CompilerError | None = None
    if reference.digest is not None:
        known = home / reference.digest.removeprefix("sha256:")
        if (known / MANIFEST).is_file():
            try:
                return Pulled(known, reference.digest, check(known, policy), new=False)
            except IntegrityError as error:  # by the policy, or it has rotted: the registry's own may be better
                refused = error
    registry = connect(reference)
    try:
        image = resolve(registry, reference)
    except CompilerError as error:
        raise refused or error from None
    before = seen.last(reference)
    pulled = pull(reference.pinned(image.digest), home / image.digest.removeprefix("sha256:"), policy, tell)
    _agree(reference, image, pulled.manifest)
    if before is not None and reference.digest is None:
        demand(pulled.manifest, policy, before)
    notes = [*_moved(registry, reference, image), *pulled.notes]
    for note in notes:
        logger.warning("%s", note)  # nobody else tells whoever loads it
    _remember(reference, image, pulled.manifest)
    return Pulled(pulled.folder, pulled.digest, pulled.trust, notes, pulled.new)


def versions(registry: Registry) -> list[dict[str, Any]]:
    """What a repository holds, newest first: a row a manifest, with the tags that lead to it. Nothing is fetched but
    manifests, so it is what the registry says; `pull` checks it.

    Raises:
        IntegrityError: a manifest is malformed.
    """
    rows: dict[str, dict[str, Any]] = {}
    for tag in registry.tags():
        data = registry.manifest(tag)
        if data is None:
            continue
        if (digest := digest_of(data)) not in rows:
            try:
                image = parse(data, tag)
            except ConfigError:  # some other tool's
                continue
            except IntegrityError as error:
                logger.warning("%s is left out: %s", tag, _plain(error.what))
                continue
            said = image.annotations
            rows[digest] = {
                "version": said.get(VERSION, ""),
                "created": said.get(CREATED, ""),
                **{key: said.get(ANNOTATION + key, "") for key in ("model", "target", "status", "selected")},
                "forced": FORCED in said,
                "signed": image.layer(SIGNATURE) is not None,
                "bytes": image.bytes_in_all,
                "digest": digest,
                "tags": [],
            }
        rows[digest]["tags"].append(tag)
    return sorted(rows.values(), key=lambda row: (row["created"], row["version"], row["digest"]), reverse=True)


def _moved(registry: Registry, reference: Reference, image: Image) -> list[str]:
    """What there is to say about the tag: it is for reading, and only a digest stays what it is."""
    if reference.tag is None and reference.digest is not None:
        return []
    if reference.digest is not None:
        data = registry.manifest(reference.name if reference.tag is None else reference.tag)
        if data is None:
            return [f"the tag {reference.tag} is gone; the pinned digest was taken"]
        now = digest_of(data)
        if now == image.digest:
            return []
        return [f"the tag {reference.tag} has moved to {now}; the pinned {image.digest} was taken"]
    before = seen.last(reference)
    if before is None or before["digest"] == image.digest:
        return []
    version = image.annotations.get(VERSION, "")
    return [
        f"{reference.name} has moved since it was last pulled: from {_plain(before['version'])} ({before['digest']}) "
        f"to {_plain(version)} ({image.digest})"
    ]


def _remember(reference: Reference, image: Image, manifest: Mapping[str, Any]) -> None:
    if reference.digest is None:
        seen.remember(reference, image.digest, manifest)


def _check_place(folder: Path) -> None:
    """Raises ConfigError where a folder cannot be exchanged for another."""
    what = (
        "is a link" if folder.is_symlink()
        else "is where something is mounted" if folder.is_mount()
        else "is the working folder, which would be gone" if folder.is_dir() and folder.samefile(".")
        else ""
    )  # fmt: skip
    if what:
        raise ConfigError(f"{folder} {what}", fix="name the folder itself, or one in it")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The folder beside `folder` that is fetched into, for one process at a time; kept for the next attempt."""
    partial = _partial(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.fstat(handle)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:  # whoever made it could write to it later
                raise ConfigError(f"{partial} is somebody else's", fix="remove it, or pull to another place")
            lock_alone(handle, f"another pull into {folder}")
            if partial.exists() and found.st_ino == partial.stat().st_ino:  # nobody has moved it meanwhile
                yield partial
                return
        finally:
            os.close(handle)


def _partial(folder: Path) -> Path:
    """Named like the folder, as far as the file system has room for a longer name."""
    name = folder.name if len(folder.name.encode()) < 200 else digest(folder.name)
    return folder.with_name(f".{name}.partial")


def _installed(folder: Path) -> dict[str, Any] | None:
    """The manifest of the artifact that lies there, None where the place is free.

    Raises:
        ConfigError: something else lies there.
    """
    if not folder.exists():
        return None
    if folder.is_dir():
        if not any(folder.iterdir()):
            return None
        with contextlib.suppress(CompilerError):
            return read_manifest(folder)[1]
    raise ConfigError(
        f"{folder} holds something else than an artifact",
        fix="give a folder that is not there yet, or that was pulled into",
    )


def _wanted(image: Image) -> tuple[Descriptor, ...]:
    return tuple(layer for layer in image.layers if layer.name != REPORT)


def _holds(folder: Path, image: Image) -> bool:
    """Whether the folder has the very files of this artifact, and nothing else."""
    try:
        there = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    except ValueError:
        return False
    wanted = {layer.name: layer for layer in _wanted(image)}
    return set(there) == set(wanted) and all(
        there[name].stat().st_size == layer.size and f"sha256:{file_digest(there[name])}" == layer.digest
        for name, layer in wanted.items()
    )


def _fetch(
    registry: Registry,
    image: Image,
    partial: Path,
    folder: Path,
    installed: Mapping[str, Any] | None,
    tell: Progress,
    max_bytes: int,
) -> None:
    layers = _wanted(image)
    if image.layer(MANIFEST) is None:
        raise IntegrityError(f"the artifact has no {MANIFEST}", fix="do not use it; publish it again")
    names = {layer.name for layer in layers}
    for path in [p for p in sorted(partial.rglob("*"), reverse=True) if p.is_symlink() or not p.is_dir()]:
        if path.is_symlink() or not path.is_file() or path.relative_to(partial).as_posix() not in names:
            path.unlink()  # of another artifact, whose pull was broken off
    for path in [p for p in sorted(partial.rglob("*"), reverse=True) if p.is_dir()]:
        with contextlib.suppress(OSError):  # it has files in it
            path.rmdir()
    files = installed["files"] if installed is not None else []
    seeds = {f"sha256:{f['sha256']}": folder / f["path"] for f in files}
    fetch(registry, Image(image.digest, image.size, layers, image.annotations), partial, seeds, tell, max_bytes)


def _agree(reference: Reference, image: Image, manifest: Mapping[str, Any]) -> None:
    """What the registry's manifest says of the artifact must be what the artifact says.

    Raises:
        IntegrityError: it is not, or a version's tag holds another version.
    """
    said = {
        VERSION: manifest["version"],
        CREATED: manifest["created"],
        **{ANNOTATION + key: manifest[key] for key in ("model", "target", "status", "digest")},
        FORCED: "true" if manifest.get("forced") else None,
    }
    for key, value in said.items():
        if image.annotations.get(key) != value:
            raise IntegrityError(
                f"the registry says {key} = {_plain(image.annotations.get(key, 'nothing'))}, the artifact {value}",
                fix="do not use this artifact; publish it again",
            )
    tag = reference.tag or ""
    if reference.digest is None and tag.startswith("content-") and tag != content_tag(manifest):
        raise IntegrityError(f"the tag {tag} holds another content", fix="somebody moved it: do not use it")
    if VERSION_NAME.fullmatch(tag) and reference.digest is None and tag != manifest["version"]:
        raise IntegrityError(
            f"the tag {tag} holds the version {_plain(str(manifest['version']))}",
            fix="somebody moved it: do not use it",
        )


def content_tag(manifest: Mapping[str, Any]) -> str:
    """The tag that names an artifact's content."""
    return f"content-{manifest['digest'][:16]}"


def _settle(partial: Path, folder: Path) -> None:
    """The checked files get their name; what was there is gone after, or stays if this fails."""
    for path in list_files(partial):
        path.chmod(0o444)
        fsync(path)
    for path in (*(p for p in partial.rglob("*") if p.is_dir()), partial):
        fsync(path)
    partial.chmod(folder.stat().st_mode & 0o777 if folder.is_dir() else 0o777 & ~_umask())
    if folder.is_dir():
        exchange(partial, folder)
    else:
        partial.rename(folder)
    fsync(folder.parent)


def _umask() -> int:
    """This process's: the kernel tells it, so that it need not be changed to be known."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return 0o022


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "target-model-compiler" / "artifacts"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
