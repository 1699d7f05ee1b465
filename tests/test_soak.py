"""Long tests, run by `make soak`, and a seeded sample of each, run by `make test`."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Project, command, environment


def _interrupt(project: Project, moment: int) -> bool:
    """Ends a build at its `moment`-th moment, builds again; whether the first had really been ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "compiler", *map(str, project.base), f"seed={moment}"],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(0.3 + 0.06 * moment)
    process.send_signal(signal.SIGKILL if moment % 2 else signal.SIGINT)
    ended = process.wait(timeout=30) != 0
    done = project.build(f"seed={moment}")
    assert done.code == 0, (moment, done.err)
    assert command("verify", done.manifest_path.parent).code == 0
    return ended


@pytest.mark.soak
def test_builds_ended_at_many_moments_all_go_on_to_the_same_end(project: Project) -> None:
    """SIGINT and SIGKILL at 40 moments of a build; the next build needs no help and what it makes verifies."""
    assert sum(_interrupt(project, moment) for moment in range(40)) >= 20


def test_builds_ended_at_some_moments_go_on_to_the_same_end(project: Project) -> None:
    """A seeded sample of the soak test."""
    for moment in random.Random(0).sample(range(40), 4):
        _interrupt(project, moment)


@pytest.mark.soak
@pytest.mark.timeout(1600)
def test_measurements_are_rarely_wrong_and_say_when_the_host_is_busy(tmp_path: Path) -> None:
    """A small sample of `make error-rates`: no win of an artifact over itself, and busy hosts are flagged."""
    out = tmp_path / "rates.json"
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "error_rates.py", "--pairs", "12", "--load-pairs", "6", "--out", out],
        cwd=ROOT, env=environment(), capture_output=True, check=True, timeout=1500,
    )  # fmt: skip
    rates = json.loads(out.read_text())
    assert rates["alone"]["false_wins_not_flagged"] == 0
    for name, figures in rates.items():
        if name.startswith("beside"):
            assert figures["false_wins_not_flagged"] == 0 and figures["flagged_percent"] == 100
