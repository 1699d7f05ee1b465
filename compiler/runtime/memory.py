"""How much memory there is, and how much a process has: read from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from compiler.runtime import control_group


def resident_mb(pid: int) -> float:
    """Resident set of a process in MB (2^20 bytes); 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def private_mb(pid: int) -> float:
    """Memory in MB (2^20 bytes) that a process and all that it started have for themselves.

    What is mapped from files is not counted, because the system can take it back.
    """
    pages = 0
    for process in descendants(pid):
        try:
            _, resident, shared, *_ = map(int, Path(f"/proc/{process}/statm").read_text().split())
        except (OSError, ValueError):
            continue
        pages += resident - shared
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def descendants(pid: int) -> Iterator[int]:
    """A process, and every one that it or one of these has started, as far as they still have a parent among them."""
    queue = [pid]
    while queue:
        process = queue.pop()
        yield process
        try:
            threads = os.listdir(f"/proc/{process}/task")  # noqa: PTH208 - names are all that is needed
        except OSError:
            continue
        for thread in threads:
            queue += map(int, _read(f"/proc/{process}/task/{thread}/children").split())


def total_mb() -> float:
    """Memory in MB (2^20 bytes) that the host has, or the control group may use where that is less."""
    match = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    total = int(match.group(1)) / 1024 if match else float("inf")
    return min(total, control_group.memory_limit_mb() or total)


def available_mb() -> float:
    """Memory that processes here can still get, in MB: the host's, or the control group's where that is less."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    free = int(match.group(1)) / 1024 if match else float("inf")
    left = control_group.memory_free_mb()
    free = free if left is None else min(free, left)
    return max(0.0, free)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
