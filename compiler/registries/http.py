"""HTTP to a registry, by Python's own `http.client`: it follows nothing, keeps nothing and sends nothing unasked.

TLS everywhere but to this machine itself; addresses are looked at before they are connected to, so that neither a
redirect nor a name that resolves anew leads into a network that the registry is no part of.
"""

from __future__ import annotations

import functools
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from compiler.errors import ConfigError, IntegrityError, StepError
from compiler.foreign_files import read_limited
from compiler.foreign_json import parse_json
from compiler.registries import Broken, addresses
from compiler.registries.timed import ANSWER_S, TimedResponse
from compiler.registries.workers import current

CONNECT_S = 20
MAX_TEXT_BYTES = 1 << 20
"""Of an answer that is neither a blob nor a manifest."""
PIECE = 256 << 10
LARGEST_CERTIFICATES = 64 << 20
PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses of a server that may do better in a moment."""


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: what credentials belong to."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """As a URL has it: without the port that the scheme implies."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def origin_of(url: str) -> tuple[Origin, str]:
    """A URL's origin, and its path with the query.

    Raises:
        IntegrityError: it is no URL that a registry may lead to.
    """
    fix = "do not use this registry"
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise IntegrityError("the registry leads to what is no address", fix=fix) from None
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username is not None:
        raise IntegrityError("the registry leads to what is no web address", fix=fix)
    if any(c <= " " or c > "~" for c in url):
        raise IntegrityError("the registry leads to an address with characters that none has", fix=fix)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(parts.scheme, parts.hostname, port), path


class Answer:
    """A response whose body is still to be read; closing it early gives up its connection."""

    def __init__(
        self, origin: Origin, path: str, response: http.client.HTTPResponse, connection: http.client.HTTPConnection
    ) -> None:
        self.origin, self.path, self.status, self.headers = origin, path, response.status, response.headers
        self._response, self._connection = response, connection

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._response.isclosed():
            self._connection.close()

    def pieces(self) -> Iterator[bytes]:
        """The body. Raises Broken where it ends before its time."""
        try:
            left = self._response.length  # None where the server does not say
            # what is here already: `read` waits for more, and would lose it where the rest never comes
            while left != 0 and (piece := self._response.read1(PIECE if left is None else min(PIECE, left))):
                left = None if left is None else left - len(piece)
                yield piece
            if left:
                raise Broken("the connection ended early")
            if left is not None:
                self._response.length = 0  # not every Python counts in `read1`
            self._response.read()  # nothing: it frees the connection
        except (OSError, http.client.HTTPException) as error:
            raise Broken(_words(error)) from error

    def text(self, limit: int = MAX_TEXT_BYTES) -> bytes:
        """The whole body, which must be small.

        Raises:
            IntegrityError: it is larger than `limit`.
        """
        found = bytearray()
        for piece in self.pieces():
            found += piece
            if len(found) > limit:
                raise IntegrityError(
                    f"{self.origin.netloc} answers with more than {limit >> 10} KiB", fix="do not use this registry"
                )
        return bytes(found)

    def record(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return parse_json(self.text())
        except ValueError:
            return None

    def errors(self) -> tuple[str, str]:
        """The code of the first error that the body tells of, and the registry's words for it, fit to be shown."""
        record = self.record()
        found = record.get("errors") if isinstance(record, dict) else None
        first = found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}
        said = f"{first.get('code', '')} {first.get('message', '')}"
        return str(first.get("code", "")), "".join(c for c in said if c.isprintable())[:200].strip()

    def busy(self, what: str = "") -> Broken:
        """The error that stands for one of `PASSING`, with the time that the server asks for."""
        return Broken(
            f"{what}HTTP {self.status}", retry_after(self.headers.get("Retry-After"), self.headers.get("Date"))
        )

    def leads_to(self) -> tuple[Origin, str]:
        """Where its `Location` is, seen from what was asked for. Raises IntegrityError where that is no address."""
        asked = f"{self.origin.scheme}://{self.origin.netloc}{self.path}"
        try:
            url = urljoin(asked, self.headers.get("Location") or "")
        except ValueError:
            url = ""
        return origin_of(url)


def retry_after(given: str | None, date: str | None) -> float | None:
    """Seconds from a `Retry-After` header, which holds seconds or a date; None where it says nothing that makes sense.

    A date is taken against the server's own `Date`, where it is given: the two clocks may differ.
    """
    text = (given or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = parsedate_to_datetime(text)
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


class Http:
    """Connections, one a thread and origin, that are used again."""

    def __init__(self, home: str) -> None:
        """`home`: the host that the user named."""
        self._home = home
        self._range: str | None = None
        self._mine = threading.local()

    @property
    def home_range(self) -> str:
        """The range of addresses that the registry lies in: what it may lead to besides the public."""
        if self._range is None:
            host = self._home.rpartition(":")[0] if not self._home.endswith("]") and ":" in self._home else self._home
            self._range = addresses.range_of(_resolved(host, 0)[0])
        return self._range

    def ask(
        self,
        method: str,
        origin: Origin,
        path: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        answer_s: float = ANSWER_S,
    ) -> Answer:
        """One request, one response, which has `answer_s` to begin and to go on after each piece.

        Raises:
            Stopped: the transfer has ended.
            Broken: no connection, or it was lost.
            IntegrityError: the origin lies where the registry may not lead.
            StepError: the host's name is unknown, or its certificate is not to be trusted.
        """
        if origin.scheme == "http" and not addresses.is_loopback(origin.host):
            raise IntegrityError(
                f"{origin.netloc} is to be asked without TLS", fix="only a registry on this machine needs no TLS"
            )
        current().check()
        connection = self._connection(origin)
        used = connection.sock is not None
        sent = {"User-Agent": "target-model-compiler", "Accept-Encoding": "identity", **headers}
        try:
            return self._once(connection, method, origin, path, sent, body, answer_s)
        except (http.client.HTTPException, ConnectionError) as error:
            connection.close()
            if used and (body is None or isinstance(body, bytes)):  # the server had closed what lay idle
                return self._again(connection, method, origin, path, sent, body, answer_s)
            raise Broken(_words(error)) from error
        except ssl.SSLCertVerificationError as error:
            raise StepError(
                f"the certificate of {origin.netloc} is not trusted: {error.verify_message}",
                fix="name the file of your own certificate authority in SSL_CERT_FILE",
            ) from None
        except OSError as error:
            connection.close()
            raise Broken(_words(error)) from error

    def _again(self, connection: Any, *request: Any) -> Answer:
        try:
            return self._once(connection, *request)
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise Broken(_words(error)) from error

    @staticmethod
    def _once(connection: Any, method: str, origin: Origin, path: str, sent: Any, body: Any, answer_s: float) -> Answer:
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(answer_s)
        try:
            connection.request(method, path, body=body, headers=sent)
        except (BrokenPipeError, ConnectionResetError) as error:
            if connection.sock is None:
                raise
            try:  # it may have answered before it had read everything
                return Answer(origin, path, connection.getresponse(), connection)
            except (http.client.HTTPException, OSError):
                raise error from None
        return Answer(origin, path, connection.getresponse(), connection)

    def _connection(self, origin: Origin) -> http.client.HTTPConnection:
        mine: dict[Origin, http.client.HTTPConnection] = self._mine.__dict__.setdefault("connections", {})
        if origin not in mine:
            made = (_Tls if origin.scheme == "https" else _Plain)(origin, self._dial)
            mine[origin] = made
        return mine[origin]

    def _dial(self, host: str, port: int) -> socket.socket:
        """Connects to an address that was looked at, and not to what the name may mean a moment later."""
        found = _resolved(host, port)
        home = self._home.lower() in (host, f"{host}:{port}", f"[{host}]:{port}", f"[{host}]")
        if not home:
            addresses.check_reachable(host, found, self.home_range)
        last: OSError | None = None
        for place in found:
            try:
                made = socket.create_connection((place, port), CONNECT_S)
            except OSError as error:
                last = error
                continue
            made.settimeout(ANSWER_S)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if home:
                self._range = addresses.range_of(place)
            return made
        assert last is not None
        raise last


class _Plain(http.client.HTTPConnection):
    """HTTP over a socket that `dial` makes."""

    response_class = TimedResponse

    def __init__(self, origin: Origin, dial: Callable[[str, int], socket.socket]) -> None:
        super().__init__(origin.host, origin.port)
        self._dial = dial

    def connect(self) -> None:
        """Called by the first request, and after the connection was closed."""
        self.sock = self._dial(self.host, self.port)
        current().watch(self.sock)


class _Tls(_Plain):
    """The same under TLS, with the name that was asked for in the certificate."""

    default_port = 443

    def connect(self) -> None:
        """As above."""
        super().connect()
        self.sock = _context().wrap_socket(self.sock, server_hostname=self.host)
        current().watch(self.sock)


@functools.cache
def _context() -> ssl.SSLContext:
    """Trusted are the system's certificates, or those in the file that the user names instead.

    Raises:
        ConfigError: that file is not one: OpenSSL would wait for a FIFO, and read a device for ever.
    """
    named = os.environ.get("SSL_CERT_FILE")
    if named:
        try:
            read_limited(Path(named), LARGEST_CERTIFICATES)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the certificates in {named} (SSL_CERT_FILE): {_words(error)}", fix="check the variable"
            ) from None
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _resolved(host: str, port: int) -> list[str]:
    try:
        return addresses.resolve(host, port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise
        raise StepError(
            f"the host {host[:100]} is not known: {error.strerror}", fix="check its name, and the network"
        ) from None


def _words(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
