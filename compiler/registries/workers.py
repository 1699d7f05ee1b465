"""Several transfers at a time, which end together: the first error, or Ctrl-C, wakes whatever waits for a registry."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, BinaryIO, TypeVar
from weakref import WeakSet

from compiler.canonical import CHUNK

WORKERS = 4
LEAVE_S = 2.0
"""How long threads that were stopped are waited for: what cannot be woken (a name server, say) ends by itself."""

T = TypeVar("T")
_here = threading.local()


class Stopped(Exception):
    """Another thread's error, or the user, has ended the transfer."""


class Stop:
    """What the threads of one transfer have in common."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()

    def set(self) -> None:
        """Ends pauses and the reading and writing of sockets, now and from now on."""
        self._event.set()
        with self._lock:
            watched = list(self._sockets)
        for one in watched:
            _shut(one)

    def check(self) -> None:
        """Raises Stopped where it is set."""
        if self._event.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Sleeps. Raises Stopped as soon as it is set."""
        if self._event.wait(seconds):
            raise Stopped

    def watch(self, one: socket.socket) -> None:
        """A socket that is to be shut when it is set."""
        with self._lock:
            self._sockets.add(one)
        if self._event.is_set():
            _shut(one)


def current() -> Stop:
    """The stop of the transfer that this thread works for; in any other thread one that nobody sets."""
    found: Stop | None = getattr(_here, "stop", None)
    return found or Stop()


def run_all(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Runs them, some at a time; what they return, in their order. The first error, or Ctrl-C, stops all."""
    stop = Stop()
    futures: list[Future[T]] = [Future() for _ in calls]
    todo = deque(zip(futures, calls, strict=True))

    def work() -> None:
        _here.stop = stop
        with contextlib.suppress(IndexError):
            while True:
                future, call = todo.popleft()
                try:
                    future.set_result(call())
                except BaseException as error:  # `result` raises it
                    future.set_exception(error)

    # daemons: the program's end does not wait for one that cannot be woken
    threads = [threading.Thread(target=work, name="transfer", daemon=True) for _ in calls[:WORKERS]]
    try:
        for thread in threads:
            thread.start()
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in futures if future in done]  # of several errors the first file's
    finally:
        todo.clear()
        stop.set()
        until = time.monotonic() + LEAVE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """What is left of a file, until the transfer is stopped."""
    stop = current()
    while piece := stream.read(CHUNK):
        stop.check()
        yield piece


def hashed(stream: BinaryIO) -> Any:
    """The SHA-256 object of what is left of a file."""
    seen = hashlib.sha256()
    for piece in pieces(stream):
        seen.update(piece)
    return seen


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(one, socket.SHUT_RDWR)  # past TLS's own: another thread is reading
