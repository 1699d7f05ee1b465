"""Programs that are asked for versions: one that hangs, floods or prints junk is an error in words within its limit."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.errors import MissingToolError
from compiler.keys import foreign, tools
from compiler.runtime import gpu
from compiler.runtime.inquiry import NoAnswerError, inquire
from compiler.runtime.memory import descendants

LIMIT_S = 1.5
PROGRAMS = {
    "hangs": "while true; do sleep 1; done",
    "is deaf": "trap '' TERM INT HUP; while true; do sleep 1; done",
    "floods": "exec cat /dev/zero",
    "floods standard error": "exec cat /dev/zero >&2",
    "closes its output and hangs": "exec >&- 2>&-; sleep 600",
    "leaves a child that holds its output": "sleep 600 & exit 3",
    "leaves a child of another session": "setsid sleep 600 & exit 3",
    "says nothing": "exit 0",
    "says nothing of what is asked": "echo hello",
    "prints escapes": "printf '\\033[31mred\\033]0;title\\007'",
    "prints what is not UTF-8": "printf '\\377\\376'",
    "prints lists a hundred thousand deep": f"{sys.executable} -c 'print(\"[\" * 100000)'",
    "prints a number": "echo 5",
    "prints other types": "echo '[[1], {}]'",
    "prints a version that is none": 'echo \'[{"torch": 5}, "CPython"]\'',
    "prints NaN": 'echo \'[{"torch": NaN}, "CPython"]\'',
    "dies": "kill -9 $$",
    "fails with escapes": "printf '\\033[31mred\\n' >&2; exit 9",
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Neither processes nor much memory."""
    before = set(descendants(os.getpid()))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert set(descendants(os.getpid())) <= before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200_000  # in KB


def _program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("does", PROGRAMS)
def test_interpreter_of_a_toolchain(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "TIME_LIMIT_S", LIMIT_S)
    program = _program(tmp_path, "python", PROGRAMS[does])
    began = time.monotonic()
    with pytest.raises(MissingToolError) as caught:
        foreign.foreign_identities(str(program), ("torch",))
    assert time.monotonic() - began < LIMIT_S + 5
    assert "cannot be run: " in caught.value.what and caught.value.what.isprintable() and caught.value.fix
    assert len(caught.value.what) < 1000


@pytest.mark.parametrize("does", PROGRAMS)
def test_nvidia_smi(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TIME_LIMIT_S", LIMIT_S)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    _program(tmp_path, "nvidia-smi", PROGRAMS[does])
    began = time.monotonic()
    assert gpu.describe.__wrapped__() == {"gpu": None, "driver": None}
    assert time.monotonic() - began < LIMIT_S + 5


@pytest.mark.parametrize("memory", ["²", "9" * 400, "1e400", "-1", "nan", ".", "1.2.3", "\x1b[31m"])
def test_nvidia_smi_with_odd_figures(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    row = tmp_path / "row"
    row.write_text(f"A\x1b[31mGPU{'x' * 1000}, 1.0, 7.5, {memory}\n")
    _program(tmp_path, "nvidia-smi", f"cat {row}")
    found = gpu.describe.__wrapped__()
    assert found["gpu_memory_mb"] == 0 and found["gpu"].isprintable() and len(found["gpu"]) <= 200
    for figure in (gpu.state, gpu.free_mb):
        assert not figure()


def test_inquiry_gives_both_outputs_and_the_exit_code(tmp_path: Path) -> None:
    program = _program(tmp_path, "tool", "echo out; echo err >&2; exit 7")
    assert inquire([str(program)], 10) == (7, "out\n", "err\n")
    with pytest.raises(NoAnswerError, match="more than 3 bytes"):
        inquire([str(program)], 10, most=3)
    with pytest.raises(OSError, match="No such file"):
        inquire([str(tmp_path / "nowhere")], 10)


@pytest.mark.parametrize("name", ["METADATA", "RECORD"])
@pytest.mark.parametrize("what", ["fifo", "device", "large", "folder"])
def test_metadata_of_a_distribution_that_is_no_file(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "odd-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: odd\nVersion: 1.0\n\n")
    path = folder / name
    path.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    monkeypatch.syspath_prepend(tmp_path)
    assert tools.Tools().identities(["odd"])["odd"].split()[0] == ("unknown" if name == "METADATA" else "1.0")
    assert tools.Tools().owners(["odd"]) == []
