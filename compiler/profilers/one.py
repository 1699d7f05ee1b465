"""Profiles one candidate of a measurement bundle in a fresh, pinned process.

python -m compiler.profilers.one BUNDLE CANDIDATE OUT [CALLS]

OUT is a folder; it gets `<candidate>.json` (see docs/profiling.md) and the raw profiles, `profile-<candidate>.*`.
Without profiling first: 20 calls to warm up, then the median of 50; the same for whole predictions from images.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError
from compiler.profilers import NoProfileError, Profiled, inside, profiler_of

WARMUP = 20
TIMED = 50
CALLS = 30
SLOW_SECONDS = 20.0
LEAST_CALLS = 3


def main(argv: list[str]) -> int:
    """Writes the profile of the candidate that the arguments name, or the error that there was."""
    bundle, candidate, out = Path(argv[0]), argv[1], Path(argv[2])
    try:
        record = observe(bundle, candidate, out, int(argv[3]) if len(argv) > 3 else CALLS)
    except CompilerError as error:
        record = error.to_json()
    (out / f"{candidate}.json").write_text(json.dumps(record, allow_nan=False))
    return 0


def observe(bundle: Path, candidate: str, out: Path, calls: int) -> dict[str, Any]:
    """Pins this process, times the candidate without profiling, then with; raw profiles go to `out`."""
    spec = json.loads((bundle / "bundle.json").read_text())
    entry = next(c for c in spec["candidates"] if c["id"] == candidate)
    threads = int(entry["options"].get("threads") or spec["protocol"]["threads"])
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)

    from compiler.runtime.inert import LARGEST_ARRAYS, load_array
    from compiler.runtime.session import open_model

    images = load_array(inside(bundle, "samples.npy"), LARGEST_ARRAYS)
    path = inside(bundle, entry["file"])
    options = {**entry["options"], "threads": len(cores)}
    session = open_model(entry["runtime"], path, options)
    batches, inputs = _inputs(images, entry["signature"], int(session.signature()["inputs"][0]["shape"][0]))
    plain = _timed(lambda i: session.run(inputs[i % len(inputs)]))
    record: dict[str, Any] = {
        "id": candidate,
        "runtime": entry["runtime"],
        "options": options,
        "plain": {"median_ms": statistics.median(plain), "calls": len(plain), "warmup_calls": min(WARMUP, len(plain))},
        "prediction": _prediction(session, batches, entry["signature"]),
    }
    seen: Profiled | None = None
    reason = None
    if statistics.median(plain) * calls > SLOW_SECONDS * 1e3:
        calls = max(LEAST_CALLS, int(SLOW_SECONDS * 1e3 / statistics.median(plain)))
    try:
        seen = profiler_of(entry["runtime"]).profile(
            session, path, options, inputs, calls, out / f"profile-{candidate}"
        )
    except NoProfileError as error:
        reason = str(error)
    record["reason"] = reason
    record["profiled_calls"] = calls if seen else None
    record["profiled"] = dataclasses.asdict(seen) if seen else None
    return record


def _inputs(images: Any, signature: dict[str, Any], batch: int) -> tuple[list[Any], list[list[Any]]]:
    """The images, uint8 (batch, height, width, 3), and the tensors, of each call; a short set fills one batch."""
    import numpy as np

    from compiler.runtime.preprocess import encode

    if len(images) < batch:
        images = np.concatenate([images] * -(-batch // len(images)))
    batches = [images[i : i + batch] for i in range(0, len(images) - batch + 1, batch)]
    return batches, [[encode(part, signature)] for part in batches]


def _prediction(session: Any, batches: list[Any], signature: dict[str, Any]) -> dict[str, float]:
    """Medians, in milliseconds, of the three parts of a prediction and their sum; nothing is profiled."""
    from compiler.runtime.preprocess import decode, encode

    parts: list[tuple[int, int, int]] = []

    def predict(i: int) -> None:
        clock = time.perf_counter_ns
        start = clock()
        values = encode(batches[i % len(batches)], signature)
        encoded = clock()
        outputs = session.run([values])
        ran = clock()
        decode(outputs[0], signature["outputs"][0])
        parts.append((encoded - start, ran - encoded, clock() - ran))

    count = len(_timed(predict))
    columns = zip(*parts[-count:], strict=True)
    encode_ms, network_ms, decode_ms = (statistics.median(column) / 1e6 for column in columns)
    total = encode_ms + network_ms + decode_ms
    return {"encode_ms": encode_ms, "network_ms": network_ms, "decode_ms": decode_ms, "total_ms": total}


def _timed(call: Callable[[int], object]) -> list[float]:
    """Milliseconds of TIMED calls after WARMUP; fewer of both where the model is slow."""
    times: list[float] = []
    begin = time.perf_counter()
    for i in range(WARMUP):
        call(i)
        if time.perf_counter() - begin > SLOW_SECONDS / 4:
            break
    begin = time.perf_counter()
    while len(times) < TIMED:
        start = time.perf_counter_ns()
        call(len(times))
        times.append((time.perf_counter_ns() - start) / 1e6)
        if time.perf_counter() - begin > SLOW_SECONDS and len(times) >= LEAST_CALLS:
            break
    return times


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # some runtimes crash in their exit handlers, after everything was written
