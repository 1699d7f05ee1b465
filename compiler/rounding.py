"""How many digits of a figure are printed: no more than its interval supports."""

from __future__ import annotations

import math

SIGNIFICANT = 2
"""Digits of the half-width of an interval that are printed (JCGM 100:2008, "Guide to the expression of uncertainty in
measurement", section 7.2.6: two are enough); the figure stops at the same place."""


def decimals(low: float, high: float) -> int:
    """Decimal places, negative for tens and above, that the interval from `low` to `high` supports."""
    half = (high - low) / 2
    if not half > 0:
        return SIGNIFICANT + 1
    return SIGNIFICANT - 1 - math.floor(math.log10(half))


def rounded(value: float, places: int) -> str:
    """`value` with so many decimal places; tens and above are rounded too, and padded with zeros."""
    return f"{round(value, places):.{max(0, places)}f}" if places >= 0 else f"{round(value, places):.0f}"


def supported(value: float, low: float, high: float, most: int = 6) -> str:
    """`value` to the place that its interval supports, with at most `most` decimal places."""
    return rounded(value, min(most, decimals(low, high)))


def ends(low: float, high: float, most: int = 6) -> tuple[str, str]:
    """The ends of an interval, to the place that it supports."""
    places = min(most, decimals(low, high))
    return rounded(low, places), rounded(high, places)


def significant(value: float, digits: int = SIGNIFICANT) -> str:
    """`value` to so many significant digits, without an exponent."""
    if not value:
        return "0"
    return rounded(value, digits - 1 - math.floor(math.log10(abs(value))))


def against(value: float, bound: float | None) -> str:
    """`value` to three significant digits, or as many as it takes to show on which side of `bound` it lies."""
    for digits in range(3, 17):
        text = significant(value, digits)
        if bound is None or (float(text) <= bound) == (value <= bound):
            return text
    return repr(value)
