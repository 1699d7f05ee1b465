"""What a container may use: CPU quota and memory limit of this process's control group, cgroup v1 and v2.

`docker run --cpus=0.5` leaves every core to see and takes half a core's time away: affinity says nothing of it.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/; scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/proc/self/cgroup")
MOUNTS = Path("/proc/self/mountinfo")
UNLIMITED_MB = 1 << 40
"""cgroup v1 writes the largest page-aligned number for no limit."""


def cpu_quota() -> float | None:
    """Cores' worth of time that this process may use, 0.5 for half a core; None where it is not limited."""
    found = []
    for group in _groups("cpu"):
        quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found) if found else None


def memory_limit_mb() -> float | None:
    """Memory in MB (2^20 bytes) that this process's control group may use; None where it is not limited."""
    found = [most for most, _ in _memory()]
    return min(found) if found else None


def memory_free_mb() -> float | None:
    """What is left of that limit, in MB; None where there is none."""
    found = [max(0.0, most - used) for most, used in _memory()]
    return min(found) if found else None


def throttled_periods() -> int:
    """How often the quota has stopped this process's control group, or one around it, since it was made."""
    count = 0
    for group in _groups("cpu"):
        for line in _read(group / "cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled" and value.isdigit():
                count += int(value)
    return count


def usable_cores() -> int:
    """Cores that threads can keep busy: those this process may run on, within its quota, and at least one."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    # rounded down: with 1.5 cores' worth of time two busy threads would be stopped in every period
    return cores if quota is None else max(1, min(cores, int(quota + 1e-6)))


def _memory() -> list[tuple[float, float]]:
    """Limit and use in MB of each control group around this process that has a limit."""
    found = []
    for group in _groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _read(group / limit), _read(group / used)
            if most.isdigit() and int(most) >> 20 < UNLIMITED_MB:
                found.append((int(most) / (1 << 20), int(now) / (1 << 20) if now.isdigit() else 0.0))
    return found


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those around it, innermost first: the tightest limit counts."""
    paths = _paths()
    for kind, mount, root in _mounts():
        path = paths.get(controller) if controller in kind else paths.get("") if kind == ("cgroup2",) else None
        if path is None:
            continue
        # a container sees the mount's root as its own group, whether or not its path says so
        inside = path.removeprefix(root) if root != "/" and path.startswith(root) else path
        group = mount / inside.strip("/")
        for folder in (group, *group.parents):
            if folder.is_dir():
                yield folder
            if folder == mount:
                break


def _paths() -> dict[str, str]:
    """Controller ("" for v2) to the path of this process's group."""
    found: dict[str, str] = {}
    for line in _read(CGROUP).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


@functools.cache
def _mounts() -> tuple[tuple[tuple[str, ...], Path, str], ...]:
    """Of each control-group file system its controllers (`("cgroup2",)` for v2), where it is mounted, and its root."""
    found = []
    for line in _read(MOUNTS).splitlines():
        fields, _, more = line.partition(" - ")
        columns, kind, options = fields.split(), more.split(" ")[:1], more.split(" ")[-1]
        if len(columns) >= 5 and kind in (["cgroup"], ["cgroup2"]):
            controllers = ("cgroup2",) if kind == ["cgroup2"] else tuple(options.split(","))
            found.append((controllers, Path(columns[4]), columns[3]))
    return tuple(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
