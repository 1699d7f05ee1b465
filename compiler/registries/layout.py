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
from typing import Any

from compiler.canonical import CHUNK
from compiler.disk import explained, fsync, make_folder, write_atomically
from compiler.errors import ConfigError, IntegrityError
from compiler.foreign_json import parse_json
from compiler.registries import Tell
from compiler.registries.oci import ARTIFACT_TYPE, INDEX_TYPE, MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor
from compiler.registries.reference import DIGEST, TAG

MARK = "oci-layout"
VERSION = "1.0.0"
INDEX = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"
OWN = (MARK, INDEX, "blobs")
MAX_INDEX_BYTES = 64 << 20


class Layout:
    """See `compiler.registries.Registry`. Several processes may write to one folder at the same time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def manifest(self, name: str) -> bytes | None:
        """See `Registry`."""
        digest = name if DIGEST.fullmatch(name) else self._tagged().get(name)
        if digest is None:
            return None
        try:
            with self._open(f"blobs/sha256/{digest.removeprefix('sha256:')}") as stream:
                return stream.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            return None

    def read(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """See `Registry`."""
        try:
            with self._open(self._place(blob)) as stream:
                stream.seek(start)
                while piece := stream.read(CHUNK):
                    yield piece
        except FileNotFoundError:
            raise IntegrityError(
                f"{self._root} lacks {blob.name or 'a blob'} ({blob.digest})", fix="publish the artifact again"
            ) from None

    def write(self, blob: Descriptor, source: Path | bytes, tags: Sequence[str], tell: Tell) -> bool:
        """See `Registry`."""
        try:
            self._begin()
            there = self._is_there(blob)
            if there:
                tell(blob.size)
            else:
                self._store(blob, source, tell)
            if blob.media_type == MANIFEST_TYPE:
                self._tag(blob, tags)
        except OSError as error:
            raise explained(error, self._root) from error
        return not there

    def tags(self) -> list[str]:
        """See `Registry`."""
        return sorted(self._tagged())

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

    def _tagged(self) -> dict[str, str]:
        found = {}
        for entry in self._index()["manifests"]:
            tag = entry.get("annotations", {}).get(REF_NAME)
            if isinstance(tag, str) and TAG.fullmatch(tag) and DIGEST.fullmatch(entry["digest"]):
                found[tag] = entry["digest"]
        return found

    @staticmethod
    def _place(blob: Descriptor) -> str:
        return f"blobs/sha256/{blob.digest.removeprefix('sha256:')}"

    # -- writing -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Makes the folder a layout, if it is empty or none yet."""
        self._index()  # refuses a folder of other things
        if (self._root / MARK).exists():
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
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _is_there(self, blob: Descriptor) -> bool:
        """Whether the blob is there, whole: in a folder nobody else looks after that."""
        try:
            with self._open(self._place(blob)) as stream:
                if os.fstat(stream.fileno()).st_size != blob.size:
                    return False
                return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest() == blob.digest
        except FileNotFoundError:
            return False

    def _store(self, blob: Descriptor, source: Path | bytes, tell: Tell) -> None:
        folder = self._root / "blobs" / "sha256"
        seen = hashlib.sha256()
        handle, temporary = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with os.fdopen(handle, "wb") as ours:
                for piece in _pieces(source):
                    seen.update(piece)
                    ours.write(piece)
                    tell(len(piece))
                ours.flush()
                os.fsync(ours.fileno())
            if "sha256:" + seen.hexdigest() != blob.digest:
                raise IntegrityError(f"{blob.name or 'a file'} changed while it was published", fix="publish it again")
            os.chmod(temporary, 0o444)  # noqa: PTH101 - mkstemp gives a string
            Path(temporary).replace(self._root / self._place(blob))
            fsync(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
            raise

    def _tag(self, blob: Descriptor, tags: Sequence[str]) -> None:
        with self._alone():
            kept = [e for e in self._index()["manifests"] if e.get("annotations", {}).get(REF_NAME) not in tags]
            made = [
                {
                    "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE, "digest": blob.digest, "size": blob.size,
                    "annotations": {REF_NAME: tag},
                }
                for tag in tags
            ]  # fmt: skip
            self._write_index([*kept, *made])

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        entries = sorted(entries, key=lambda e: (str(e.get("annotations", {}).get(REF_NAME)), e["digest"]))
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        write_atomically(self._root / INDEX, json.dumps(index, indent=1).encode())


def _pieces(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while piece := stream.read(CHUNK):
            yield piece
