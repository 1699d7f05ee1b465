"""Sweep: batch x threads x streams of every candidate and the baseline, latency against throughput."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from compiler import bundle
from compiler.errors import StepError
from compiler.limits import Between
from compiler.runtime import sweep
from compiler.runtime.names import MAX_BATCH
from compiler.stage import report_progress, write_json
from compiler.stages._measurement import Count, Measurement, images_of

CURVES = "curves.json"


@dataclasses.dataclass(kw_only=True)
class Sweep(Measurement):
    """Writes `curves.json` (see `compiler.runtime.sweep`); the facts are figures of each candidate's best point.

    `thread_counts`, `stream_counts`: empty for the powers of two up to the target's threads. `memory_limit_mb` and
    `latency_p95_ms` bound the point that is chosen; without a limit it is four fifths of what is free.
    """

    max_batch: Annotated[int, Between(1, MAX_BATCH)] = 64
    seconds: Annotated[float, Between(0)] = 0.5
    thread_counts: tuple[Count, ...] = ()
    stream_counts: tuple[Count, ...] = ()
    memory_limit_mb: float | None = None
    latency_p95_ms: float | None = None

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. `inputs` has one role `candidate/<id>` for each candidate that was built.

        Raises:
            StepError: the baseline ran at no point.
        """
        powers = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < self.usable_threads()] + [self.usable_threads()]
        protocol = {
            "max_batch": self.max_batch, "seconds": self.seconds, "memory_limit_mb": self.memory_limit_mb,
            "latency_p95_ms": self.latency_p95_ms, "threads": list(self.thread_counts) or powers,
            "streams": list(self.stream_counts) or powers,
        }  # fmt: skip
        sweep.check(protocol)
        entries = self.entries(inputs)
        with bundle.temporary(out.parent) as folder:
            spec = {"depth": "sweep", "threads": self.usable_threads(), "seed": self.seed}
            bundle.write(
                folder, entries, images_of(inputs["samples"]), spec, self.baseline, {"objective": "throughput"}
            )
            found = sweep.sweep(folder, protocol, report_progress)
        write_json(out / CURVES, found)
        curves = found["curves"]
        base = curves.get(self.baseline, {}).get("best") or _fastest(curves.get(self.baseline, {}).get("points", []))
        if base is None:
            raise StepError(
                f"the baseline {self.baseline} ran at no point of the sweep",
                fix="see its reasons above",
                details=[str(p.get("reason")) for p in curves.get(self.baseline, {}).get("points", [])][-3:],
            )
        sizes = {entry.id: entry.size_bytes for entry in entries}
        rows, failed, points = {}, {}, {}
        for name, curve in curves.items():
            point = curve["best"] or _fastest(curve["points"])
            if point is None:
                failed[name] = "; ".join(sorted({str(p.get("reason", p["status"])) for p in curve["points"]}))[:300]
                continue
            rows[name] = _row(point, base, sizes[name])
            points[name] = {key: point[key] for key in ("batch", "threads", "streams")}
        return {
            "host": found["host"],
            "is_target": self.is_target(found["host"]),
            "protocol": {**spec, **protocol},
            "idle": {},
            "reference_drift": 0.0,
            "undecided": [],
            "speedup_reference": self.baseline,
            "candidates": rows,
            "failed": failed,
            "absent": {},
            "pairs": [],
            "points": points,
            "memory_limit_mb": found["memory_limit_mb"],
            "within_bounds": {name: curve["best"] is not None for name, curve in curves.items()},
            "largest_batch": {name: curve["largest_batch"] for name, curve in curves.items()},
        }


def _fastest(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The point of least latency among those that ran: what is left where none lies within the bounds."""
    ran = [p for p in points if p["status"] == "ok"]
    return min(ran, key=lambda p: p["p95_ms"]) if ran else None


def _row(point: Mapping[str, Any], base: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A candidate's figures in the form of a measurement's, as far as a sweep knows them."""
    ratio = round(point["throughput_per_s"] / base["throughput_per_s"], 4)
    p50, p95 = point["p50_ms"], point["p95_ms"]
    latency = {
        "p50": p50, "p90": p95, "p95": p95, "p95_lower": p95, "p95_upper": p95, "p99": None, "p99_lower": None,
        "p99_upper": None, "mean": p50, "mad": 0.0, "ci95": [p50, p50], "n": point["n"], "rounds": 1,
        "batch": point["batch"], "threads": point["threads"], "streams": point["streams"], "stable": False,
        "unstable_reasons": ["one visit of the sweep, no rounds"],
    }  # fmt: skip
    return {
        "latency_ms": latency, "speedup": ratio, "speedup_ci95": None, "speedup_rounds": [ratio],
        "throughput_per_s": point["throughput_per_s"], "load_ms": None, "first_call_ms": None, "size_bytes": size,
        "peak_memory_mb": point["peak_memory_mb"], "process_memory_mb": point["process_memory_mb"], "depth": "sweep",
    }  # fmt: skip
