"""Open-loop load: what a request waits for when requests arrive at a stated rate, answered or not.

Arrivals are a Poisson process. A request's time runs from when it was due to when its answer is there, queue
included; a loop that asks again only after each answer would hide the queue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compiler.runtime.visitor import Visitor, pool_threads

VISITS = 3
LEAST_REQUESTS = 400
SHORTEST_S, LONGEST_S = 3.0, 60.0
SATURATED = 0.95
"""Below this share of the stated rate the candidate does not keep up."""


def under_load(
    bundle: Path, names: list[str], rate_per_s: float, seed: int, report: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """For each of `names`: `rate_per_s`, `p50`, `p95`, `p99` and `p99_worst` (the worst visit's) in ms, `n`, `kept_up`.

    Each candidate has `VISITS` fresh processes. p99 is None below 1,000 requests.
    """
    import numpy as np

    from compiler.runtime.statistics import LEAST_CALLS_P99

    spec: Mapping[str, Any] = json.loads((bundle / "bundle.json").read_text())
    entries = {entry["id"]: entry for entry in spec["candidates"]}
    seconds = min(LONGEST_S, max(SHORTEST_S, LEAST_REQUESTS / rate_per_s))
    found = {}
    for name in names:
        visits, achieved = [], []
        for number in range(VISITS):
            report(f"{name} at {rate_per_s:g} requests a second, visit {number + 1} of {VISITS}")
            with Visitor(bundle, name, pool_threads(entries[name], spec["protocol"])) as visitor:
                visitor.ready()
                visitor.ask("open")
                visitor.ask("warm")
                answer = visitor.ask("arrivals", rate=rate_per_s, seconds=seconds, seed=seed + number)
            visits.append(np.asarray(answer["times"], np.float64) / 1e6)
            # the time of the schedule against the time it took: below 1 the queue grew
            achieved.append(min(1.0, seconds / answer["seconds"]))
        calls = np.concatenate(visits)
        p99 = [float(np.quantile(v, 0.99)) for v in visits]
        enough = len(calls) >= LEAST_CALLS_P99
        found[name] = {
            "rate_per_s": rate_per_s,
            "p50": round(float(np.median(calls)), 4),
            "p95": round(float(np.quantile(calls, 0.95)), 4),
            "p99": round(float(np.quantile(calls, 0.99)), 4) if enough else None,
            "p99_worst": round(max(p99), 4) if enough else None,
            "n": len(calls),
            "kept_up": min(achieved) >= SATURATED,
        }
    return found
