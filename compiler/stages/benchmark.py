"""Benchmark: the contenders and the baseline, measured together on this host until what matters is certain."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from compiler import bundle
from compiler.limits import Between
from compiler.runtime.arrivals import under_load
from compiler.runtime.depths import merge
from compiler.runtime.first_answer import first_answers
from compiler.runtime.measure import RAW, RESULT, measure
from compiler.stage import CANDIDATES, read_facts, report_progress
from compiler.stages._measurement import Count, Measurement, images_of
from compiler.stages.sweep import CURVES

SCREEN_RAW = f"screen-{RAW}"
MAX_ROUNDS = 20


@dataclasses.dataclass(kw_only=True)
class Benchmark(Measurement):
    """Writes `measurement.json` and the raw samples: `latencies.npz`, and those of the screening where there was one.

    All candidates that contend are inputs of this one step, because only interleaved measurements compare. Protocol:
    rounds in which each candidate and a fixed reference have a fresh process, pinned to `threads` cores (fewer where
    this host has fewer), and take turns in random order; at least `min_calls` calls and `min_seconds` seconds each.
    After `rounds` rounds it stops as soon as what selection needs is certain; after `max_rounds` (null: 20, or
    `rounds` where that is too few for an interval) or `max_seconds` in any case. A bound on p99 raises `min_calls` to
    what a p99 needs. With `arrival_rate_per_s`, requests at that rate follow; with `first_answer`, starts of fresh
    processes.
    """

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples", "candidate": CANDIDATES}

    objective: str = "latency"
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    first_answer: bool = False
    rounds: Count = 6
    max_rounds: Count | None = None
    min_calls: Count = 100
    min_seconds: Annotated[float, Between(0)] = 1.0
    max_seconds: Annotated[float, Between(0)] = 240.0
    arrival_rate_per_s: Annotated[float, Between(0, above=True)] | None = None

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`.

        `inputs` has one role `candidate/<id>` for each candidate that contends, and `screen` or `sweep` where there
        was one: after a sweep each candidate is measured at its own point.
        """
        from compiler.runtime import host
        from compiler.runtime.statistics import LEAST_CALLS_P99, LEAST_ROUNDS

        most = self.max_rounds or (MAX_ROUNDS if self.rounds >= LEAST_ROUNDS else self.rounds)
        first = next((inputs[name] for name in ("screen", "sweep") if name in inputs), None)
        brief = read_facts(first) if first else None
        points = (brief or {}).get("points", {})
        entries = [
            dataclasses.replace(entry, options={**entry.options, **points.get(entry.id, {})})
            for entry in self.entries(inputs)
        ]
        native = self.is_target(host.describe())
        calls = self.min_calls
        if self.latency_p99_ms is not None and self.rounds >= LEAST_ROUNDS:
            calls = max(calls, -(-LEAST_CALLS_P99 // self.rounds))
        protocol = {
            "depth": "confirm", "rounds": self.rounds, "max_rounds": most, "min_calls": calls,
            "min_seconds": self.min_seconds, "max_seconds": self.max_seconds, "seed": self.seed,
            "threads": self.usable_threads(),
        }  # fmt: skip
        decisions = {
            "objective": self.objective,
            "latency_p95_ms": self.latency_p95_ms if native else None,
            "latency_p99_ms": self.latency_p99_ms if native else None,
        }
        with bundle.temporary(out.parent) as folder:
            bundle.write(folder, entries, images_of(inputs["samples"]), protocol, self.baseline, decisions)
            measured = measure(folder, out, report_progress)
            if self.arrival_rate_per_s is not None:
                names = sorted(measured["candidates"])
                load = under_load(
                    folder, names, self.arrival_rate_per_s, self.seed, lambda what: report_progress(0, 1, what)
                )
                for name, figures in load.items():
                    measured["candidates"][name]["load"] = figures
            if self.first_answer:
                names = sorted(measured["candidates"])
                for name, figures in first_answers(folder, names, lambda what: report_progress(0, 1, what)).items():
                    measured["candidates"][name]["first_answer_ms"] = figures
        for entry in entries:
            if entry.id in measured["candidates"]:
                measured["candidates"][entry.id]["size_bytes"] = entry.size_bytes
        if brief is not None and first is not None:
            measured = {**merge(brief, measured), "points": points}
            for name, kept in ((RAW, SCREEN_RAW), (CURVES, CURVES)):
                if (first / name).is_file():
                    (out / kept).write_bytes((first / name).read_bytes())
        else:
            for figures in measured["candidates"].values():
                figures["depth"] = "confirm"
        (out / RESULT).write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
        measured.pop("facts")  # round by round they are in the file
        return {**measured, "is_target": native}
