"""Runs something under a watch on every system call that changes files; lets calls fail, fall short, or be the last.

The kernel hands each such call of the process, its threads and all it starts to the watcher before carrying it out
(seccomp's user notification): they come one at a time, in one order, and none is missed. While the watcher decides,
nothing else below it can change a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from compiler.disk import FICLONE

NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "pwritev2": 328, "sendfile": 40,
        "copy_file_range": 326, "fsync": 74, "fdatasync": 75, "sync_file_range": 277, "truncate": 76, "ftruncate": 77,
        "fallocate": 285, "rename": 82, "renameat": 264, "renameat2": 316, "mkdir": 83, "mkdirat": 258, "rmdir": 84,
        "link": 86, "linkat": 265, "unlink": 87, "unlinkat": 263, "symlink": 88, "symlinkat": 266, "chmod": 90,
        "fchmod": 91, "fchmodat": 268, "utimensat": 280, "creat": 85, "open": 2, "openat": 257, "ioctl": 16,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "pwritev2": 287, "sendfile": 71,
        "copy_file_range": 285, "fsync": 82, "fdatasync": 83, "sync_file_range": 84, "truncate": 45, "ftruncate": 46,
        "fallocate": 47, "renameat": 38, "renameat2": 276, "mkdirat": 34, "linkat": 37, "unlinkat": 35,
        "symlinkat": 36, "fchmod": 52, "fchmodat": 53, "utimensat": 88, "openat": 56, "ioctl": 29,
    },
}  # fmt: skip
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}
PIDFD_GETFD = 438  # the same number on every architecture
AT_CWD = -100
ON_PATH = ("rename", "mkdir", "rmdir", "link", "unlink", "symlink", "chmod", "truncate", "creat", "open")
AT_FOLDER = ("renameat", "renameat2", "mkdirat", "unlinkat", "linkat", "fchmodat", "utimensat", "openat")
TARGET_SECOND = ("sendfile", "symlink")
"""Calls whose second argument names what they change."""
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
KILL, TORN = "kill", "torn"
"""The caller gets SIGKILL in place of the call; or in the middle of a write, half of whose bytes are in the file."""


@dataclass(frozen=True)
class Call:
    """A call that is about to change something. `path` is what, where that has a name; counted from 1."""

    number: int
    name: str
    path: str
    size: int
    """Bytes to be written, by `write` and `pwrite64`."""
    first: bool
    """Whether the process that was started makes it, not one that it started itself."""


@dataclass
class Watched:
    """What became of a watched run: `code` is negative where a signal ended it."""

    code: int
    out: str
    err: str
    calls: list[Call]

    def last_lines(self) -> tuple[str, str]:
        """What to do, and the cause: the last two lines of standard error."""
        lines = self.err.strip().splitlines() or [""]
        return (lines[-2] if len(lines) > 1 else "", lines[-1])


Decision = str | int | range | None
"""KILL, TORN, an errno to fail with, range(n): at most n bytes are written, or None: it is carried out."""


def watch(
    what: Sequence[str] | Callable[[], int],
    decide: Callable[[Call], Decision] = lambda call: None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Watched:
    """Runs a command, or a function in a child process, until it and all that it started have ended."""
    machine = platform.machine()
    if machine not in NUMBERS:
        pytest.skip(f"needs the numbers of system calls on {machine}")
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ours, theirs:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(what, theirs, out.fileno(), err.fileno(), cwd, env, machine)
        theirs.close()
        with contextlib.suppress(OSError):
            _, handles, _, _ = socket.recv_fds(ours, 1, 1)
        if not handles:
            os.waitpid(pid, 0)
            pytest.skip("needs Linux 5.5 or newer, and a system that lets a process watch its children's calls")
        try:
            calls = _serve(handles[0], pid, decide, machine, timeout_s)
        finally:
            os.close(handles[0])  # calls that still wait fail
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return Watched(code, *texts, calls)


def _child(
    what: Sequence[str] | Callable[[], int], socket_: socket.socket, out: int, err: int, cwd: Path | None,
    env: Mapping[str, str] | None, machine: str,
) -> None:  # fmt: skip
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        if cwd is not None:
            os.chdir(cwd)
        handle = _listen(machine)
        if handle < 0:
            socket.send_fds(socket_, [b"n"], [])
            os._exit(0)
        socket.send_fds(socket_, [b"y"], [handle])
        os.close(handle)
        socket_.close()
        if not callable(what):
            os.execve(what[0], list(what), dict(os.environ if env is None else env))
        with os.fdopen(1, "w", closefd=False) as sys.stdout, os.fdopen(2, "w", closefd=False) as sys.stderr:
            code = what()  # pytest's own streams write elsewhere
        os._exit(code)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)


def _listen(machine: str) -> int:
    """Has the kernel ask before every call that changes files; the handle on which it asks, or -1."""

    def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    argument = 16  # of six, eight bytes each, the lower half first
    numbers = dict(NUMBERS[machine])
    special = {
        numbers.pop("openat"): (2, any_bit, os.O_CREAT | os.O_TRUNC),
        numbers.pop("ioctl"): (1, equal, FICLONE),
    } | ({numbers.pop("open"): (1, any_bit, os.O_CREAT | os.O_TRUNC)} if "open" in numbers else {})
    plain = sorted(numbers.values())
    lines = [instruction(load, 4), instruction(equal, ARCHITECTURES[machine], 1, 0), instruction(answer, 0x7FFF0000)]
    lines.append(instruction(load, 0))
    for number, (position, test, value) in special.items():
        lines.append(instruction(equal, number, 0, 4))
        lines.append(instruction(load, argument + 8 * position))
        lines.append(instruction(test, value, 1, 0))
        lines.append(instruction(answer, 0x7FFF0000))
        lines.append(instruction(answer, 0x7FC00000))
    lines += [instruction(equal, number, len(plain) - i, 0) for i, number in enumerate(plain)]
    lines += [instruction(answer, 0x7FFF0000), instruction(answer, 0x7FC00000)]
    program = b"".join(lines)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(38, 1, 0, 0, 0)  # no new privileges: then no right is needed to filter one's own calls
    return int(library.syscall(SECCOMP[machine], 1, 8, ctypes.create_string_buffer(header, len(header))))


def _serve(handle: int, pid: int, decide: Callable[[Call], Decision], machine: str, timeout_s: float) -> list[Call]:
    names = {number: name for name, number in NUMBERS[machine].items()}
    calls: list[Call] = []
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        assert events, f"still running after {timeout_s:g} s; the last call: {calls[-1:]}"
        if not events[0][1] & select.POLLIN:
            return calls  # everything that was watched has ended
        buffer = bytearray(80)
        try:
            fcntl.ioctl(handle, RECEIVE, buffer, True)
        except OSError:
            continue  # it died meanwhile
        ident, caller, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", buffer)
        call = _call(len(calls) + 1, names[number], caller, pid, arguments)
        calls.append(call)
        decision = decide(call)
        value, error, flags = 0, 0, CONTINUE
        if decision in (KILL, TORN):
            if decision == TORN:
                _write(caller, arguments, call.name, call.size // 2)
            os.kill(caller, signal.SIGKILL)
            continue
        if isinstance(decision, int):
            error, flags = -decision, 0
        elif isinstance(decision, range):
            value, flags = _write(caller, arguments, call.name, min(call.size, len(decision))), 0
        with contextlib.suppress(OSError):
            fcntl.ioctl(handle, SEND, struct.pack("QqiI", ident, value, error, flags))


def _call(number: int, name: str, caller: int, pid: int, arguments: list[int]) -> Call:
    path = ""
    try:
        if name in ON_PATH:
            path = str(_opened(caller, AT_CWD) / _text(caller, arguments[1 if name in TARGET_SECOND else 0]))
        elif name == "symlinkat":
            path = str(_opened(caller, _signed(arguments[1])) / _text(caller, arguments[2]))
        elif name in AT_FOLDER:
            path = str(_opened(caller, _signed(arguments[0])) / (_text(caller, arguments[1]) if arguments[1] else ""))
        else:
            path = str(_opened(caller, _signed(arguments[2 if name == "copy_file_range" else 0])))
    except OSError:
        pass
    size = arguments[2] if name in ("write", "pwrite64") else 0
    return Call(number, name, path, size, _group(caller) == pid)


def _signed(argument: int) -> int:
    return ctypes.c_int(argument & 0xFFFFFFFF).value


def _opened(caller: int, handle: int) -> Path:
    return Path(f"/proc/{caller}/cwd" if handle == AT_CWD else f"/proc/{caller}/fd/{handle}").readlink()


def _group(caller: int) -> int:
    with contextlib.suppress(OSError), Path(f"/proc/{caller}/status").open() as stream:
        return int(next(line for line in stream if line.startswith("Tgid:")).split()[1])
    return 0


def _memory(caller: int, address: int, size: int) -> bytes:
    with Path(f"/proc/{caller}/mem").open("rb", buffering=0) as stream:
        stream.seek(address)
        return stream.read(size)


def _text(caller: int, address: int) -> str:
    page = 4096
    data = b""
    while b"\0" not in data:
        data += _memory(caller, address + len(data), page - (address + len(data)) % page)
    return os.fsdecode(data.partition(b"\0")[0])


def _write(caller: int, arguments: list[int], name: str, size: int) -> int:
    """Carries out the caller's write in its place, of its first `size` bytes only."""
    if size == 0:
        return 0
    process = os.pidfd_open(_group(caller))
    handle = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, arguments[0] & 0xFFFFFFFF, 0)
    os.close(process)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "cannot share the caller's file")
    try:
        data = _memory(caller, arguments[1], size)
        return os.pwrite(handle, data, arguments[3]) if name == "pwrite64" else os.write(handle, data)
    finally:
        os.close(handle)
