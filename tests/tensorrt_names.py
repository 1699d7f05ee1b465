"""What TensorRT's Python bindings offer, read from the bindings themselves: how `tensorrt_api.json` was written.

    python tests/tensorrt_names.py [PACKAGE]      prints one version's names; PACKAGE is `tensorrt` unless given

The bindings (`tensorrt_cu12_bindings`, which the package index serves) import without a GPU as soon as the three
libraries that they name are found; nothing of those is called here, so empty ones do.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

CLASSES = (
    "Builder", "IBuilderConfig", "INetworkDefinition", "OnnxParser", "ParserError", "Runtime", "ICudaEngine",
    "IExecutionContext", "IOptimizationProfile", "ITimingCache", "EngineInspector", "IHostMemory", "ITensor", "ILayer",
    "ILogger",
)  # fmt: skip
ENUMS = (
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity", "LayerInformationFormat",
    "TensorIOMode", "DataType", "LayerType", "HardwareCompatibilityLevel", "OnnxParserFlag",
)  # fmt: skip
FUNCTIONS = ("nptype", "volume")
OWN = re.compile(r"^_(?!_init__)")


def describe(module: Any) -> dict[str, Any]:
    """`version`, `classes` (name -> member -> accepted argument lists, or "property"), `enums`, `functions`."""
    classes = {}
    for name in CLASSES:
        kind = getattr(module, name)
        members = [m for m in sorted(dir(kind)) if not OWN.match(m)]
        classes[name] = {m: _arguments(getattr(kind, m), m) for m in members}
    return {
        "version": module.__version__,
        "classes": classes,
        "enums": {name: sorted(getattr(module, name).__members__) for name in ENUMS},
        "functions": [name for name in FUNCTIONS if hasattr(module, name)],
    }


def _arguments(member: Any, name: str) -> Any:
    """The argument lists of a method by its docstring, an argument that may be left out with a `?`."""
    if not callable(member) or isinstance(member, type) or member.__doc__ is None:
        return "property"
    found = []
    for line in member.__doc__.splitlines():
        match = re.match(rf"(?:\d+\. )?{name}\((self[^)]*)\) ->", line.strip().replace("[()", "["))
        if match:
            parts = re.split(r", (?=\w+:)", match.group(1))[1:]
            found.append([p.partition(":")[0] + ("?" if "=" in p else "") for p in parts])
    return found


if __name__ == "__main__":
    print(json.dumps(describe(importlib.import_module(sys.argv[1] if len(sys.argv) > 1 else "tensorrt")), indent=1))
