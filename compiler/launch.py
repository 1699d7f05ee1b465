"""Starts one worker, watches it, and ends its whole process group at the limit or at Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import site
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler import supervision
from compiler.answers import PROGRESS, Answer, read_answer, read_progress
from compiler.canonical import plain
from compiler.disk import explained
from compiler.errors import CompilerError, StepError
from compiler.keys.environment import DECIDING
from compiler.keys.foreign import import_path
from compiler.runtime.memory import private_mb
from compiler.stage import CACHES
from compiler.words import words

POLL_S = 0.05
QUIET_POLL_S = 0.5  # while a step measures, this process must not
MEMORY_POLL_S, QUIET_MEMORY_POLL_S = 0.25, 2.0
LOG_TAIL_LINES = 15
TAIL_BYTES = 16 << 10
LARGEST_LOG = 256 << 20
"""What a step may print, in bytes: one that prints without end would fill the disk."""
FULL_BYTES = 64 << 10
"""A disk with less left than this is why a step failed, whatever its library called it."""


@dataclass(frozen=True)
class Job:
    """What one worker is to do. `interpreter` is the Python of the step's toolchain."""

    name: str
    stage: str
    fields: dict[str, Any]
    inputs: dict[str, Path]
    modules: dict[str, str]
    """The first-party modules that it may load, and the digests of their source."""
    roots: tuple[str, ...]
    """Folders of the user's own modules: what is read below them counts, except below `apart`."""
    apart: tuple[str, ...]
    interpreter: str
    time_limit_s: float
    memory_limit_mb: float
    threads: int
    variables: tuple[str, ...] = ()
    """Names of environment variables that the worker gets besides those that every worker gets."""
    seed: int | None = None
    """For a stage that computes in floating point: where every library's generator of random numbers starts."""
    measures: bool = False
    after_crash: str = ""
    """What to do where a library crashes the worker."""


class Cancelled(Exception):
    """The build is being ended; the worker was killed."""


class Worker:
    """A worker process in its folder: started, perhaps ahead of its step, given one job, ended."""

    def __init__(
        self,
        interpreter: str,
        folder: Path,
        threads: int,
        variables: tuple[str, ...] = (),
        preload: tuple[str, ...] = (),
        caches: Path | None = None,
    ) -> None:
        """`caches`: where libraries may keep what makes them faster, and changes no result."""
        self.folder = folder
        self._inode = folder.stat().st_ino
        self._watched = folder / PROGRESS
        self._next_look = 0.0
        self.answer = Answer()
        """Once the job is done: what it had loaded and read."""
        self.deadline = float("inf")
        """Until when the job's result must have been read, by `time.monotonic`."""
        # held open, and appended to: the step may put anything in the place of the file, or cut it
        self._log = (folder / "log.txt").open("a+b")
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._log.close)
        with supervision.starting:
            self._process = subprocess.Popen(
                [interpreter, "-m", "compiler.worker", "--preload", ",".join(preload)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=environment(interpreter, threads, folder, variables)
                | ({CACHES: str(caches)} if caches is not None else {}),
                start_new_session=True,
            )
            self._stack.enter_context(supervision.known(self._process.pid))

    def run(self, job: Job, cancel: threading.Event, progress: Callable[[int, int, str], None]) -> float:
        """Runs `job`; the result's files are then in `folder/out`. Returns the seconds it took.

        Raises:
            CompilerError: the step failed; what the worker said, or how it died.
            Cancelled: `cancel` was set.
        """
        request = self.folder / "request.json"
        record = {
            "stage": job.stage,
            "fields": plain(job.fields),
            "inputs": {role: str(path) for role, path in job.inputs.items()},
            "modules": job.modules,
            "roots": job.roots,
            "apart": job.apart,
            "seed": job.seed,
        }
        # mappings in the order of their keys: a step cannot depend on an order that its key does not cover
        request.write_text(json.dumps(record, indent=1, sort_keys=True))
        started = time.monotonic()
        self.deadline = started + job.time_limit_s
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:
                stream.write(f"{request}\n".encode())
            while self._process.poll() is None:
                if cancel.is_set():
                    raise Cancelled
                if time.monotonic() > self.deadline:
                    raise past_time_limit(job, self.log_tail())
                self._check_memory(job)
                self._check_log(job)
                if (said := read_progress(self._watched)) is not None:
                    progress(*said)
                time.sleep(QUIET_POLL_S if job.measures else POLL_S)
        finally:
            self._end_processes()
        seconds = time.monotonic() - started
        self._check_folder(job)
        self.answer = _judge(job, self.folder, self._process.returncode, self.log_tail())
        return seconds

    def _check_folder(self, job: Job) -> None:
        """That the worker's folder is still its own, and can be read: what ran may have done anything to it."""
        try:
            found = self.folder.lstat()
        except OSError:
            found = None
        if found is None or found.st_ino != self._inode or not stat.S_ISDIR(found.st_mode):
            raise StepError(
                f"{job.name} removed its working folder, or put something else in its place",
                fix="a step writes into the folder of its result, and removes nothing above it",
                details=self.log_tail(),
            )
        self.folder.chmod(0o700)

    def _check_log(self, job: Job) -> None:
        size = os.fstat(self._log.fileno()).st_size
        if size > LARGEST_LOG:
            raise StepError(
                f"{job.name} wrote more than {LARGEST_LOG >> 20} MB to its log",
                fix="let the step print less; the end of its log is above",
                details=self.log_tail(),
            )

    def _check_memory(self, job: Job) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + (QUIET_MEMORY_POLL_S if job.measures else MEMORY_POLL_S)
        used = private_mb(self._process.pid)
        if used > job.memory_limit_mb:
            raise StepError(
                f"{job.name} used {used:.0f} MB, more than its memory limit of {job.memory_limit_mb:.0f} MB",
                fix="raise executor.memory_limit_mb if the machine has more, or build a smaller model",
                details=self.log_tail(),
            )

    def log_tail(self) -> list[str]:
        """The last lines that the step printed, as they can be shown."""
        return [] if self._log.closed else tail(self._log.fileno())

    def end(self) -> None:
        """Ends the worker and all that it started; what it printed cannot be asked for any more."""
        self._end_processes()
        self._stack.close()

    def _end_processes(self) -> None:
        """Kills all below the worker, what is left of its process group, and reaps it."""
        if self._process.poll() is None:
            supervision.end_below(self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        supervision.end_strays()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def past_time_limit(job: Job, details: list[str]) -> StepError:
    """The error of a step that takes too long."""
    return StepError(
        f"{job.name} ran past its time limit of {job.time_limit_s:g} s",
        fix="raise executor.time_limit_s, or look at the log for what it waits for",
        details=details,
    )


def _judge(job: Job, folder: Path, code: int, log_tail: list[str]) -> Answer:
    """The worker's answer, or the error that it means."""
    answer, unread = None, ""
    try:
        answer = read_answer(folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        unread = words(error.strerror if isinstance(error, OSError) else error, 200)
    full = shutil.disk_usage(folder).free < FULL_BYTES  # then not even success is believed: libraries overlook it
    if answer is not None and answer.error is None and code == 0 and not full:
        return answer
    if full or (answer is not None and answer.errno in (errno.ENOSPC, errno.EDQUOT)):
        raise explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder)
    if answer is not None and answer.error is not None:
        raise named(answer.error, job.name)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "the system ends the largest process when memory runs out: see the kernel log, or build a smaller model"
        raise StepError(
            f"{job.name} was killed by {name}",
            fix=hint if name == "SIGKILL" else job.after_crash,
            details=log_tail,
        )
    if unread and code == 0:
        raise StepError(
            f"{job.name}: its answer cannot be read: {unread}",
            fix="the worker writes its answer itself: the step must leave it alone",
            details=log_tail,
        )
    raise StepError(f"{job.name} ended with exit code {code} and no answer", fix="see the log", details=log_tail)


def named(error: CompilerError, name: str) -> CompilerError:
    """The worker does not know what its step is called in this build."""
    return type(error)(f"{name}: {error.what}", fix=error.fix, details=error.details)


def reproduce_command(job: Job, folder: Path) -> str:
    """The shell line that runs a kept failure again: in the folder where the worker ran, because modules of the user's
    own may lie there, and in an environment that is empty but for what the worker had.
    """
    given = environment(job.interpreter, job.threads, folder, job.variables)
    del given["COMPILER_PARENT"], given["COMPILER_PROGRESS"]
    settings = [f"{name}={value}" for name, value in sorted(given.items()) if name not in job.variables]
    secret = [f'{name}="${name}"' for name in sorted(job.variables) if name in os.environ]
    request = [job.interpreter, "-m", "compiler.worker", str(folder / "request.json")]
    return " ".join(
        [shlex.join(["cd", str(Path.cwd())]), "&& env -i", shlex.join(settings), *secret, shlex.join(request)]
    )


def environment(interpreter: str, threads: int, folder: Path, variables: Iterable[str] = ()) -> dict[str, str]:
    """The worker's whole environment: settings that make results repeatable, and what keys cover of the user's own.

    `folder` is the worker's own: its home and its temporary files lie there, and are gone when it is.
    """
    kept = {name: os.environ[name] for name in (*DECIDING, *variables) if name in os.environ}
    return {
        **settings(), "OMP_NUM_THREADS": str(threads),
        "PATH": os.pathsep.join([str(Path(interpreter).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(folder), "TMPDIR": str(folder),
        "PYTHONUSERBASE": site.getuserbase(), "PYTHONPATH": import_path(interpreter),
        "COMPILER_PROGRESS": str(folder / PROGRESS), "COMPILER_PARENT": str(os.getpid()), **kept,
    }  # fmt: skip


def settings() -> dict[str, str]:
    """What is the same in every worker, whoever starts it; keys cover it."""
    return {
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "CUDA_MODULE_LOADING": "LAZY",
        "HF_HUB_OFFLINE": "1",
    }


def tail(log: int) -> list[str]:
    """The last lines of an open log, without terminal control codes."""
    try:
        text = os.pread(log, TAIL_BYTES, max(0, os.fstat(log).st_size - TAIL_BYTES)).decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return ["".join(c for c in line if c.isprintable())[:300] for line in lines[-LOG_TAIL_LINES:]]
