"""Asks another program something, such as a tool for its version: within a time and an amount of output.

What is on PATH, or named in a configuration, may hang, print without end, or leave processes behind that hold its
output open.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from compiler.runtime.memory import descendants

LARGEST_OUTPUT = 8 << 20
"""Of a program that is asked something, in bytes, both streams together."""
GRACE_S = 0.2
"""For output that is still on its way when the program has ended."""


class NoAnswerError(Exception):
    """The program did not answer; why, in words."""


def inquire(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None, most: int = LARGEST_OUTPUT
) -> tuple[int, str, str]:
    """Runs `command` without input; returns its exit code, and what it wrote to standard output and standard error.

    Raises:
        NoAnswerError: it took longer than `seconds`, or wrote more than `most` bytes.
        OSError: it cannot be started.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        process_group=0,
    ) as process:  # fmt: skip
        try:
            out, err = _read(process, time.monotonic() + seconds, seconds, most)
        finally:
            _end(process)
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _read(process: subprocess.Popen[bytes], deadline: float, seconds: float, most: int) -> tuple[bytes, bytes]:
    assert process.stdout is not None and process.stderr is not None
    parts: dict[int, list[bytes]] = {process.stdout.fileno(): [], process.stderr.fileno(): []}
    size = 0
    with selectors.DefaultSelector() as waiting:
        for handle in parts:
            waiting.register(handle, selectors.EVENT_READ)
        while waiting.get_map():
            ended = process.poll() is not None
            ready = waiting.select(GRACE_S if ended else min(GRACE_S, max(0.0, deadline - time.monotonic())))
            if ended and not ready:
                break  # something that it started holds its output open
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    waiting.unregister(key.fd)
                parts[key.fd].append(data)
                size += len(data)
            if size > most:
                raise NoAnswerError(f"it wrote more than {most} bytes")
            if time.monotonic() > deadline:
                raise NoAnswerError(f"it did not end within {seconds:g} s")
    while process.poll() is None:  # it closed its output and goes on
        if time.monotonic() > deadline:
            raise NoAnswerError(f"it did not end within {seconds:g} s")
        time.sleep(0.01)
    out, err = (b"".join(found) for found in parts.values())
    return out, err


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the program and of what it started; who waits for it does not wait long."""
    for pid in list(descendants(process.pid)) if process.returncode is None else []:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
