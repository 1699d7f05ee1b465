"""A repository of an OCI registry, by the OCI distribution specification 1.1."""

from __future__ import annotations

import functools
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from compiler.errors import IntegrityError, StepError
from compiler.registries import Broken, Tell, Unless, addresses, proxies
from compiler.registries.http import PASSING, Answer, Http, Origin, origin_of
from compiler.registries.oci import INDEX_TYPE, MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor, digest_of
from compiler.registries.patience import Patience
from compiler.registries.reference import DIGEST, TAG
from compiler.registries.sign_in import SignIn
from compiler.registries.timed import ANSWER_S
from compiler.registries.upload import NUMBER, Upload
from compiler.registries.workers import current

MAX_REDIRECTS = 5
MAX_TAGS = 100_000
PAGE = 1000
RACES = 5
"""How often a manifest is put: docker-registry answers DIGEST_INVALID where another client puts one to the same tag."""
CONTENT_RANGE = re.compile(r"bytes (?:\*|([0-9]{1,18})-[0-9]{1,18})/(?:\*|([0-9]{1,18}))")

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Refused(StepError):
    """What the registry will not do, with the code that it gave for it."""

    def __init__(self, message: str, *, fix: str, code: str) -> None:
        super().__init__(message, fix=fix)
        self.code = code


class Remote:
    """See `compiler.registries.Registry`."""

    def __init__(self, host: str, repository: str, writing: bool) -> None:
        self._host = host
        self._http = Http(host)
        self._base = f"/v2/{repository}/"
        self._repository, self._actions = repository, "pull,push" if writing else "pull"
        self._known: tuple[Origin, SignIn] | None = None
        if not addresses.is_loopback(origin_of(f"https://{host}")[0].host) and (variable := proxies.unused(host)):
            logger.warning("%s is reached directly: the proxy that %s names is not used", host, variable)

    # -- the four calls ----------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> bytes | None:
        """See `Registry`. An index is fetched too, so that it can be said that it is one."""

        def ask() -> bytes | None:
            accepted = {
                "Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}, application/vnd.docker.distribution.manifest.v2+json"
            }
            with self.ask("GET", f"manifests/{name}", accepted, follow=True) as answer:
                if answer.status == 404:
                    return None
                self.expect(answer, 200)
                data = answer.text(MAX_MANIFEST_BYTES)
                said = answer.headers.get("Docker-Content-Digest") or ""
                if DIGEST.fullmatch(said) and said != digest_of(data):
                    raise IntegrityError(
                        f"{answer.origin.netloc} gives {digest_of(data)} for the manifest {said}",
                        fix="do not use this registry",
                    )
                return data

        return self._patiently(ask)

    def read(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """See `Registry`."""
        wanted = {"Range": f"bytes={start}-"} if start else {}
        with self.ask("GET", f"blobs/{blob.digest}", wanted, follow=True) as answer:
            first = _check_part(answer, blob, start)
            self.expect(answer, 200, 206)
            skip = start if answer.status == 200 else start - first  # a server that gives no parts, or another one
            if skip < 0:
                raise Broken(f"{answer.origin.netloc} gives another part than it was asked for")
            for piece in answer.pieces():
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield piece[skip:]
                skip = 0

    def write(
        self, blob: Descriptor, source: Path | bytes, tags: Sequence[str], tell: Tell, unless: Unless | None = None
    ) -> bool:
        """See `Registry`. A blob that is there already is not sent again; one half sent is gone on with."""
        if blob.media_type == MANIFEST_TYPE:
            assert isinstance(source, bytes)
            for tag in tags:
                held = self.manifest(tag) if unless is not None else None
                if unless is None or held is None or not unless(tag, held):
                    self._patiently(functools.partial(self._put_manifest, tag, source))
            return True
        if self._patiently(lambda: self.has(blob)):
            tell(blob.size)
            return False
        Upload(self, self._host, blob, source, tell).run()
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

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | Callable[[], Iterable[bytes]] | None = None,
        follow: bool = False,
        answer_s: float = ANSWER_S,
    ) -> Answer:
        """One request to the registry, signed in where it asks for it; `path` is below the repository, or absolute."""
        home, sign_in = self._home()
        path = path if path.startswith("/") else self._base + path
        origin = home
        for _ in range(MAX_REDIRECTS + 3):
            shown = sign_in.header(origin)
            answer = self._http.ask(
                method, origin, path, {**(headers or {}), **shown}, body() if callable(body) else body, answer_s
            )
            if answer.status == 401 and origin == home:
                with answer:
                    _, words = answer.errors()
                    if not sign_in.answer(answer, shown):
                        raise sign_in.refused(401, bool(shown), words)
                continue
            if answer.status == 403 and origin == home:
                with answer:
                    raise sign_in.refused(403, bool(shown), answer.errors()[1])
            if answer.status in (301, 302, 303, 307, 308) and follow:
                with answer:
                    before, (origin, path) = origin, answer.leads_to()
                if before.scheme == "https" and origin.scheme == "http":
                    raise IntegrityError(f"{before.netloc} leads away from TLS", fix="do not use this registry")
                continue
            return answer
        raise IntegrityError(f"{home.netloc} leads on and on", fix="do not use this registry")

    def _home(self) -> tuple[Origin, SignIn]:
        """The registry's origin: with TLS, but where this machine's own registry speaks without."""
        if self._known is None:
            origin, _ = origin_of(f"https://{self._host}/")
            if addresses.is_loopback(origin.host) and not self._patiently(lambda: self._speaks_tls(origin)):
                origin, _ = origin_of(f"http://{self._host}/")
            self._known = origin, SignIn(self._http, origin, self._repository, self._actions)
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

    def expect(self, answer: Answer, *statuses: int) -> None:
        """Raises Broken for what may pass, StepError with the registry's own words for what will not."""
        if answer.status in statuses:
            return
        if answer.status in PASSING:
            raise answer.busy()
        code, words = answer.errors()
        raise Refused(
            f"{answer.origin.netloc} answers HTTP {answer.status}{': ' + words if words else ''}",
            fix="see what the registry's own log says",
            code=code,
        )

    # -- pieces of the calls -------------------------------------------------------------------------------------------

    def has(self, blob: Descriptor) -> bool:
        """Whether the registry holds a blob."""
        with self.ask("HEAD", f"blobs/{blob.digest}", follow=True) as answer:
            if answer.status == 404:
                return False
            self.expect(answer, 200)
            return answer.headers.get("Content-Length") in (None, str(blob.size))

    def _put_manifest(self, name: str, data: bytes) -> None:
        for left in reversed(range(RACES)):
            try:
                with self.ask("PUT", f"manifests/{name}", {"Content-Type": MANIFEST_TYPE}, data) as answer:
                    self.expect(answer, 201)
                    answer.text()
                return
            except Refused as error:
                if error.code != "DIGEST_INVALID" or not left:
                    raise
                current().pause(random.uniform(0.1, 0.5))  # noqa: S311 - so that the others are through by then

    def _page(self, path: str) -> tuple[list[str], str | None]:
        with self.ask("GET", path) as answer:
            if answer.status == 404:
                return [], None
            self.expect(answer, 200)
            record = answer.record()
            names = record.get("tags") if isinstance(record, dict) else None
            names = names if isinstance(names, list) else []
            good = [name for name in names if isinstance(name, str) and TAG.fullmatch(name)]
            link = answer.headers.get("Link") or ""
        if 'rel="next"' not in link or not good:
            return good, None
        return good, f"tags/list?n={PAGE}&last={quote(good[-1])}"  # where the page ended, not where the answer leads


def _check_part(answer: Answer, blob: Descriptor, start: int) -> int:
    """Where the part of a blob that an answer gives begins.

    Raises:
        IntegrityError: it is a part of something else.
    """
    found = CONTENT_RANGE.fullmatch((answer.headers.get("Content-Range") or "").strip())
    first, total = found.groups() if found and answer.status in (206, 416) else (None, None)
    if answer.status == 200:
        total = answer.headers.get("Content-Length")
    encoding = answer.headers.get("Content-Encoding") or "identity"
    if answer.status in (200, 206) and encoding != "identity":
        what = "it comes in an encoding that nobody asked for"
    elif total is not None and NUMBER.fullmatch(total) and int(total) != blob.size:
        what = f"{answer.origin.netloc} has {int(total):,} bytes for its {blob.size:,}"
    else:
        return int(first) if first else start
    raise IntegrityError(
        f"{blob.name or 'a blob'} does not match its digest {blob.digest}: {what}",
        fix="do not use this artifact: what the registry holds is damaged or was altered; publish it again",
    )
