"""One visit: opens one candidate in a fresh, pinned process, warms up, times calls, writes what it saw.

python -m compiler.runtime.visit BUNDLE CANDIDATE OUT
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

WARMUP_WINDOW = 25
WARMUP_AGREEMENT = 0.03
WARMUP_MAX_WINDOWS = 40
WARMUP_MAX_SECONDS = 5.0
MAX_SECONDS = 20.0
MIN_CALLS_WHEN_SLOW = 5


def main(argv: list[str]) -> int:
    """Runs the visit that the arguments name."""
    bundle, candidate, out = Path(argv[0]), argv[1], Path(argv[2])
    spec = json.loads((bundle / "bundle.json").read_text())
    entry = next(c for c in spec["candidates"] if c["id"] == candidate)
    protocol = spec["protocol"]
    cores = sorted(os.sched_getaffinity(0))[: int(entry.get("threads", protocol["threads"]))]
    os.sched_setaffinity(0, cores)

    import numpy as np

    from compiler.runtime.preprocess import encode
    from compiler.runtime.session import open_model

    inputs: list[list[Any]] = [[]]
    if entry["signature"]["inputs"]:
        images = np.load(bundle / "samples.npy", allow_pickle=False)
        values = encode(images, entry["signature"])
        batch = entry["signature"]["inputs"][0]["shape"][0]
        inputs = [[values[i : i + batch]] for i in range(0, len(values) - batch + 1, batch)]
    steal_before = _stolen_ticks()
    rss_before = _status_kb("VmRSS")
    started = time.perf_counter_ns()
    session = open_model(entry["runtime"], bundle / entry["file"], {"threads": len(cores), **entry["options"]})
    loaded = time.perf_counter_ns()
    session.run(inputs[0])
    first = time.perf_counter_ns()
    gc.collect()
    gc.disable()
    warmup = _warm_up(session, inputs)
    switches_before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    busy_before, own_before, wall_before = _busy_seconds(), time.process_time(), time.monotonic()
    times = _time_calls(session, inputs, int(protocol["min_calls"]), float(protocol["min_seconds"]))
    wall = time.monotonic() - wall_before
    others = _busy_seconds() - busy_before - (time.process_time() - own_before)
    seen = {
        "others_cpu_share": max(0.0, others) / (wall * (os.cpu_count() or 1)),
        "seconds": wall,
        "load_ms": (loaded - started) / 1e6,
        "first_call_ms": (first - loaded) / 1e6,
        "warmup_calls": warmup,
        "peak_memory_mb": max(0, _status_kb("VmHWM") - rss_before) / 1024,
        "process_memory_mb": _status_kb("VmHWM") / 1024,
        "involuntary_switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches_before,
        "stolen_ticks": _stolen_ticks() - steal_before,
    }
    np.save(out.with_suffix(".npy"), np.asarray(times, np.int64))
    out.write_text(json.dumps(seen))
    return 0


def _warm_up(session: Any, inputs: list[list[Any]]) -> int:
    """Calls until three windows' medians agree, within a cap; returns how many calls that took."""
    import statistics

    medians: list[float] = []
    deadline = time.monotonic() + WARMUP_MAX_SECONDS
    while len(medians) < WARMUP_MAX_WINDOWS:
        medians.append(statistics.median(_time_calls(session, inputs, WARMUP_WINDOW, 0.0)))
        last = medians[-3:]
        if len(last) == 3 and max(last) - min(last) <= WARMUP_AGREEMENT * min(last):
            break
        if time.monotonic() > deadline:
            break
    return len(medians) * WARMUP_WINDOW


def _time_calls(session: Any, inputs: list[list[Any]], calls: int, seconds: float) -> list[int]:
    """Latencies in nanoseconds of at least `calls` calls and `seconds` seconds; of fewer where the model is slow."""
    times: list[int] = []
    clock = time.perf_counter_ns
    run = session.run
    count = len(inputs)
    begin = clock()
    while True:
        value = inputs[len(times) % count]
        start = clock()
        run(value)
        end = clock()
        times.append(end - start)
        spent = (end - begin) / 1e9
        if len(times) >= calls and spent >= seconds:
            return times
        if spent > MAX_SECONDS and len(times) >= MIN_CALLS_WHEN_SLOW:
            return times


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def _busy_seconds() -> float:
    """Seconds that all cores together have worked for anybody since boot."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _stolen_ticks() -> int:
    """Time the hypervisor gave to others, over all cores, in clock ticks."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) if len(fields) > 8 else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # some runtimes crash in their exit handlers, after everything was measured
