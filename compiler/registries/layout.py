"""A repository in a folder: an OCI image layout, which needs no server and which other tools read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from compiler.disk import explain_os_errors, fsync, lock_alone, make_folder, write_atomically
from compiler.errors import ConfigError, IntegrityError
from compiler.foreign_json import parse_json
from compiler.registries import GO_ON, Tell, Unless
from compiler.registries.oci import (
    ARTIFACT_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    digest_of,
)
from compiler.registries.reference import DIGEST, TAG
from compiler.registries.workers import hashed, pieces

MARK = "oci-layout"
VERSION = "1.0.0"
INDEX = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"
WRITING = ".writing-"
OWN = (MARK, INDEX, "blobs")
MAX_INDEX_BYTES = 64 << 20


class Layout:
    """See `compiler.registries.Registry`. Several processes may write to one folder at the same time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._swept = False

    def manifest(self, name: str) -> bytes | None:
        """See `Registry`."""
        with self._explained():
            size = None
            if DIGEST.fullmatch(name):
                digest = name
            else:
                entry = self._tagged().get(name)
                if entry is None:
                    return None
                digest, size = entry["digest"], entry.get("size")
            try:
                with self._open(f"blobs/sha256/{digest.removeprefix('sha256:')}") as stream:
                    data = stream.read(MAX_MANIFEST_BYTES + 1)
            except FileNotFoundError:
                return None
        if len(data) <= MAX_MANIFEST_BYTES and (digest_of(data) != digest or size not in (None, len(data))):
            raise IntegrityError(
                f"the manifest of {self._root}:{name} does not match its digest {digest}",
                fix="do not use this layout: it is damaged or was altered; publish the artifact again",
            )
        return data

    def read(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """See `Registry`."""
        lost = "publish the artifact again"
        with self._explained():
            try:
                stream = self._open(self._place(blob))
            except FileNotFoundError:
                raise IntegrityError(f"{self._root} lacks {blob.name or 'a blob'} ({blob.digest})", fix=lost) from None
            with stream:
                size = os.fstat(stream.fileno()).st_size
                if size < blob.size:
                    raise IntegrityError(
                        f"{blob.name or 'a blob'} does not match its digest {blob.digest}: {self._root} holds "
                        f"{size:,} of its {blob.size:,} bytes",
                        fix=lost,
                    )
                stream.seek(start)
                yield from pieces(stream)

    def write(
        self, blob: Descriptor, source: Path | bytes, tags: Sequence[str], tell: Tell, unless: Unless | None = None
    ) -> bool:
        """See `Registry`."""
        with self._explained():
            self._begin()
            there = self._is_there(blob)
            if there:
                tell(blob.size)
            else:
                self._store(blob, source, tell)
            if blob.media_type == MANIFEST_TYPE:
                self._tag(blob, tags, unless)
        return not there

    def tags(self) -> list[str]:
        """See `Registry`."""
        with self._explained():
            return sorted(self._tagged())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        with explain_os_errors(self._root, GO_ON):
            yield

    # -- reading -----------------------------------------------------------------------------------------------------

    def _open(self, place: str) -> BufferedReader:
        """A regular file of the layout: what a link in it leads to is none of it."""
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in place.split("/")[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            handle = os.open(place.rpartition("/")[2], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and self._root.is_dir():
                raise IntegrityError(f"{self._root}/{place} is a link", fix="do not use this layout") from None
            raise
        finally:
            os.close(at)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise IntegrityError(f"{self._root}/{place} is not a regular file", fix="do not use this layout")
        return os.fdopen(handle, "rb")

    def _index(self) -> dict[str, Any]:
        if not self._root.exists():
            return {"manifests": []}
        try:
            with self._open(MARK) as stream:
                mark = parse_json(stream.read(1 << 16))
            with self._open(INDEX) as stream:
                data = stream.read(MAX_INDEX_BYTES + 1)
            if mark["imageLayoutVersion"] != VERSION or len(data) > MAX_INDEX_BYTES:
                raise ValueError("another version, or too large")
            index = parse_json(data)
            for entry in index["manifests"]:
                if not isinstance(entry["digest"], str) or not isinstance(entry.get("annotations", {}), dict):
                    raise TypeError("an entry")
        except FileNotFoundError:
            if any(path.name not in OWN and not path.name.startswith(".") for path in self._root.iterdir()):
                raise ConfigError(
                    f"{self._root} is no OCI image layout", fix="name a folder that `publish` wrote, or a new one"
                ) from None
            return {"manifests": []}  # empty, or about to become one
        except NotADirectoryError:
            raise ConfigError(
                f"{self._root} is no folder", fix="name a folder that `publish` wrote, or a new one"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{self._root}/{INDEX} is no index of an OCI image layout ({error!r})"[:300],
                fix="do not use this layout",
            ) from None
        found: dict[str, Any] = index
        return found

    def _tagged(self) -> dict[str, dict[str, Any]]:
        """Tag -> the entry of the index."""
        found = {}
        for entry in self._index()["manifests"]:
            tag = entry.get("annotations", {}).get(REF_NAME)
            if isinstance(tag, str) and TAG.fullmatch(tag) and DIGEST.fullmatch(entry["digest"]):
                found[tag] = entry
        return found

    @staticmethod
    def _place(blob: Descriptor) -> str:
        return f"blobs/sha256/{blob.digest.removeprefix('sha256:')}"

    # -- writing -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Makes the folder a layout, if it is empty or none yet."""
        self._index()  # refuses a folder of other things
        if (self._root / MARK).exists():
            self._sweep()
            return
        make_folder(self._root / "blobs" / "sha256")
        with self._alone():
            if not (self._root / INDEX).exists():
                self._write_index([])
            if not (self._root / MARK).exists():  # last: with it, the folder is one
                write_atomically(self._root / MARK, json.dumps({"imageLayoutVersion": VERSION}).encode())

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The index is changed by one process at a time; the folder itself is what is locked: no file is left in it."""
        handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lock_alone(handle, f"another process that publishes to {self._root}")
            yield
        finally:
            os.close(handle)

    def _is_there(self, blob: Descriptor) -> bool:
        """Whether the blob is there, whole: in a folder nobody else looks after that."""
        try:
            with self._open(self._place(blob)) as stream:
                if os.fstat(stream.fileno()).st_size != blob.size:
                    return False
                return "sha256:" + str(hashed(stream).hexdigest()) == blob.digest
        except FileNotFoundError:
            return False

    def _sweep(self) -> None:
        """Removes what writers left that were killed: a living one holds a lock on its file."""
        if self._swept:
            return
        self._swept = True
        for left in (self._root / "blobs" / "sha256").glob(f"{WRITING}*"):
            try:
                handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
            finally:
                os.close(handle)

    def _store(self, blob: Descriptor, source: Path | bytes, tell: Tell) -> None:
        folder = self._root / "blobs" / "sha256"
        seen = hashlib.sha256()
        ours, temporary = _locked(folder)
        try:
            with ours:
                for piece in _pieces(source):
                    seen.update(piece)
                    ours.write(piece)
                    tell(len(piece))
                if "sha256:" + seen.hexdigest() != blob.digest:
                    raise IntegrityError(
                        f"{blob.name or 'a file'} changed while it was published", fix="publish it again"
                    )
                ours.flush()
                os.fchmod(ours.fileno(), 0o444)
                os.fsync(ours.fileno())
                temporary.replace(self._root / self._place(blob))
            fsync(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _tag(self, blob: Descriptor, tags: Sequence[str], unless: Unless | None) -> None:
        with self._alone():
            moved = [tag for tag in tags if unless is None or not self._stays(tag, unless)]
            kept = [e for e in self._index()["manifests"] if e.get("annotations", {}).get(REF_NAME) not in moved]
            made = [
                {
                    "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE, "digest": blob.digest, "size": blob.size,
                    "annotations": {REF_NAME: tag},
                }
                for tag in moved
            ]  # fmt: skip
            self._write_index([*kept, *made])
            for left in self._root.glob(f".{INDEX}.*"):  # of a writer that was killed: this one is alone
                left.unlink(missing_ok=True)

    def _stays(self, tag: str, unless: Unless) -> bool:
        try:
            held = self.manifest(tag)
        except IntegrityError:  # damaged: there is nothing to be kept
            return False
        return held is not None and unless(tag, held)

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        entries = sorted(entries, key=lambda e: (str(e.get("annotations", {}).get(REF_NAME)), e["digest"]))
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        write_atomically(self._root / INDEX, json.dumps(index, indent=1).encode())


def _locked(folder: Path) -> tuple[BinaryIO, Path]:
    """A new file with a lock on it, which says that its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=WRITING, dir=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # nobody swept it away before it was locked
            return os.fdopen(handle, "wb"), Path(name)
        os.close(handle)


def _pieces(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        yield from pieces(stream)
