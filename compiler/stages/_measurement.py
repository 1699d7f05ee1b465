"""What the measuring steps share: the candidates of a build as a bundle, measured on this host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from compiler import bundle
from compiler.conversion import SIGNATURE
from compiler.limits import Between
from compiler.runtime import host
from compiler.runtime.bundle import REFERENCE
from compiler.runtime.control_group import usable_cores
from compiler.runtime.names import distributions_of, module_of, modules_of
from compiler.stage import CANDIDATES, Stage


@dataclasses.dataclass(kw_only=True)
class Profile:
    """How to tell that this host is the target."""

    cpu_model: str | None = None
    this_host: bool = False
    gpu: str | None = None
    compute_capability: str | None = None


Count = Annotated[int, Between(1)]


@dataclasses.dataclass(kw_only=True)
class Measurement(Stage):
    """Fields and bundle of a step that takes times. `candidates` maps an id to its runtime, artifact and options."""

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples", "candidate": CANDIDATES}
    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    measures: ClassVar[bool] = True
    on_host: ClassVar[bool] = True

    candidates: dict[str, Any]
    baseline: str
    threads: Count = 1
    match: Profile = dataclasses.field(default_factory=Profile)
    arch: str = ""
    isa: tuple[str, ...] = ()
    cores: int = 1
    memory_mb: int = 0
    seed: int = 0

    def dynamic_modules(self) -> tuple[str, ...]:
        """What each visit's process loads."""
        opened = {m for c in self.candidates.values() for m in modules_of(c["runtime"], c["options"])}
        return ("compiler.runtime.visit", "compiler.runtime.statistics", module_of(REFERENCE), *sorted(opened))

    def used_tools(self) -> tuple[str, ...]:
        """The libraries of the runtimes that race."""
        return (*self.tools, *sorted({d for c in self.candidates.values() for d in distributions_of(c["runtime"])}))

    def entries(self, inputs: Mapping[str, Path]) -> list[bundle.Entry]:
        """The candidates whose artifacts are among `inputs`, in the order of the configuration."""
        found = []
        for name, spec in self.candidates.items():
            result = inputs.get(f"candidate/{name}")
            if result is not None:
                found.append(entry_of(name, spec, result))
        return found

    def usable_threads(self) -> int:
        """The target's number of threads, or as many as this host has."""
        return max(1, min(self.threads, usable_cores()))

    def is_target(self, record: Mapping[str, Any]) -> bool:
        """Whether the host that `record` describes is the target itself."""
        return host.is_target(
            record, self.arch, list(self.isa), self.cores, self.memory_mb, self.match.cpu_model, self.match.this_host,
            self.match.gpu, self.match.compute_capability,
        )  # fmt: skip


def entry_of(name: str, spec: Mapping[str, Any], result: Path) -> bundle.Entry:
    """The candidate `name` as it goes into a bundle, from its result's folder."""
    return bundle.Entry(
        id=name,
        runtime=spec["runtime"],
        files=artifact_files(result, spec["artifact"]),
        artifact=spec["artifact"],
        options=spec["options"],
        signature=json.loads((result / SIGNATURE).read_text()),
    )


def images_of(samples: Path) -> Any:
    """The real samples that are measured with: the first of the selection split, uint8 (n, height, width, 3)."""
    import numpy as np

    return np.load(samples / "selection.npy", mmap_mode="r", allow_pickle=False)[: bundle.SAMPLE_COUNT]


def artifact_files(result: Path, artifact: str) -> list[Path]:
    """The files of a candidate's artifact: its own and those that share its stem (`model.xml`, `model.bin`)."""
    stem = artifact.partition(".")[0]
    return sorted(p for p in result.iterdir() if p.is_file() and p.name.partition(".")[0] == stem)
