"""Sending and fetching artifacts, verified on this side: a registry is never taken at its word.

A fetched file is counted and hashed while it comes, and stops at the size that was announced. What a broken transfer
left is gone on with: within one call, and by the next.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compiler.disk import copy, explained, remove_tree
from compiler.errors import ConfigError, IntegrityError, StepError, did_you_mean
from compiler.registries import GO_ON, Broken, Registry, Unless
from compiler.registries.oci import (
    EMPTY,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Image,
    describe,
    digest_of,
    encode,
    parse,
)
from compiler.registries.patience import Patience
from compiler.registries.reference import Reference
from compiler.registries.workers import current, hashed, run_all

MAX_BYTES = 64 << 30
"""Of one artifact, unless the user says otherwise."""

Progress = Callable[[int, int], None]
"""Is told the bytes that are done and those that there are, from any thread."""


def silent(_done: int, _total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Layer:
    """A file to be sent: `source` is its content, or where it lies."""

    name: str
    media_type: str
    source: Path | bytes
    digest: str = ""
    """What it must be, where that is known."""

    @functools.cached_property
    def descriptor(self) -> Descriptor:
        """The whole file is read for it, once; what is sent later is compared with it by who receives it.

        Raises:
            IntegrityError: it is not what it must be.
        """
        found = self._read()
        if self.digest not in ("", found.digest):
            raise IntegrityError(f"{self.name} changed while it was published", fix="build or fetch it again")
        return found

    def _read(self) -> Descriptor:
        if isinstance(self.source, bytes):
            return describe(self.source, self.media_type, self.name)
        with self.source.open("rb") as stream:
            digest = "sha256:" + str(hashed(stream).hexdigest())
        return Descriptor(self.media_type, digest, self.source.stat().st_size, self.name)


@dataclass(frozen=True)
class Sent:
    """What became of an artifact: its manifest's digest, and how many bytes of it the registry lacked."""

    digest: str
    bytes_sent: int
    bytes_in_all: int


def resolve(registry: Registry, reference: Reference) -> Image:
    """The artifact that a reference means, its manifest verified against the digest where one is given.

    Raises:
        ConfigError: there is none, or it is none of ours.
        IntegrityError: the registry gave another manifest than the digest says, or a bad one.
    """
    data = registry.manifest(reference.name)
    if data is None:
        known = registry.tags()
        what = f"there is no {reference.name} in {reference.home}"
        if not known:
            raise ConfigError(what, fix="nothing is published there: check the reference")
        shown = ", ".join(known[-8:])
        raise ConfigError(what + did_you_mean(reference.name, known), fix=f"among its {len(known)} tags are: {shown}")
    if reference.digest is not None and digest_of(data) != reference.digest:
        raise IntegrityError(
            f"{reference.home} gives {digest_of(data)} for the manifest {reference.digest}",
            fix="do not use this registry",
        )
    return parse(data, reference)


def send(
    registry: Registry,
    layers: Sequence[Layer],
    annotations: Mapping[str, str],
    tags: Sequence[str],
    tell: Progress = silent,
    unless: Unless | None = None,
) -> Sent:
    """Sends what the registry lacks, several files at a time; the manifest, and so the tags, come last.

    `unless`: which tags stay where they are, asked directly before each is moved.

    Raises:
        StepError: the registry is gone for too long or refuses something.
        IntegrityError: a file changed meanwhile, or the registry leads elsewhere.
    """
    blobs = run_all([partial(_describe, layer) for layer in layers])
    manifest = encode(blobs, annotations)
    work: dict[str, tuple[Descriptor, Path | bytes]] = {}
    for blob, layer in zip(blobs, layers, strict=True):
        work.setdefault(blob.digest, (blob, layer.source))
    work.setdefault(digest_of(EMPTY), (describe(EMPTY, EMPTY_TYPE), EMPTY))
    meter = Meter(sum(blob.size for blob, _ in work.values()), tell)
    sent = run_all([partial(registry.write, blob, source, (), meter.add) for blob, source in work.values()])
    kept = [blob.size for (blob, _), new in zip(work.values(), sent, strict=True) if new]
    described = describe(manifest, MANIFEST_TYPE)
    registry.write(described, manifest, tags, lambda _count: None, unless)
    return Sent(described.digest, sum(kept), meter.total)


def _describe(layer: Layer) -> Descriptor:
    return layer.descriptor


def fetch(
    registry: Registry,
    image: Image,
    folder: Path,
    seeds: Mapping[str, Path],
    tell: Progress = silent,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Fetches an artifact's layers into `folder`; what lies there of an earlier attempt is used.

    `seeds`: digest -> a file that is here already and may hold it; it is hashed like what comes from the registry.

    Raises:
        IntegrityError: a file is not what the manifest says; nothing of it stays.
        StepError: the registry is gone for too long, or the disk is full; what came so far stays.
    """
    if image.bytes_in_all > max_bytes:
        raise ConfigError(
            f"the artifact has {image.bytes_in_all:,} bytes, more than the {max_bytes:,} that are allowed",
            fix="raise the limit (--max-bytes) if you trust where it comes from",
        )
    there = sum(path.stat().st_size for layer in image.layers if (path := folder / layer.name).is_file())
    if image.bytes_in_all - there > shutil.disk_usage(folder).free:
        raise StepError(
            f"no space left where {folder.parent} lies: the artifact has {image.bytes_in_all:,} bytes",
            fix=GO_ON,
        )
    meter = Meter(image.bytes_in_all, tell)
    run_all([partial(_fetch_one, registry, layer, folder, seeds.get(layer.digest), meter) for layer in image.layers])


def read_small(registry: Registry, blob: Descriptor, limit: int) -> bytes:
    """A blob of at most `limit` bytes, verified, into memory.

    Raises:
        IntegrityError: it is not what its descriptor says, or that is larger.
        StepError: the registry is gone for too long.
    """
    name = blob.name or blob.digest
    if blob.size > limit:
        raise IntegrityError(
            f"{name} has {blob.size:,} bytes, and {limit:,} are allowed", fix="do not use this artifact"
        )
    seen, stream = hashlib.sha256(), io.BytesIO()
    count = _stream(registry, blob, seen, 0, stream, Meter(blob.size, silent))
    if count != blob.size or "sha256:" + seen.hexdigest() != blob.digest:
        raise _unlike(name, blob)
    return stream.getvalue()


class Meter:
    """Adds up what the threads tell."""

    def __init__(self, total: int, tell: Progress) -> None:
        self.total, self._tell = total, tell
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more bytes have gone through (or fewer, where some have to go again).

        Raises:
            Stopped: no more are wanted.
        """
        current().check()
        with self._lock:
            self._done += count
            self._tell(self._done, self.total)


def _fetch_one(registry: Registry, layer: Descriptor, folder: Path, seed: Path | None, meter: Meter) -> None:
    target = folder / layer.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if seed is not None and not target.exists():
            with contextlib.suppress(OSError):
                copy(seed, target)
            current().check()
        had, seen = _start(target, layer)
        meter.add(had)
        right = _complete(registry, layer, target, had, seen, meter)
        if not right and had:  # what was here already was no beginning of it
            target.unlink()
            meter.add(-layer.size)
            right = _complete(registry, layer, target, 0, hashlib.sha256(), meter)
    except OSError as error:
        raise explained(error, folder.parent, GO_ON) from error
    if not right:
        target.unlink(missing_ok=True)
        raise _unlike(layer.name, layer)


def _unlike(name: str, blob: Descriptor) -> IntegrityError:
    return IntegrityError(
        f"{name} does not match its digest {blob.digest}",
        fix="do not use this artifact: what the registry holds is damaged or was altered; publish it again",
    )


def _complete(registry: Registry, layer: Descriptor, target: Path, start: int, seen: Any, meter: Meter) -> bool:
    """Fetches what a file lacks; whether it is what its descriptor says."""
    if start < layer.size or not target.exists():
        with target.open("ab") as stream:
            start = _stream(registry, layer, seen, start, stream, meter)
    return start == layer.size and "sha256:" + str(seen.hexdigest()) == layer.digest


def _start(target: Path, layer: Descriptor) -> tuple[int, Any]:
    """How many bytes are here already, and their hash. A file that cannot be the beginning of the right one goes."""
    if target.is_dir() or not _appendable(target):
        remove_tree(target)
    if not target.is_file() or target.stat().st_size > layer.size:
        target.unlink(missing_ok=True)
        return 0, hashlib.sha256()
    with target.open("rb") as stream:
        seen = hashed(stream)
        count = stream.tell()
    if count == layer.size and "sha256:" + seen.hexdigest() != layer.digest:  # another file's copy or beginning
        target.unlink()
        return 0, hashlib.sha256()
    return count, seen


def _appendable(target: Path) -> bool:
    """Whether a file is not there yet or can be gone on with; one that is read-only is made writable."""
    with contextlib.suppress(OSError):
        if target.is_file():
            target.chmod(0o644)
    return not target.exists() or os.access(target, os.R_OK | os.W_OK)


def _stream(registry: Registry, layer: Descriptor, seen: Any, start: int, stream: Any, meter: Meter) -> int:
    """Appends what comes, until the announced size; how many bytes there are then."""
    patience = Patience(layer.name)
    while True:
        try:
            for piece in _pieces(registry, layer, start):
                start += len(piece)
                if start > layer.size:
                    return start
                seen.update(piece)
                stream.write(piece)
                meter.add(len(piece))
                patience.gained(len(piece))
            if start < layer.size:
                raise Broken("the registry ends it early")
            return start
        except Broken as error:
            patience.wait(error)


def _pieces(registry: Registry, layer: Descriptor, start: int) -> Iterator[bytes]:
    return registry.read(layer, start) if start < layer.size or not layer.size else iter(())
