"""Workers: limits, whole process groups, what a failure leaves for its diagnosis, and that it is never reused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Done, Project
from processes import processes, start, wait_for, wait_for_worker, wait_until, workers

TESTS = ROOT / "tests"
RAISES = 'raise ValueError("a private stage\'s own exception")'
SLOW = ("candidates=[null_slow]", "candidate.null_slow.steps.convert.delay_s=600")


@pytest.fixture
def unruly(tmp_path: Path) -> Iterator[Project]:
    """A project with a candidate of the private backend of misbehaving stages; no process may outlive the test."""
    (tmp_path / "conf/candidate").mkdir(parents=True)
    (tmp_path / "conf/candidate/unruly.yaml").write_text(
        "backend: unruly.backend\nruntime: 'null'\nprecision: fp32\nafter: samples\nartifact: model.npz\n"
        "steps: {misbehave: {}}\n"
    )
    project = Project(tmp_path)
    project.base = ["--config-dir", str(tmp_path / "conf"), *project.base, "candidates=[unruly]"]
    yield project
    assert not processes(project)


def _failed(project: Project, *overrides: str, cwd: Path = TESTS) -> Done:
    """A build whose only candidate misbehaves; nothing that it started is left."""
    done = project.build(*overrides, cwd=cwd)
    assert done.code == 5, done.err
    assert not processes(project)
    return done


def _reproduce(done: Done) -> str:
    return next(line for line in done.err.splitlines() if "reproduce: " in line).partition("reproduce: ")[2]


def _pasted(line: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The line in a shell that knows nothing, elsewhere."""
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd="/", env=settings, capture_output=True, text=True, check=False, timeout=60
    )


# -- limits --------------------------------------------------------------------------------------------------------


def test_step_over_its_memory_limit_is_ended_with_all_that_it_started_and_named(unruly: Project) -> None:
    """It is not the worker that holds the memory, but a process that it started."""
    done = _failed(unruly, "candidate.unruly.steps.misbehave.mb=400", "executor.memory_limit_mb=300")
    said = re.search(r"unruly\.misbehave used (\d+) MB, more than its memory limit of 300 MB", done.err)
    assert said and 300 < int(said.group(1)) < 600, done.err
    assert "raise executor.memory_limit_mb" in done.last_lines()[0]


def test_step_that_takes_too_long_is_ended_with_all_that_it_started_and_its_log_is_shown(unruly: Project) -> None:
    done = _failed(unruly, "executor.time_limit_s=5", "executor.memory_limit_mb=300")  # within the other limit
    assert "unruly.misbehave ran past its time limit of 5 s" in done.err
    shown = [int(n) for n in re.findall(r"line (\d+) of the log", done.err.partition("every candidate")[0])]
    assert shown[-15:] == list(range(15, 30)), done.err  # its end, in order
    log = Path(re.findall(r"log: (.+)", done.err)[-1].strip())
    assert log.is_file() and log.read_text().count("of the log") == 30


def test_ctrl_c_ends_all_that_a_step_started(unruly: Project) -> None:
    process = start(unruly, cwd=TESTS)
    wait_for(process, "unruly.misbehave: running")
    wait_until(lambda: len(processes(unruly)) == 2, "the step's own process")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.strip().splitlines()[-1] == "error: interrupted"
    assert not processes(unruly)


def test_step_that_fails_leaves_no_process_behind(unruly: Project) -> None:
    done = _failed(unruly, "candidate.unruly.steps.misbehave.fail=true")
    line = 1 + (TESTS / "unruly/backend.py").read_text().splitlines().index(" " * 12 + RAISES)
    assert f"ValueError: a private stage's own exception (unruly/backend.py:{line}, in run)" in done.last_lines()[1]
    assert "your own code" in done.last_lines()[0] and "library" not in done.last_lines()[0]


# -- ends ----------------------------------------------------------------------------------------------------------


def test_interrupted_build_ends_with_130_leaves_no_process_and_goes_on_where_it_was(project: Project) -> None:
    process = start(project, *SLOW)
    wait_for(process, "null_slow.convert: running")
    wait_for_worker(project)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "error: interrupted"
    assert not workers(project)
    assert list((project.artifacts / ".store/work").iterdir()) == []
    after = project.build("candidate.null_slow.steps.convert.delay_s=0", "candidates=[null_slow]")
    assert after.code == 0 and not {"samples", "export"} & set(after.executed)


def test_killed_build_takes_its_workers_along_and_the_next_one_succeeds(built: Project) -> None:
    process = start(built, *SLOW)
    wait_for(process, "null_slow.convert: running")
    wait_for_worker(built)
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not workers(built), "its worker is gone")
    done = built.build("candidate.null_slow.steps.convert.delay_s=0", "candidates=[null_slow]")
    assert done.code == 0
    assert list((built.artifacts / ".store/work").iterdir()) == []


def test_killed_worker_is_named_with_its_signal(built: Project) -> None:
    process = start(built, *SLOW)
    wait_for(process, "null_slow.convert: running")
    wait_for_worker(built)
    for pid in workers(built):
        os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5 and "null_slow.convert was killed by SIGKILL" in err


# -- failures ------------------------------------------------------------------------------------------------------


def test_failed_step_is_tried_again_and_never_reused(built: Project) -> None:
    for _ in range(2):
        done = built.build("candidate.null_int8.steps.quantize.fail=error")
        assert "null_int8.quantize: failed" in done.err
    assert done.executed == []
    assert len(list((built.artifacts / ".store/failures").iterdir())) == 1  # the last one is kept, no more


def test_reproduce_command_of_a_crash_crashes_again_wherever_it_is_pasted(built: Project) -> None:
    done = built.build("candidates=[null_int8]", "candidate.null_int8.steps.quantize.fail=crash")
    assert done.code == 5 and "was killed by SIGABRT" in done.err
    for _ in range(2):  # as often as one likes
        assert _pasted(_reproduce(done)).returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)


def test_reproduce_command_finds_a_private_backend_that_lay_in_the_builds_working_folder(
    unruly: Project, tmp_path: Path
) -> None:
    """And the folders' names may hold anything."""
    odd = tmp_path / "a 'b' $HOME ü"
    (odd / "unruly").mkdir(parents=True)
    for name in ("__init__.py", "backend.py"):
        (odd / "unruly" / name).write_bytes((TESTS / "unruly" / name).read_bytes())
    done = _failed(unruly, "candidate.unruly.steps.misbehave.fail=true", cwd=odd)
    line = _reproduce(done)
    assert "a private stage's own exception" in done.err
    pasted = _pasted(line)
    assert pasted.returncode == 5 and "a private stage's own exception" in pasted.stderr, pasted.stderr
    for pid in processes(unruly):  # the step started it, and nobody watches a step that is run by hand
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(unruly), "the process of the step run by hand is gone")


def test_reproduce_command_fails_the_same_way_and_names_secrets_without_holding_them(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_TOKEN", "hunter2")
    fail = ["candidates=[null_int8]", "candidate.null_int8.steps.quantize.fail=exception"]
    done = built.build(*fail, "executor.environment=[OWN_TOKEN]")
    line = _reproduce(done)
    assert 'OWN_TOKEN="$OWN_TOKEN"' in line and "hunter2" not in done.err
    for settings in ({}, {"OWN_TOKEN": "hunter2"}):
        pasted = _pasted(line, **settings)
        assert pasted.returncode == 5 and "ValueError: a converter's own exception" in pasted.stderr, pasted.stderr
    for path in (built.artifacts / ".store").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
