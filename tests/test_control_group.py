"""A container's CPU quota and memory limit are part of what the host is, and of how many threads are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command, environment

from compiler.runtime import control_group, host, memory, noise


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that pretends control groups: this process's paths, the mounts (`{kind: (mount, root)}`), files."""

    def make(paths: str, mounts: dict[str, tuple[str, str]], files: dict[str, str]) -> None:
        lines = [
            f"3{i} 23 0:28 {root} {tmp_path / mount} rw - "
            + ("cgroup2 x rw" if kind == "cgroup2" else f"cgroup x rw,{kind}")
            for i, (kind, (mount, root)) in enumerate(mounts.items())
        ]
        for mount, _ in mounts.values():
            (tmp_path / mount).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "cgroup").write_text(paths)
        (tmp_path / "mountinfo").write_text("\n".join(["21 1 8:1 / / rw - ext4 /dev/sda rw", *lines]) + "\n")
        monkeypatch.setattr(control_group, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(control_group, "MOUNTS", tmp_path / "mountinfo")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
        control_group._mounts.cache_clear()

    yield make
    control_group._mounts.cache_clear()


V2 = {"cgroup2": ("sys", "/")}
V1 = {"cpu,cpuacct": ("sys/cpu", "/"), "memory": ("sys/memory", "/")}


@pytest.mark.parametrize(
    ("paths", "mounts", "files", "quota", "cores", "limit"),
    [
        # version 2, seen from outside and from inside of a container
        ("0::/a/b\n", V2, {"sys/a/b/cpu.max": "50000 100000", "sys/a/b/memory.max": "1073741824"}, 0.5, 1, 1024),
        ("0::/\n", V2, {"sys/cpu.max": "250000 100000\n", "sys/memory.max": "max\n"}, 2.5, 2, None),
        # the tightest limit of all groups around it counts
        ("0::/a/b\n", V2, {"sys/a/b/cpu.max": "max 100000", "sys/a/cpu.max": "300000 100000"}, 3.0, 3, None),
        ("0::/a/b\n", V2, {"sys/a/b/memory.max": "8388608", "sys/a/memory.max": "4194304"}, None, 8, 4),
        # version 1
        ("4:memory:/a\n3:cpu,cpuacct:/a\n", V1,
         {"sys/cpu/a/cpu.cfs_quota_us": "150000", "sys/cpu/a/cpu.cfs_period_us": "100000",
          "sys/memory/a/memory.limit_in_bytes": "2147483648"}, 1.5, 1, 2048),
        ("4:memory:/\n3:cpu,cpuacct:/\n", V1,
         {"sys/cpu/cpu.cfs_quota_us": "-1", "sys/cpu/cpu.cfs_period_us": "100000",
          "sys/memory/memory.limit_in_bytes": "9223372036854771712"}, None, 8, None),
        # a container whose path is the host's, while its mount shows its own group as the root
        ("0::/docker/abc\n", {"cgroup2": ("sys", "/docker/abc")}, {"sys/cpu.max": "100000 100000"}, 1.0, 1, None),
        # nothing to read, or nonsense
        ("", {}, {}, None, 8, None),
        ("0::/a\n", V2, {"sys/a/cpu.max": "fast\n", "sys/a/memory.max": ""}, None, 8, None),
        ("0::/a\n", V2, {"sys/a/cpu.max": "100 0"}, None, 8, None),
        ("0::/a\n", V2, {"sys/a/cpu.max": "9900000 100000"}, 99.0, 8, None),
    ],
)  # fmt: skip
def test_limits_are_read_from_both_versions_of_control_groups(
    tree: Any, paths: str, mounts: Any, files: dict[str, str], quota: float | None, cores: int, limit: float | None
) -> None:
    tree(paths, mounts, files)
    assert control_group.cpu_quota() == quota
    assert control_group.usable_cores() == cores
    assert control_group.memory_limit_mb() == limit


def test_throttled_periods_and_free_memory_are_counted(tree: Any) -> None:
    files = {
        "sys/a/cpu.stat": "usage_usec 1\nnr_periods 39\nnr_throttled 36\nthrottled_usec 5\n",
        "sys/a/memory.max": str(100 << 20), "sys/a/memory.current": str(30 << 20),
    }  # fmt: skip
    tree("0::/a\n", V2, files)
    assert control_group.throttled_periods() == 36
    assert control_group.memory_free_mb() == 70 and memory.available_mb() <= 70 and memory.total_mb() == 100


def test_limits_change_the_hosts_description_and_fingerprint(tree: Any) -> None:
    tree("", {}, {})
    host.profile.cache_clear()
    free = host.describe()
    tree("0::/a\n", V2, {"sys/a/cpu.max": "50000 100000", "sys/a/memory.max": str(512 << 20)})
    host.profile.cache_clear()
    limited = host.describe()
    host.profile.cache_clear()
    assert (free["cpu_quota"], free["memory_limit_mb"], free["cores"]) == (None, None, 8)
    assert (limited["cpu_quota"], limited["memory_limit_mb"], limited["cores"]) == (0.5, 512, 1)
    assert limited["memory_mb"] <= 512 and limited["fingerprint"] != free["fingerprint"]


def test_throttled_periods_make_a_figure_unstable() -> None:
    import numpy as np

    calm = {
        "round_seconds": 1.0, "others_share": 0.0, "steal_share": 0.0, "seconds": 1.0, "switches": 3, "void": 0,
        "mhz": [], "governor": "", "temperature_c": None, "load_average": 0.1, "throttled_periods": 0,
    }  # fmt: skip
    idle = {"quiet": True, "others_share": 0.01, "switches_per_s": 5.0, "reference_spread": 0.004}
    rounds = [[np.ones(20)] * 10] * 2
    assert noise.reasons(rounds, [calm] * 2, 0.0, idle, [calm] * 2) == []
    stopped = {**calm, "throttled_periods": 18}
    assert noise.reasons(rounds, [stopped] * 2, 0.0, idle, [calm] * 2) == [
        "the CPU quota of the container stopped it in 36 periods"
    ]


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real control group with half a core's time."""
    for parent, setting in (
        (Path("/sys/fs/cgroup/cpu"), (("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000"))),
        (Path("/sys/fs/cgroup"), (("cpu.max", "50000 100000"),)),
    ):
        group = parent / f"compiler-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, value in setting:
                (group / name).write_text(value)
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("needs root and a writable cgroup file system: run it as root outside of a container")


def test_real_quota_is_seen_by_doctor_and_limits_the_threads(half_a_core: Path) -> None:
    code = (
        "import os, sys, runpy, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "sys.argv = ['compiler', 'doctor', '--json', 'target=host']; runpy.run_module('compiler', run_name='__main__')"
    )
    inside = subprocess.run(
        [sys.executable, "-c", code, half_a_core],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert inside.returncode == 0, inside.stderr
    limited = json.loads(inside.stdout)["host"]
    free = json.loads(command("doctor", "--json", "target=host").out)["host"]
    assert (limited["cpu_quota"], limited["cores"]) == (0.5, 1)
    assert limited["fingerprint"] != free["fingerprint"]
