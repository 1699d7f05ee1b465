"""Limits on the values of a field, as part of its type: `Annotated[float, Between(0, 100)]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from compiler.errors import did_you_mean


@runtime_checkable
class Limit(Protocol):
    """A rule for the values of a field."""

    def broken(self, value: Any) -> str:
        """What `value` must be, in words that follow "must be", where it is not; else empty."""
        ...


@dataclass(frozen=True)
class Between:
    """A number from `least` to `most`, or, with `above`, above `least`; None for no end."""

    least: float
    most: float | None = None
    above: bool = False

    def broken(self, value: Any) -> str:
        """See `Limit`."""
        if (value > self.least if self.above else value >= self.least) and (self.most is None or value <= self.most):
            return ""
        start = f"{'above' if self.above else 'at least'} {_shown(self.least)}"
        return start if self.most is None else f"{start} and at most {_shown(self.most)}"


def _shown(number: float) -> str:
    return f"{number:g}" if number != round(number) or abs(number) > 1e15 else str(round(number))


class OneOf:
    """One of some names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def broken(self, value: Any) -> str:
        """See `Limit`."""
        if value in self.names:
            return ""
        return f"one of {', '.join(self.names)}{did_you_mean(str(value), self.names)}"
