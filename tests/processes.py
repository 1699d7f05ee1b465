"""Builds that run beside the test: started, waited for, looked at while they work; and mounts of their own."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Project, environment


def start(project: Project, *overrides: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A build that goes on beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "compiler", *map(str, project.base), *map(str, overrides)],
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Until the build says `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"never said {text!r}")


def wait_until(true: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Until `true()` is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def wait_for_worker(project: Project) -> None:
    """Until a worker is at work in this project's store."""
    wait_until(lambda: workers(project), "a worker")


def workers(project: Project) -> list[int]:
    """Workers in this project's store, without the child of each in which its step runs."""
    found = processes(project, b"compiler.worker")
    return [pid for pid in found if _parent(pid) not in found]


def _parent(pid: int) -> int:
    """0 where the process is gone."""
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def processes(project: Project, name: bytes = b"") -> list[int]:
    """Workers in this project's store and all that they started, by the settings they inherit."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line, settings = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(project.artifacts / ".store").encode() in settings and name in line:
                found.append(int(entry.name))
    return found


def in_mount_namespace(script: str, project: Project, *other: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script in which {build} and {other} are builds, where file systems may be mounted.

    {compiler} is the command line without a verb.
    """
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("needs the right to mount in a namespace of its own (run as root; apt-get install util-linux)")
    compiler = [sys.executable, "-m", "compiler"]
    base = [*compiler, *map(str, project.base)]
    text = script.format(build=shlex.join(base), other=shlex.join([*base, *other]), compiler=shlex.join(compiler))
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", text],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
