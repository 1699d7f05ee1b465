"""The one rule: a stage is a keyword-only dataclass.

Its fields are its schema, its command-line surface and its cache identity; `run()` is its behaviour; the
snake_case of its class name is its name in the configuration. There is no registry besides the files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

FACTS = "facts.json"
"""Small figures a stage states about its result; part of the result, so covered by its digest."""

PREVIOUS = "previous"
"""As the source of an input: the step before in the chain."""

REPORT_INTERVAL_S = 0.2

CACHES = "COMPILER_CACHES"
"""The variable by which a worker knows where libraries may keep what makes their work shorter."""

CANDIDATES = "candidates"
"""As the source of inputs: the artifact of every candidate, one role each."""


@dataclasses.dataclass(kw_only=True)
class Stage(ABC):
    """One transformation or one measurement.

    A field of type `Path` (or `Path | None`) names a file or folder outside the store: the step's key covers
    its content, not its name.
    """

    inputs: ClassVar[Mapping[str, str]] = {}
    """Role -> name of the step whose result fills it, `previous`, or `candidates`."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions decide the result."""
    measures: ClassVar[bool] = False
    """Whether the step takes times: it then runs alone."""
    on_gpu: ClassVar[bool] = False
    """Whether the step needs an NVIDIA GPU."""
    loads_programs: ClassVar[bool] = False
    """Whether the step opens a PyTorch program that another step wrote: its format can hold code."""
    on_host: ClassVar[bool] = False
    """Whether the result is a statement about this host: its key then covers the host's fingerprint."""
    numeric: ClassVar[bool] = False
    """Whether the result holds numbers that were computed in floating point: its key then covers the build's seed, the
    number of threads, and the CPU features that choose kernels."""
    not_portable: ClassVar[Mapping[str, str]] = {}
    """File name -> why it may differ between two runs of one key. What measures is as a whole no portable result."""
    time_limit_s: ClassVar[float] = 3600.0

    @abstractmethod
    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """Writes the result's files into the empty folder `out` and returns its facts (JSON types).

        `inputs` maps each role to the folder of the result that fills it; they are read-only.
        """

    def check_files(self) -> None:  # noqa: B027 - most name nothing outside
        """Looks at what the fields name, as far as can be seen without making anything; imports nothing heavy.

        Raises:
            ConfigError: `run` would refuse it.
        """

    def functions(self) -> Mapping[str, str]:
        """Functions of the user's own that `run` looks up: setting -> `package.module:function`."""
        return {}

    def used_tools(self) -> tuple[str, ...]:
        """Distributions whose versions decide the result; more than `tools` where a field decides which."""
        return self.tools

    def preload(self) -> tuple[str, ...]:
        """Heavy libraries that a worker may import while the step's inputs are still being made."""
        return ()

    def dynamic_modules(self) -> tuple[str, ...]:
        """First-party modules that `run` loads by name, which no import statement shows."""
        return ()

    def after_crash(self) -> str:
        """What to do where a library crashes the step's process, which leaves the step no chance to say it itself."""
        return "the converter or runtime crashed; the log and the command below reproduce it"


def read_facts(result: Path) -> dict[str, Any]:
    """The facts that the stage behind `result` stated."""
    facts: dict[str, Any] = json.loads((result / FACTS).read_text())
    return facts


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON with sorted keys, so that equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def cache_folder(name: str) -> Path | None:
    """The folder in the store where a library keeps what makes its work shorter; None where there is no store."""
    root = os.environ.get(CACHES)
    return Path(root) / name if root else None


_next_report = 0.0


def report_progress(done: int, total: int, what: str) -> None:
    """Tells the process that watches this worker how far the stage is: at most a few times a second."""
    global _next_report  # noqa: PLW0603 - one worker runs one stage
    target = os.environ.get("COMPILER_PROGRESS")
    now = time.monotonic()
    if not target or now < _next_report:
        return
    _next_report = now + REPORT_INTERVAL_S
    path = Path(target)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as stream:
        json.dump({"done": done, "total": total, "what": what}, stream)
    Path(stream.name).replace(path)
