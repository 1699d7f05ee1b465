"""JSON that anybody may have written: within limits, every key once, finite numbers only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from compiler.foreign_files import read_limited

LARGEST_JSON = 16 << 20


def parse_json(data: bytes | str) -> Any:
    """The value, where no two readers can understand it differently.

    Raises:
        ValueError: it is no JSON, has a key twice, NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: Path, limit: int = LARGEST_JSON) -> Any:
    """What `parse_json` makes of a file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, not a regular file, or not JSON.
    """
    return parse_json(read_limited(file, limit))


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:30]} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
