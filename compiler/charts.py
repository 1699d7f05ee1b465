"""Where the marks of the report page's charts lie: pure functions from a manifest to numbers; the page draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compiler.figures import PROPORTIONS, Interval
from compiler.proportions import wilson
from compiler.rounding import ends, significant, supported
from compiler.sentences import by_speed

LOG_FROM = 8.0
"""Values whose largest is so many times the smallest get a logarithmic axis."""
TICKS = 5


@dataclass(frozen=True)
class Axis:
    """From `low` to `high` on a line from 0 to 1; `ticks` are places with their labels."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where `value` lies, from 0 to 1; beyond the ends, at the end."""
        return min(1.0, max(0.0, _place(value, self.low, self.high, self.log)))


@dataclass(frozen=True)
class Mark:
    """One candidate: `number` in the table, `x` with its interval and, in the second chart, `y` with its own."""

    number: int
    id: str
    status: str
    x: float
    x_ends: Interval
    text: str
    p95: float = 0.0
    y: float = 0.0
    y_ends: Interval = (0.0, 0.0)


@dataclass(frozen=True)
class Chart:
    """Marks with places from 0 to 1. `bound` is where the budget's limit lies on x, None beyond the axis."""

    x: Axis
    marks: tuple[Mark, ...]
    y: Axis | None = None
    bound: float | None = None


def latency(manifest: dict[str, Any]) -> Chart | None:
    """Median latency of each measured candidate with its 95 % interval and p95; None where nothing was measured."""
    rows = _measured(manifest)
    if not rows:
        return None
    numbers = [[_finite(row["latency_ms"][key]) for key in ("p50", "p95")] + [*_ends(row)] for _, row in rows]
    axis = _axis([value for row in numbers for value in row], zero=True)
    bound = manifest["budget"].get("latency_p95_ms")
    marks = tuple(
        Mark(
            number, row["id"], row["status"], axis.place(p50), (axis.place(low), axis.place(high)),
            f"{supported(p50, low, high)} ms ({' to '.join(ends(low, high))}), p95 {significant(p95, 3)}",
            p95=axis.place(p95),
        )
        for (number, row), (p50, p95, low, high) in zip(rows, numbers, strict=True)
    )  # fmt: skip
    inside = bound is not None and axis.low < _finite(bound) < axis.high
    return Chart(axis, marks, bound=axis.place(bound) if inside else None)


def accuracy(manifest: dict[str, Any]) -> Chart | None:
    """Accuracy against median latency of the candidates that have both; None where fewer than two have."""
    rows = [(number, row) for number, row in _measured(manifest) if row["accuracy"]]
    if len(rows) < 2:
        return None
    spans = [_accuracy_ends(row["accuracy"]) for _, row in rows]
    values = [_finite(row["accuracy"]["value"]) for _, row in rows]
    x = _axis([v for _, row in rows for v in (_finite(row["latency_ms"]["p50"]), *_ends(row))], zero=True)
    y = _axis([v for pair in spans for v in pair] + values, zero=False)
    marks = []
    for (number, row), (low, high), value in zip(rows, spans, values, strict=True):
        p50, sides = float(row["latency_ms"]["p50"]), _ends(row)
        marks.append(
            Mark(
                number, row["id"], row["status"], x.place(p50), (x.place(sides[0]), x.place(sides[1])),
                f"{row['id']}: {supported(p50, *sides)} ms, {supported(value, low, high, 2)}",
                y=y.place(value), y_ends=(y.place(low), y.place(high)),
            )
        )  # fmt: skip
    return Chart(x, tuple(marks), y)


def _measured(manifest: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Number in the table and row of the candidates that have a latency."""
    rows = enumerate(sorted(manifest["candidates"], key=by_speed), 1)
    return [(number, row) for number, row in rows if row["latency_ms"]]


def _ends(row: dict[str, Any]) -> tuple[float, float]:
    low, high = row["latency_ms"]["ci95"]
    return _finite(low), _finite(high)


def _accuracy_ends(found: dict[str, Any]) -> Interval:
    value = _finite(found["value"])
    return wilson(value, int(found["n"])) if found["metric"] in PROPORTIONS else (value, value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise TypeError(f"{value!r} is no figure")
    return float(value)


def _place(value: float, low: float, high: float, log: bool) -> float:
    if log:
        return (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _axis(values: Sequence[float], zero: bool) -> Axis:
    """An axis over the values with a margin; `zero`: it begins at 0, unless the values are far apart."""
    least, most = min(values), max(values)
    if zero and least > 0 and most / least > LOG_FROM:
        low, high = least / 1.3, most * 1.3
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [m * 10.0**e for e in exponents for m in ((1, 2, 5) if len(exponents) < TICKS else (1,))]
        chosen = [value for value in candidates if low <= value <= high]
        return Axis(low, high, True, tuple((_place(v, low, high, True), f"{v:g}") for v in chosen))
    span = most - (min(0.0, least) if zero else least) or abs(most) or 1.0
    low = min(0.0, least) if zero else least - 0.1 * span
    high = most + 0.1 * span
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= TICKS + 1)
    first = math.ceil(low / step)
    chosen = [i * step for i in range(first, math.floor(high / step) + 1)]
    return Axis(low, high, False, tuple((_place(v, low, high, False), f"{v:.6g}") for v in chosen))
