"""Steps that misbehave, and steps that note when they were at work."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.stage import Stage

LINES = 30
HOARD = "import sys, time; kept = b'x' * (int(sys.argv[1]) << 20); time.sleep(600)"


@dataclasses.dataclass(kw_only=True)
class Misbehave(Stage):
    """Says some lines, starts a process that holds `mb` MB and sleeps, then waits for it, or raises if `fail`."""

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples"}

    mb: int = 1
    fail: bool = False

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        for number in range(LINES):
            print(f"line {number} of the log", flush=True)
        child = subprocess.Popen(
            [sys.executable, "-c", HOARD, str(self.mb)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if self.fail:
            raise ValueError("a private stage's own exception")
        child.wait()
        return {}


@dataclasses.dataclass(kw_only=True)
class Work(Stage):
    """Takes `seconds` and appends `NAME BEGIN END` to the file `log`, by the clock that all processes share."""

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples"}

    name: str
    log: str
    seconds: float

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        began = time.monotonic()
        time.sleep(self.seconds)
        with Path(self.log).open("a") as stream:
            stream.write(f"{self.name} {began} {time.monotonic()}\n")
        return {"name": self.name}


@dataclasses.dataclass(kw_only=True)
class Quiet(Work):
    """Work that takes times, and so wants the machine for itself."""

    measures: ClassVar[bool] = True
