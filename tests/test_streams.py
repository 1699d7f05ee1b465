"""Standard streams that are closed or full: no traceback, and the exit codes that the docs name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONF, First, Project, environment

CLOSED = ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]
FULL = [">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]


def _shell(words: list[object], redirection: str, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code, and all that was written where it was not redirected."""
    quoted = " ".join(f"'{word}'" for word in [sys.executable, "-m", "compiler", *words])
    done = subprocess.run(
        ["sh", "-c", f"exec {quoted} {redirection}"], capture_output=True, text=True, env=environment(), cwd=cwd,
        check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("redirection", CLOSED)
@pytest.mark.parametrize("verb", ["plan", "show", "verify", "nope", "help"])
def test_closed_stream_is_as_one_that_nobody_reads(first: First, redirection: str, verb: str) -> None:
    project = first.project
    words: dict[str, list[object]] = {
        "plan": ["plan", *project.base], "show": ["show", project.latest], "verify": ["verify", project.latest],
        "nope": ["nope"], "help": ["--help"],
    }  # fmt: skip
    code, said = _shell(words[verb], redirection)
    assert code == (2 if verb == "nope" else 0)
    assert "Traceback" not in said and "internal error" not in said
    if verb == "nope" and "2>&-" in redirection:
        assert said == ""  # an error is not printed to standard output because standard error is closed


@pytest.mark.parametrize("redirection", FULL)
@pytest.mark.parametrize("verb", ["plan", "show", "nope"])
def test_full_stream_is_an_error_only_where_the_answer_is_lost(first: First, redirection: str, verb: str) -> None:
    words: list[object] = {
        "plan": ["plan", *first.project.base], "show": ["show", first.project.latest], "nope": ["nope"],
    }[verb]  # fmt: skip
    code, said = _shell(words, redirection)
    assert code == (2 if verb == "nope" else 5 if redirection.startswith(">") else 0)
    assert "Traceback" not in said


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&- <&-", "2>/dev/full", ">/dev/full"])
def test_a_build_whose_streams_are_closed_or_full_is_delivered_whole(project: Project, redirection: str) -> None:
    code, said = _shell(list(project.base), redirection)
    assert code == (5 if redirection == ">/dev/full" else 0) and "Traceback" not in said
    assert _shell(["verify", project.latest], "")[0] == 0
    quarantine = project.artifacts / ".store" / "quarantine"
    assert not quarantine.exists() or not list(quarantine.iterdir())
    assert CONF.is_dir() and project.build().executed == []
