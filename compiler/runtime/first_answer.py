"""From the start of a process to its first answer: what a serverless function or a command line waits for.

Interpreter, imports, opening the model, preprocessing one sample, the first call. The files are in the page cache: a
first start after a boot takes longer.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compiler.runtime.visitor import Visitor, pool_threads

STARTS = 6
"""The worst of six starts lies above the median start with a probability of 98 % (1 - 2 ** -6)."""


def first_answers(bundle: Path, names: list[str], report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """For each of `names`: `p50` and `worst` of `starts` fresh processes, in ms.

    They take turns, so that what changes slowly changes all alike; nothing else of the measurement runs meanwhile.

    Raises:
        StepError: a process failed or took too long.
    """
    spec: Mapping[str, Any] = json.loads((bundle / "bundle.json").read_text())
    entries = {entry["id"]: entry for entry in spec["candidates"]}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(STARTS):
        for name in names:
            report(f"first answer of {name}, start {number + 1} of {STARTS}")
            started = time.monotonic()
            with Visitor(bundle, name, pool_threads(entries[name], spec["protocol"])) as visitor:
                visitor.ready()
                # CLOCK_MONOTONIC is one clock for all processes of a Linux host
                times[name].append(1e3 * (visitor.ask("first")["answered_at"] - started))
    return {
        name: {"p50": round(statistics.median(taken), 3), "worst": round(max(taken), 3), "starts": STARTS}
        for name, taken in times.items()
    }
