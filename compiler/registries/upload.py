"""One blob on its way to an OCI registry, in chunks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from compiler.canonical import CHUNK
from compiler.errors import IntegrityError, StepError
from compiler.registries import Broken, Tell
from compiler.registries.http import PASSING, Answer
from compiler.registries.oci import Descriptor
from compiler.registries.patience import Patience
from compiler.registries.timed import ANSWER_S

if TYPE_CHECKING:
    from compiler.registries.remote import Remote

UPLOAD_CHUNK = 32 << 20
"""Of one PATCH: what a broken connection costs at most."""
MAX_CHUNK = 1 << 30
MAX_BEGINNINGS = 10
"""How often a registry may lose all that it confirmed of one blob."""
HASHED_PER_S = 50 << 20
"""What a slow registry reads of a blob when it is complete, before it answers."""
NUMBER = re.compile(r"[0-9]{1,18}")
RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class Upload:
    """One blob on its way to a registry, in chunks: what is lost with a connection is at most the chunk under way."""

    def __init__(self, remote: Remote, host: str, blob: Descriptor, source: Path | bytes, tell: Tell) -> None:
        self._remote, self._host, self._blob, self._source, self._tell = remote, host, blob, source, tell
        self._location: str | None = None
        self._chunk = UPLOAD_CHUNK
        self._there = self._told = self._best = self._beginnings = 0

    def run(self) -> None:
        """Sends the blob.

        Raises:
            StepError: the registry is gone for too long, or refuses it.
            IntegrityError: it wants the bytes sent to another host.
        """
        patience = Patience(self._host)
        sure = True  # that the registry holds what we think it holds
        while True:
            try:
                if not sure and self._look():
                    return
                sure = True
                if self._step():
                    return
            except Broken as error:
                sure = False
                patience.gained(self._gain())
                patience.wait(error)
            else:
                patience.gained(self._gain())

    def _gain(self) -> int:
        """Bytes that the registry has confirmed beyond all before: to begin an upload, or to lose it, is nothing."""
        gain = max(0, self._there - self._best)
        self._best += gain
        return gain

    def _step(self) -> bool:
        """The next request; whether the blob is complete."""
        if self._location is None:
            return self._begin()
        left = self._blob.size - self._there
        if left > self._chunk:
            self._send(self._chunk)
            return False
        self._finish(left)
        return True

    def _begin(self) -> bool:
        with self._remote.ask("POST", "blobs/uploads/", {"Content-Length": "0"}) as answer:
            self._remote.expect(answer, 202, 201)
            answer.text()
            if answer.status == 201:
                return True
            self._move(answer)
            least = answer.headers.get("OCI-Chunk-Min-Length") or ""
            self._chunk = min(max(UPLOAD_CHUNK, int(least) if NUMBER.fullmatch(least) else 0), MAX_CHUNK)
            self._set(0)
            self._best = 0
            self._beginnings += 1
        if self._beginnings > MAX_BEGINNINGS:
            raise StepError(
                f"{self._host} has lost {self._blob.name or 'a file'} {MAX_BEGINNINGS} times while it was sent",
                fix="see what the registry's own log says",
            )
        return False

    def _send(self, count: int) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(count),
            "Content-Range": f"{self._there}-{self._there + count - 1}",
        }
        with self._remote.ask("PATCH", self._location or "", headers, lambda: self._bytes(count)) as answer:
            if answer.status in (404, 416):  # the registry lost it, or holds another part than we think
                raise Broken("the registry lost the thread")
            self._remote.expect(answer, 202)
            answer.text()
            self._move(answer)
            self._set(self._there + count)

    def _finish(self, count: int) -> None:
        location = self._location or ""
        path = f"{location}{'&' if '?' in location else '?'}digest={quote(self._blob.digest, safe='')}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(count)}
        if count and self._there:
            headers["Content-Range"] = f"{self._there}-{self._there + count - 1}"
        answer_s = ANSWER_S + self._blob.size / HASHED_PER_S
        with self._remote.ask("PUT", path, headers, lambda: self._bytes(count), answer_s=answer_s) as answer:
            if answer.status in (404, 416):
                raise Broken("the registry lost the thread")
            self._remote.expect(answer, 201, 204)
            answer.text()
            self._set(self._blob.size)

    def _look(self) -> bool:
        """Asks how much of the blob the registry has; begins anew where it knows nothing of it. True if it is there."""
        if self._remote.has(self._blob):  # the answer to the last request was lost, not the request
            self._set(self._blob.size)
            return True
        if self._location is None:
            return False
        with self._remote.ask("GET", self._location) as answer:
            if answer.status in PASSING:
                raise answer.busy()
            found = RANGE.fullmatch(answer.headers.get("Range") or "")
            there = int(found[1]) + 1 if found and found[1] != "0" else 0  # some say 0-0 for nothing
            if answer.status != 204 or there > self._blob.size:
                self._location, there = None, 0
            else:
                self._move(answer)
            self._set(there)
        return False

    def _move(self, answer: Answer) -> None:
        """Takes the next address: on the registry itself, or not at all."""
        if not answer.headers.get("Location"):
            return
        home = answer.origin
        found, path = answer.leads_to()
        behind_tls = found.host == home.host and home.scheme == "https" and found.scheme == "http"  # a proxy ends TLS
        if found != home and not behind_tls:
            raise IntegrityError(
                f"{home.netloc} wants the artifact sent to {found.netloc}",
                fix="do not use this registry for publishing",
            )
        self._location = path

    def _set(self, there: int) -> None:
        self._there = there
        self._tell(there - self._told)
        self._told = there

    def _bytes(self, count: int) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield self._source[self._there : self._there + count]
            return
        with self._source.open("rb") as stream:
            stream.seek(self._there)
            while count:
                piece = stream.read(min(CHUNK, count))
                if not piece:
                    raise StepError(f"{self._source.name} became shorter while it was sent", fix="publish it again")
                count -= len(piece)
                self._tell(len(piece))
                self._told += len(piece)
                yield piece
