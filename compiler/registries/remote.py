"""A repository of an OCI registry, by the OCI distribution specification 1.1."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urljoin

from compiler.canonical import CHUNK
from compiler.errors import IntegrityError, StepError
from compiler.registries import Broken, Tell, addresses
from compiler.registries.http import Answer, Http, Origin, origin_of
from compiler.registries.oci import INDEX_TYPE, MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor
from compiler.registries.patience import Patience
from compiler.registries.reference import TAG
from compiler.registries.sign_in import SignIn, refused

UPLOAD_CHUNK = 32 << 20
"""Of one PATCH: what a broken connection costs at most."""
MAX_CHUNK = 1 << 30
MAX_REDIRECTS = 5
MAX_TAGS = 100_000
PAGE = 1000

T = TypeVar("T")


class Remote:
    """See `compiler.registries.Registry`."""

    def __init__(self, host: str, repository: str, writing: bool) -> None:
        self._host = host
        self._http = Http(host)
        self._base = f"/v2/{repository}/"
        self._scope = f"repository:{repository}:{'pull,push' if writing else 'pull'}"
        self._known: tuple[Origin, SignIn] | None = None

    # -- the four calls ----------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> bytes | None:
        """See `Registry`. An index is fetched too, so that it can be said that it is one."""

        def ask() -> bytes | None:
            accepted = {
                "Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}, application/vnd.docker.distribution.manifest.v2+json"
            }
            with self._ask("GET", f"manifests/{name}", accepted, follow=True) as answer:
                if answer.status == 404:
                    return None
                self._expect(answer, 200)
                return answer.text(MAX_MANIFEST_BYTES)

        return self._patiently(ask)

    def read(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """See `Registry`."""
        wanted = {"Range": f"bytes={start}-"} if start else {}
        with self._ask("GET", f"blobs/{blob.digest}", wanted, follow=True) as answer:
            if answer.status in (429, 500, 502, 503, 504):
                raise Broken(f"HTTP {answer.status}")
            skip = start if answer.status == 200 else 0  # a server that gives no parts
            self._expect(answer, 206 if start and not skip else 200)
            for piece in answer.pieces():
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield piece[skip:]
                skip = 0

    def write(self, blob: Descriptor, source: Path | bytes, tags: Sequence[str], tell: Tell) -> bool:
        """See `Registry`. A blob that is there already is not sent again; one half sent is gone on with."""
        if blob.media_type == MANIFEST_TYPE:
            assert isinstance(source, bytes)
            for tag in tags:
                self._patiently(functools.partial(self._put_manifest, tag, source))
            return True
        if self._patiently(lambda: self._has(blob)):
            tell(blob.size)
            return False
        Upload(self, blob, source, tell).run()
        return True

    def tags(self) -> list[str]:
        """See `Registry`."""
        found: set[str] = set()
        path: str | None = f"tags/list?n={PAGE}"
        pages = 0
        while path is not None and len(found) < MAX_TAGS and pages < MAX_TAGS // PAGE:
            more, path = self._patiently(functools.partial(self._page, path))
            found.update(more)
            pages += 1
        return sorted(found)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | Callable[[], Iterable[bytes]] | None = None,
        follow: bool = False,
    ) -> Answer:
        """One request to the registry, signed in where it asks for it; `path` is below the repository, or absolute."""
        home, sign_in = self._home()
        path = path if path.startswith("/") else self._base + path
        origin = home
        for _ in range(MAX_REDIRECTS + 3):
            shown = sign_in.header(origin)
            answer = self._http.ask(
                method, origin, path, {**(headers or {}), **shown}, body() if callable(body) else body
            )
            if answer.status == 401 and origin == home:
                with answer:
                    answer.text()
                    if not sign_in.answer(answer, shown):
                        raise refused(home, 401, bool(shown))
                continue
            if answer.status == 403 and origin == home:
                with answer:
                    raise refused(home, 403, bool(shown))
            if answer.status in (301, 302, 303, 307, 308) and follow:
                with answer:
                    origin, path = self._redirected(origin, path, answer.headers.get("Location") or "")
                continue
            return answer
        raise IntegrityError(f"{home.netloc} leads on and on", fix="do not use this registry")

    def _redirected(self, origin: Origin, path: str, location: str) -> tuple[Origin, str]:
        found, rest = origin_of(urljoin(f"{origin.scheme}://{origin.netloc}{path}", location))
        if origin.scheme == "https" and found.scheme == "http":
            raise IntegrityError(f"{origin.netloc} leads away from TLS", fix="do not use this registry")
        return found, rest

    def _home(self) -> tuple[Origin, SignIn]:
        """The registry's origin: with TLS, but where this machine's own registry speaks without."""
        if self._known is None:
            origin, _ = origin_of(f"https://{self._host}/")
            if addresses.is_loopback(origin.host) and not self._patiently(lambda: self._speaks_tls(origin)):
                origin, _ = origin_of(f"http://{self._host}/")
            self._known = origin, SignIn(self._http, origin, self._scope)
        return self._known

    def _speaks_tls(self, origin: Origin) -> bool:
        try:
            with self._http.ask("GET", origin, "/v2/", {}, None) as answer:
                answer.text()
            return True
        except Broken as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                raise
            return False

    def _patiently(self, work: Callable[[], T]) -> T:
        """Does what may be done twice, again and again while the registry is not there."""
        patience = Patience(self._host)
        while True:
            try:
                return work()
            except Broken as error:
                patience.wait(error)

    def _expect(self, answer: Answer, *statuses: int) -> None:
        """Raises Broken for what may pass, StepError with the registry's own words for what will not."""
        if answer.status in statuses:
            return
        if answer.status in (408, 429, 500, 502, 503, 504):
            raise Broken(f"HTTP {answer.status}")
        record = answer.record()
        errors = record.get("errors") if isinstance(record, dict) else None
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        words = "".join(c for c in f"{first.get('code', '')} {first.get('message', '')}" if c.isprintable())[
            :200
        ].strip()
        raise StepError(
            f"{answer.origin.netloc} answers HTTP {answer.status}{': ' + words if words else ''}",
            fix="see what the registry's own log says",
        )

    # -- pieces of the calls -------------------------------------------------------------------------------------------

    def _has(self, blob: Descriptor) -> bool:
        with self._ask("HEAD", f"blobs/{blob.digest}", follow=True) as answer:
            if answer.status == 404:
                return False
            self._expect(answer, 200)
            return answer.headers.get("Content-Length") in (None, str(blob.size))

    def _put_manifest(self, name: str, data: bytes) -> None:
        with self._ask("PUT", f"manifests/{name}", {"Content-Type": MANIFEST_TYPE}, data) as answer:
            self._expect(answer, 201)
            answer.text()

    def _page(self, path: str) -> tuple[list[str], str | None]:
        with self._ask("GET", path) as answer:
            if answer.status == 404:
                return [], None
            self._expect(answer, 200)
            record = answer.record()
            names = record.get("tags") if isinstance(record, dict) else None
            good = [name for name in names or [] if isinstance(name, str) and TAG.fullmatch(name)]
            link = answer.headers.get("Link") or ""
        if 'rel="next"' not in link or not good:
            return good, None
        return good, f"tags/list?n={PAGE}&last={quote(good[-1])}"  # where the page ended, not where the answer leads


class Upload:
    """One blob on its way to a registry, in chunks: what is lost with a connection is at most the chunk under way."""

    def __init__(self, remote: Remote, blob: Descriptor, source: Path | bytes, tell: Tell) -> None:
        self._remote, self._blob, self._source, self._tell = remote, blob, source, tell
        self._location: str | None = None
        self._chunk = UPLOAD_CHUNK
        self._there = self._told = 0

    def run(self) -> None:
        """Sends the blob.

        Raises:
            StepError: the registry is gone for too long, or refuses it.
            IntegrityError: it wants the bytes sent to another host.
        """
        patience = Patience(self._remote._host)
        sure = True  # that the registry holds what we think it holds
        while True:
            before = self._there
            try:
                if not sure and self._look():
                    return
                sure = True
                if self._step():
                    return
                patience.got_further()
            except Broken as error:
                sure = False
                if self._there > before:
                    patience.got_further()
                patience.wait(error)

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
        with self._remote._ask("POST", "blobs/uploads/", {"Content-Length": "0"}) as answer:
            self._remote._expect(answer, 202, 201)
            answer.text()
            if answer.status == 201:
                return True
            self._move(answer)
            least = answer.headers.get("OCI-Chunk-Min-Length") or ""
            self._chunk = min(max(UPLOAD_CHUNK, int(least) if least.isdigit() else 0), MAX_CHUNK)
            self._set(0)
        return False

    def _send(self, count: int) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(count),
            "Content-Range": f"{self._there}-{self._there + count - 1}",
        }
        with self._remote._ask("PATCH", self._location or "", headers, lambda: self._bytes(count)) as answer:
            if answer.status in (404, 416):  # the registry lost it, or holds another part than we think
                raise Broken("the registry lost the thread")
            self._remote._expect(answer, 202)
            answer.text()
            self._move(answer)
            self._set(self._there + count)

    def _finish(self, count: int) -> None:
        location = self._location or ""
        path = f"{location}{'&' if '?' in location else '?'}digest={quote(self._blob.digest, safe='')}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(count)}
        if count and self._there:
            headers["Content-Range"] = f"{self._there}-{self._there + count - 1}"
        with self._remote._ask("PUT", path, headers, lambda: self._bytes(count)) as answer:
            if answer.status in (404, 416):
                raise Broken("the registry lost the thread")
            self._remote._expect(answer, 201, 204)
            answer.text()
            self._set(self._blob.size)

    def _look(self) -> bool:
        """Asks how much of the blob the registry has; begins anew where it knows nothing of it. True if it is there."""
        if self._remote._has(self._blob):  # the answer to the last request was lost, not the request
            self._set(self._blob.size)
            return True
        if self._location is None:
            return False
        with self._remote._ask("GET", self._location) as answer:
            if answer.status in (408, 429, 500, 502, 503, 504):
                raise Broken(f"HTTP {answer.status}")
            first, _, last = (answer.headers.get("Range") or "").removeprefix("bytes=").partition("-")
            there = int(last) + 1 if first == "0" and last.isdigit() and last != "0" else 0  # some say 0-0 for nothing
            if answer.status != 204 or there > self._blob.size:
                self._location, there = None, 0
            else:
                self._move(answer)
            self._set(there)
        return False

    def _move(self, answer: Answer) -> None:
        """Takes the next address: on the registry itself, or not at all."""
        location = answer.headers.get("Location")
        if not location:
            return
        home = answer.origin
        found, path = origin_of(urljoin(f"{home.scheme}://{home.netloc}{self._location or '/'}", location))
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
