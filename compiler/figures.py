"""What is read of a manifest to compare it: its selected candidate's figures, and where they come from.

A manifest is data: every value is checked to be what it should be, and loses its control characters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from compiler.proportions import wilson
from compiler.runtime.verify import check_selected
from compiler.words import printable

MEGABYTE = 1e6
PROPORTIONS = ("top1", "top5")

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Side:
    """What is read of one manifest, checked: its selected candidate, and where its figures come from."""

    identity: dict[str, str]
    size_mb: float
    latency: dict[str, Any] | None
    figures: dict[str, float | None]
    speedup_ci95: Interval | None
    latency_on: str | None
    memory_on: str | None
    reference_ms: float | None
    accuracy: dict[str, Any] | None
    samples: dict[str, Any]
    claim: str
    benchmark: list[str]
    baseline_predictions: list[str]
    options: dict[str, Any]
    files: dict[str, int]


def read_side(manifest: Mapping[str, Any]) -> Side:
    """The side that a manifest makes.

    Raises:
        ConfigError: it selects no candidate.
        KeyError, TypeError, ValueError, ...: it is no manifest.
    """
    manifest = printable(manifest)
    check_selected(manifest, manifest["version"])
    row = next(c for c in manifest["candidates"] if c["id"] == manifest["selected"])
    hosts = {_text(h["id"]): _text(h["fingerprint"]) for h in manifest["measured_on"]}
    latency, accuracy = row["latency_ms"], row["accuracy"]
    speeds = {h["id"]: h.get("reference_ms") for h in manifest["measured_on"]}
    if latency is not None:
        latency = {
            **{key: _number(latency[key]) for key in ("p50", "p95", "p95_upper", "threads", "batch")},
            "ci95": _interval(latency["ci95"]), "stable": latency["stable"] is True,
            "reasons": "; ".join(_text(r) for r in latency["unstable_reasons"]), "on": _text(latency["on"]),
        }  # fmt: skip
    if accuracy is not None:
        metric, count, value = _text(accuracy["metric"]), int(_number(accuracy["n"])), _number(accuracy["value"])
        accuracy = {
            "metric": metric, "split": _text(accuracy["split"]), "n": count, "value": value,
            "ci95": wilson(value, count) if metric in PROPORTIONS else None,
            "drop": _number(accuracy["drop"]), "drop_ci95": _interval(accuracy["drop_ci95"]),
        }  # fmt: skip
    shipped = [f for f in manifest["files"] if f["role"] in ("model", "weights")]
    size = row["size_bytes"] if row["size_bytes"] is not None else sum(_number(f["size_bytes"]) for f in shipped)
    outputs = {_text(s["name"]): [_text(o) for o in s["outputs"]] for s in manifest["steps"]}
    split = accuracy["split"] if accuracy else "report"
    data = manifest["data"]
    return Side(
        identity={
            **{key: _text(manifest[key]) for key in ("model", "target", "version", "status")},
            **{key: _text(row[key]) for key in ("id", "backend", "precision")},
        },
        size_mb=_number(size) / MEGABYTE,
        latency=latency,
        figures={
            key: None if row[key] is None else _number(row[key])
            for key in ("throughput_per_s", "peak_memory_mb", "speedup", "load_ms", "first_call_ms")
        },
        speedup_ci95=_interval(row["speedup_ci95"]),
        latency_on=hosts[latency["on"]] if latency else None,
        memory_on=hosts.get(_text(row.get("memory_on", latency["on"] if latency else ""))),
        reference_ms=_optional(speeds.get(latency["on"])) if latency else None,
        accuracy=accuracy,
        samples={"dataset": _text(data["dataset"]), "digest": _text(data["splits"][split]["digest"])},
        claim=_text(manifest["weights"]["claim"] or "not evaluated"),
        benchmark=outputs.get("benchmark", []),
        baseline_predictions=outputs.get(f"evaluate.{split}.{_text(manifest['baseline'])}", []),
        options=dict(row["options"]),
        files={_text(f["path"]): int(f["size_bytes"]) for f in manifest["files"]},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _interval(value: Any) -> Interval | None:
    if value is None:
        return None
    low, high = value
    if _number(low) > _number(high):
        raise ValueError(f"{value!r} is no interval")
    return float(low), float(high)
