"""Starts visits, asks them, ends them: the other side of `compiler.runtime.visit`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from compiler.errors import MissingToolError, OutOfMemory, StepError
from compiler.runtime.memory import resident_mb

TIME_LIMIT_S = 600.0
POLL_S = 0.02
SHOWN_LINES = 12
LARGEST_ANSWER = 64 << 20
NO_MEMORY = (
    "MemoryError", "bad_alloc", "can't allocate memory",
    "OutOfMemory", "cudaErrorMemoryAllocation", "CUDA out of memory", "CUDA error: out of memory", "CUDA failure 2:",
    "Failed to allocate memory", "STATUS_ALLOC_FAILED",
)  # fmt: skip
"""In the last words of a process that ran out of memory: the host's, or the GPU's in the words of CUDA, cuDNN, cuBLAS,
of PyTorch and of ONNX Runtime."""


class Visitor:
    """One visit's process. A context manager: the process is gone at its end."""

    def __init__(
        self,
        bundle: Path,
        candidate: str,
        threads: int,
        memory_limit_mb: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.candidate = candidate
        self._limit = memory_limit_mb
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        count = str(threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "MKL_NUM_THREADS": count,
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "compiler.runtime.visit", str(bundle), candidate, json.dumps(options or {})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, cwd=None,
        )  # fmt: skip
        self._buffer = b""
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Visitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def ready(self) -> None:
        """Waits until the process has imported its library."""
        self.facts |= self._answer()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends one command and returns its answer.

        Raises:
            OutOfMemory: the process grew beyond its limit, or was killed for memory.
            MissingToolError: the library that the candidate needs is not installed.
            StepError: the process failed or took too long; the message names the candidate.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._answer()

    def end(self) -> None:
        """Ends the process and waits for it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.kill()
        self._process.wait()
        if not self._errors.closed:
            self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        deadline = time.monotonic() + TIME_LIMIT_S
        while b"\n" not in self._buffer:
            waiting = POLL_S if self._limit is not None else 5.0
            readable, _, _ = select.select([handle], [], [], waiting)
            if self._limit is not None and resident_mb(self._process.pid) > self._limit:
                self._process.kill()
                raise OutOfMemory(
                    f"{self.candidate} needs more than {self._limit:.0f} MB", fix="a smaller batch, or a higher limit"
                )
            if readable:
                part = os.read(handle, 1 << 20)
                if not part or len(self._buffer) > LARGEST_ANSWER:
                    raise self._failure()
                self._buffer += part
            elif time.monotonic() > deadline:
                raise StepError(
                    f"measuring {self.candidate} took more than {TIME_LIMIT_S:.0f} s", fix="leave this candidate out"
                )
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> StepError | MissingToolError:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = lines[-1] if lines else ""
        # PyTorch says more after what happened, and its compiled packages say it before an error that tells nothing
        said = [line for line in lines[-SHOWN_LINES:] if not line.startswith(" ")]
        if code == -signal.SIGKILL or any(word in line for line in said for word in NO_MEMORY):
            return OutOfMemory(f"{self.candidate} ran out of memory", fix="a smaller batch, or more memory")
        if "MissingToolError" in last or "ModuleNotFoundError" in last:
            return MissingToolError(f"{self.candidate} cannot run here: {last.partition(': ')[2]}", fix="install it")
        why = f": {last}" if last else ""
        return StepError(
            f"measuring {self.candidate} failed with exit code {code}{why}",
            fix="leave this candidate out, or see what its runtime says above",
            details=lines[-SHOWN_LINES:],
        )


def threads_of(entry: Mapping[str, Any], protocol: Mapping[str, Any]) -> int:
    """How many threads a candidate's entry in a bundle is measured with."""
    return int(entry["options"].get("threads") or protocol["threads"])


def pool_threads(entry: Mapping[str, Any], protocol: Mapping[str, Any]) -> int:
    """What OMP_NUM_THREADS and its like say to its process: the reference makes its own threads."""
    return 1 if entry["runtime"] == "reference" else threads_of(entry, protocol)
