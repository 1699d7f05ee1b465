"""JSON that anybody may have written: within limits, every key once, finite numbers only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

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
        ValueError: it is larger, or none.
    """
    with file.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return parse_json(data)


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
