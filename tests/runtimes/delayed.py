"""The null runtime, slower by `options["us"]` microseconds a call: for tests that need a certain order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.runtime import null
from compiler.runtime.session import Array


class Delayed:
    def __init__(self, session: null.NullSession, us: float) -> None:
        self._session, self._ns = session, us * 1000
        self.signature = session.signature

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        until = time.perf_counter_ns() + self._ns
        outputs = self._session.run(inputs)
        while time.perf_counter_ns() < until:
            pass
        return outputs


def open(path: Path, options: Mapping[str, Any]) -> Delayed:
    return Delayed(null.open(path, options), float(options["us"]))
