"""All that a step starts ends with it: also what has a session, a parent or settings of its own.

A worker runs its step in a child and stays behind as its supervisor. Linux makes it the parent of every orphan below
it, so the tree of processes below it is complete; it ends that tree once the step has ended, and then itself as the
step did. Source: prctl(2), PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from compiler.runtime.memory import descendants

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PATIENCE_S = 5.0
"""How long processes are killed again and again, where new ones keep coming."""

starting = threading.Lock()
"""Held while a worker is started: it must be known before somebody looks for processes that nobody knows."""
_known: set[int] = set()
_before: set[int] = set()
"""Children that this process had before it was a build: a shell's that replaced itself, or a container's."""
_adopts = False


def die_with_parent() -> None:
    """The kernel ends this process where its parent ends, whatever ended that."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Makes this process, a build's, the parent of what a worker that was killed leaves; `end_strays` ends it."""
    global _adopts  # noqa: PLW0603 - it is a state of the process
    _before.update(_children())
    _adopts = _prctl(PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def known(pid: int) -> Iterator[None]:
    """While `pid` belongs to a worker of this build, so that `end_strays` spares it."""
    _known.add(pid)
    try:
        yield
    finally:
        _known.discard(pid)


def supervised(work: Callable[[], int]) -> int:
    """Returns what `work` returns in a child of this process, once all that the child started has ended.

    Where a signal ended the child, it ends this process too.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent()
        return work() if os.getppid() == supervisor else 0
    try:
        status = _wait_for(child)
    finally:
        end_below(supervisor)
    if os.WIFSIGNALED(status):
        return _end_by(os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


def _wait_for(child: int) -> int:
    """How `child` ended, as `os.wait` says it; other children, which were others' before, are only reaped."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def _end_by(number: int) -> int:
    """Ends this process by a signal, without writing its memory to disk a second time."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def end_below(pid: int) -> None:
    """Kills every process below `pid`, which itself goes on."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = [process for process in descendants(pid) if process != pid and not _has_ended(process)]
        if not found:
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):  # first none may start another
            for process in found:
                with contextlib.suppress(OSError):
                    os.kill(process, number)
        time.sleep(0.001)


def end_strays() -> None:
    """Kills what became a child of this process because the worker above it was killed: what has another session and is
    no worker. Callers are threads; workers may be running.
    """
    if not _adopts:
        return
    own = os.getsid(0)
    with starting:
        for pid in _children():
            with contextlib.suppress(OSError):
                if pid not in _known | _before and os.getsid(pid) != own and _is_of_this_build(pid):
                    end_below(pid)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def _is_of_this_build(pid: int) -> bool:
    """Whether an adopted process comes from a worker. All do, unless this is the first process of a container, which
    adopts every orphan in it: then the environment of workers tells.
    """
    if os.getpid() != 1:
        return True
    try:
        return b"COMPILER_PARENT=1" in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _has_ended(pid: int) -> bool:
    """Whether a process is only waiting for its parent to ask how it ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _prctl(option: int, value: int) -> bool:
    """Whether the system has done it; other systems than Linux have no such call."""
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    return False
