"""Where an artifact lies that is named by a path or by a reference.

Apart from `verify`, because steps import that: their keys must not cover the source of registries.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compiler.registries.reference import is_reference, parse

if TYPE_CHECKING:
    from compiler.runtime.policy import Policy


def local_folder(path_or_ref: str | Path, policy: Policy | None = None) -> Path:
    """Return the folder that the user means by a path, or by a reference: in the cache, fetched if it is not there.

    Raises: as `compiler.runtime.fetch.cached`, for a reference.
    """
    text = str(path_or_ref)
    if not is_reference(text):
        return Path(path_or_ref)
    from compiler.runtime.fetch import cached

    return cached(parse(text), policy).folder
