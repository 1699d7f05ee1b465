"""Batch x threads x streams: what each candidate does at each point, and the largest batch that memory holds.

Every point has a process of its own, which the kernel takes first when memory runs out: running out of memory ends
the point, never the measurement. The curve says where to look; what is claimed of the chosen point is measured
afterwards in interleaved rounds, like everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, MissingToolError, OutOfMemory, StepError
from compiler.runtime import gpu, host, memory
from compiler.runtime.bundle import REFERENCE, read
from compiler.runtime.names import ON_GPU
from compiler.runtime.visitor import Visitor

MEMORY_SHARE = 0.8
"""Of what is free now: the limit where no budget says less."""
LEAST_GAIN = 1.03
"""Two doublings of the batch that gain less end a curve."""
BURSTS = 5
MOST_OVER_BOUND = 1.5
"""A point so far above the latency bound ends its curve."""

Point = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """How much memory a point may take, in MB: the host's, or the GPU's."""

    mb: float
    of_gpu: bool = False


def sweep(
    bundle: Path, protocol: Mapping[str, Any], progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """The curves of every candidate in the bundle.

    `protocol`: `max_batch`, `seconds` (a point), `memory_limit_mb` and `latency_p95_ms` (or None), `threads` (list) and
    `streams` (list).

    Returns `host`, `memory_limit_mb`, and `curves`: for each candidate `points` (`batch`, `threads`, `streams`,
    `status`: `ok`, `out_of_memory`, `failed` or `refused`, and for `ok` `p50_ms`, `p95_ms`, `throughput_per_s`, `n`,
    `peak_memory_mb`, `process_memory_mb`), `largest_batch` and `best` (the point of the highest throughput within the
    bounds, or None).
    """
    spec = read(bundle)
    limit = Limit(float(protocol.get("memory_limit_mb") or MEMORY_SHARE * memory.available_mb()))
    runtimes = {entry["id"]: entry["runtime"] for entry in spec["candidates"]}
    names = [entry["id"] for entry in spec["candidates"] if entry["id"] != REFERENCE]
    tell = progress or (lambda _done, _total, _what: None)
    curves: dict[str, Any] = {}
    for number, name in enumerate(names):

        def report(point: Mapping[str, Any], name: str = name, number: int = number) -> None:
            where = f"batch {point['batch']}, {point['threads']} threads, {point['streams']} streams"
            tell(number, len(names), f"{name}: {where}")

        own = gpu_limit() if runtimes[name] in ON_GPU else limit
        points = list(_curve(bundle, name, protocol, own, report))
        best = choose(points, protocol.get("latency_p95_ms"), own.mb)
        curves[name] = {
            "points": points,
            "largest_batch": _largest_batch(bundle, name, protocol, own, points, report),
            "best": best,
            **({"gpu_memory_limit_mb": round(own.mb, 1) if own.mb < math.inf else None} if own.of_gpu else {}),
        }
    return {
        "schema_version": 1,
        "host": host.describe(),
        "protocol": {**protocol},
        "memory_limit_mb": round(limit.mb, 1),
        "curves": curves,
    }


def gpu_limit() -> Limit:
    """For candidates on a GPU: a share of its memory that is free now. A budget's limit is of the host's memory."""
    free = gpu.free_mb()
    return Limit(math.inf if free is None else MEMORY_SHARE * free, of_gpu=True)


def choose(points: list[Point], latency_p95_ms: float | None, memory_limit_mb: float) -> Point | None:
    """The point of the highest throughput whose p95 and memory lie within the bounds; the smaller batch of equals."""
    within = [
        p
        for p in points
        if p["status"] == "ok"
        and (latency_p95_ms is None or p["p95_ms"] <= latency_p95_ms)
        and (p.get("gpu_memory_mb") or p["process_memory_mb"]) <= memory_limit_mb
    ]
    if not within:
        return None
    most = max(p["throughput_per_s"] for p in within)
    near = [p for p in within if p["throughput_per_s"] * LEAST_GAIN >= most]
    return min(near, key=lambda p: (p["batch"], p["streams"], p["threads"]))


def _curve(
    bundle: Path, name: str, protocol: Mapping[str, Any], limit: Limit, report: Callable[[Point], None]
) -> Iterator[Point]:
    bound = protocol.get("latency_p95_ms")
    for threads in protocol["threads"]:
        for streams in protocol["streams"]:
            if threads * streams > host.profile()["cores"]:
                continue
            seen: list[float] = []
            batch = 1
            while batch <= int(protocol["max_batch"]):
                place = {"batch": batch, "threads": threads, "streams": streams}
                report(place)
                point = place | _measure(bundle, name, place, float(protocol["seconds"]), limit)
                yield point
                if point["status"] != "ok":
                    break
                seen.append(point["throughput_per_s"])
                flat = len(seen) > 2 and max(seen[-2:]) < LEAST_GAIN * max(seen[:-2])
                if flat or (bound is not None and point["p95_ms"] > MOST_OVER_BOUND * bound):
                    break
                batch *= 2


def _measure(bundle: Path, name: str, place: Point, seconds: float, limit: Limit) -> Point:
    import numpy as np

    def timed(visitor: Visitor) -> Point:
        visitor.ask("warm")
        parts = [visitor.ask("burst", calls=2, seconds=seconds / BURSTS) for _ in range(BURSTS)]
        times = np.concatenate([np.asarray(part["times"], np.float64) / 1e6 for part in parts])
        spent = sum(part["seconds"] for part in parts)
        return {
            "p50_ms": round(float(np.median(times)), 5),
            "p95_ms": round(float(np.quantile(times, 0.95)), 5),
            "throughput_per_s": round(len(times) * place["batch"] / spent, 2),
            "n": len(times),
        }

    return _visit(bundle, name, place, limit, timed)


def _visit(
    bundle: Path, name: str, place: Point, limit: Limit, work: Callable[[Visitor], Point] | None = None
) -> Point:
    """Opens a point, makes its first call and does `work`; how it ended goes into `status`."""
    try:
        with Visitor(bundle, name, place["threads"], None if limit.of_gpu else limit.mb, place) as visitor:
            visitor.ready()
            visitor.ask("open")
            found = work(visitor) if work else {}
            used = visitor.ask("memory")
            on_gpu = used.get("gpu_memory_mb")
            if limit.of_gpu and on_gpu is not None and on_gpu > limit.mb:
                raise OutOfMemory(f"{name} needs {on_gpu:.0f} MB of the GPU's memory", fix="a smaller batch")
    except OutOfMemory as error:
        return {"status": "out_of_memory", "reason": error.what}
    except MissingToolError as error:
        return {"status": "failed", "reason": error.what}
    except StepError as error:
        refused = any("ConfigError" in line for line in (error.what, *error.details))
        return {"status": "refused" if refused else "failed", "reason": error.what}
    known = {k: used.get(k) for k in ("peak_memory_mb", "process_memory_mb", "gpu_memory_mb")}
    return {"status": "ok", **found, **{k: round(v, 3) for k, v in known.items() if v is not None}}


def _largest_batch(
    bundle: Path,
    name: str,
    protocol: Mapping[str, Any],
    limit: Limit,
    points: list[Point],
    report: Callable[[Point], None],
) -> Point | None:
    """The largest batch of one call within the memory limit, to an eighth; up to `max_batch`.

    `exhausted` says whether memory was what ended the search.
    """
    threads = max(protocol["threads"])
    fits = max((p["batch"] for p in points if p["status"] == "ok" and p["streams"] == 1), default=0)
    fails = min((p["batch"] for p in points if p["status"] == "out_of_memory" and p["streams"] == 1), default=0)
    most = int(protocol["max_batch"])
    if not fits:
        return None

    def possible(batch: int) -> bool:
        place = {"batch": batch, "threads": threads, "streams": 1}
        report(place)
        return bool(_visit(bundle, name, place, limit)["status"] == "ok")

    while not fails and fits < most:
        batch = min(2 * fits, most)
        if possible(batch):
            fits = batch
        else:
            fails = batch
    while fails and fails - fits > max(1, fits // 8):
        batch = (fits + fails) // 2
        if possible(batch):
            fits = batch
        else:
            fails = batch
    return {"batch": fits, "threads": threads, "exhausted": bool(fails)}


def check(protocol: Mapping[str, Any]) -> None:
    """Refuses protocols that measure nothing.

    Raises:
        ConfigError: no threads, no streams, no batch.
    """
    for name in ("threads", "streams"):
        if not protocol[name] or min(protocol[name]) < 1:
            raise ConfigError(f"steps.sweep.{name} is {protocol[name]}", fix="give a list of numbers of at least 1")
    if int(protocol["max_batch"]) < 1 or float(protocol["seconds"]) < 0:
        raise ConfigError("steps.sweep needs max_batch of at least 1 and seconds of at least 0", fix="correct it")
