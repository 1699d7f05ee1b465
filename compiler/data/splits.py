"""Disjoint, seeded splits of a dataset: training (not ours to touch), calibration, selection and report."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

from compiler.errors import ConfigError

NAMES = ("train", "calibration", "selection", "report")


def split(count: int, sizes: Mapping[str, int | None], seed: int) -> dict[str, list[int]]:
    """Deals `count` sample indices into the four splits, shuffled by `seed`.

    A size of None takes what the others leave; one split at most may have it. Python's own generator
    is used because its shuffle is the same on every platform and version that we support.

    Raises:
        ConfigError: the sizes do not fit into `count`, or two of them are None.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 - a split, not a secret
    fixed = sum(size for size in sizes.values() if size is not None)
    open_ends = [name for name in NAMES if sizes.get(name, 0) is None]
    if len(open_ends) > 1:
        raise ConfigError(
            f"the sizes of the splits {' and '.join(open_ends)} are both open",
            fix=f"give one of them a number, for example data.splits.{open_ends[0]}=100",
        )
    if fixed > count or (open_ends and fixed == count):
        asked = ", ".join(f"{name}={'rest' if sizes.get(name) is None else sizes.get(name)}" for name in NAMES)
        raise ConfigError(
            f"the dataset has {count} samples, and the splits ask for more ({asked})",
            fix="lower data.splits.calibration, data.splits.selection or data.splits.report",
        )
    result: dict[str, list[int]] = {}
    start = 0
    for name in NAMES:
        size = sizes.get(name, 0)
        size = count - fixed if size is None else size
        result[name] = order[start : start + size]
        start += size
    return result


def digest(ids: Sequence[str]) -> str:
    """SHA-256 over sample names in order: two splits are the same exactly when their digests are."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
