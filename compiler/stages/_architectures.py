"""Names of torchvision's classifiers, read from its source: importing it takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n(?:    .*\n|\)\n)*)*def (\w+)\(", re.M)


@functools.cache
def architectures() -> list[str]:
    """Return the names, sorted; none where torchvision is not installed, or is written in another way."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    sources = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return sorted(name for source in sources for name in REGISTERED.findall(source.read_text(encoding="utf-8")))
