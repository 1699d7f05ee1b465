"""A registry that means harm: a mock of what no real server does, which answers as a test tells it to.

It keeps every request it got, so that a test can see what was sent where.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes | Iterator[bytes]]


@dataclass
class Got:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Hostile:
    """`replies`: the beginning of `METHOD path` -> what is answered; the longest that fits counts."""

    host: str = ""
    replies: dict[str, Reply | Callable[[Got], Reply]] = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)

    def reply(self, request: Got) -> Reply:
        """What to answer: 404 where nothing was said."""
        line = f"{request.method} {request.path}"
        fitting = [start for start in self.replies if line.startswith(start)]
        if not fitting:
            return 404, {}, b"{}"
        found = self.replies[max(fitting, key=len)]
        return found(request) if callable(found) else found


@contextmanager
def hostile() -> Iterator[Hostile]:
    """A running one on a loopback port."""
    state = Hostile()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Got(self.command, self.path, dict(self.headers), body)
            state.got.append(request)
            status, headers, content = state.reply(request)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if isinstance(content, bytes):
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                return
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for piece in content:
                    self.wfile.write(piece)
            except OSError:
                pass
            self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = _serve

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.host = f"127.0.0.1:{server.server_port}"
    # by default it looks only twice a second whether it is to end, and a test waits for that
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
