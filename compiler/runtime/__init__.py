"""Opens what was built, runs it and measures it: numpy and the one library the format needs, nothing of the build.

from compiler import runtime
model = runtime.load("artifacts/mobilenetv3/rpi4/latest")
logits = model.predict(images)          # uint8 RGB (n, height, width, 3) -> float32 (n, classes)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.runtime.loader import Model, load
    from compiler.runtime.policy import Policy
    from compiler.runtime.session import Session, open_model

__all__ = ["Model", "Policy", "Session", "load", "open_model"]

_HOME = {"load": "loader", "Model": "loader", "Policy": "policy", "Session": "session", "open_model": "session"}


def __getattr__(name: str) -> Any:
    """Imports on first use: reading a host's profile or verifying files needs no numpy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
