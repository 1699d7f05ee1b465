"""HTTP responses with limits on time: on the head as a whole, and on how slowly a body may come."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import time
from typing import Any

from compiler.registries.patience import SLOWEST_PER_S

ANSWER_S = 30.0
"""Without a byte: shorter than `patience.PATIENCE_S`, so that a stall is tried again."""


class _Timed(io.RawIOBase):
    """Reads from a socket with limits on the whole, because a socket's own timeout starts again with every byte.

    While `until` is set, everything must arrive by then. Otherwise each `ANSWER_S` of waiting must bring
    `SLOWEST_PER_S` bytes a second; the time that the receiver takes between reads does not count.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        self.until: float | None = None
        self._waited, self._came = 0.0, 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See `io.RawIOBase`.

        Raises:
            TimeoutError: the limit is passed.
        """
        began = time.monotonic()
        if self.until is not None:
            if began >= self.until:
                raise TimeoutError("the answer takes too long")
            self._sock.settimeout(self.until - began)
            return self._raw.readinto(buffer)
        count = self._raw.readinto(buffer)
        self._waited += time.monotonic() - began
        self._came += count or 0
        if self._waited > ANSWER_S:
            if self._came < SLOWEST_PER_S * self._waited:
                raise TimeoutError(f"it gives less than {SLOWEST_PER_S} bytes a second")
            self._waited, self._came = 0.0, 0
        return count

    def close(self) -> None:
        """Close its own handle on the socket; the connection may have closed the socket before."""
        self._raw.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """One whose head has a time limit, interim answers (100) included, and whose chunks cannot have a size below zero:
    Python's own takes -1 for all that comes, into memory.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        self._sock, self._timed = sock, _Timed(sock)
        self.fp.close()
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        """Reads the head, within the timeout that the socket has at its beginning."""
        limit = self._sock.gettimeout()
        self._timed.until = None if limit is None else time.monotonic() + limit
        try:
            super().begin()
        finally:
            self._timed.until = None
            with contextlib.suppress(OSError):
                self._sock.settimeout(limit)

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("a chunk's size")  # http.client raises it for a size that is not a number
        return size
