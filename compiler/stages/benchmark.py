"""Benchmark: every candidate and the baseline, measured together on this host."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import SIGNATURE
from compiler.errors import ConfigError
from compiler.runtime import host
from compiler.runtime.measure import REFERENCE, measure
from compiler.runtime.names import distributions_of, module_of, modules_of
from compiler.stage import CANDIDATES, Stage, report_progress

BENCHMARK_SAMPLES = 16


@dataclasses.dataclass(kw_only=True)
class Profile:
    """How to tell that this host is the target."""

    cpu_model: str | None = None
    this_host: bool = False


@dataclasses.dataclass(kw_only=True)
class Benchmark(Stage):
    """Writes `measurement.json` and the raw samples, `latencies.npz`.

    All candidates that race are inputs of this one step, because only interleaved measurements compare. Protocol:
    `rounds` rounds visit each candidate and a fixed reference in random order, each visit a fresh process pinned
    to `threads` cores (fewer where this host has fewer), at least `min_calls` calls and `min_seconds` seconds.
    """

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples", "candidate": CANDIDATES}
    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    measures: ClassVar[bool] = True
    on_host: ClassVar[bool] = True

    candidates: dict[str, Any]
    baseline: str
    threads: int = 1
    match: Profile = dataclasses.field(default_factory=Profile)
    arch: str = ""
    isa: tuple[str, ...] = ()
    cores: int = 1
    memory_mb: int = 0
    seed: int = 0
    rounds: int = 10
    min_calls: int = 100
    min_seconds: float = 1.0

    def dynamic_modules(self) -> tuple[str, ...]:
        """What each visit's process loads."""
        opened = {m for c in self.candidates.values() for m in modules_of(c["runtime"], c["options"])}
        return ("compiler.runtime.visit", "compiler.runtime.statistics", module_of(REFERENCE), *sorted(opened))

    def used_tools(self) -> tuple[str, ...]:
        """The libraries of the runtimes that race."""
        return (*self.tools, *sorted({d for c in self.candidates.values() for d in distributions_of(c["runtime"])}))

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. `inputs` has one role `candidate/<id>` for each candidate that was built."""
        import numpy as np

        if self.rounds < 1 or self.min_calls < 1 or self.min_seconds < 0:
            raise ConfigError(
                "rounds and min_calls must be at least 1, min_seconds at least 0", fix="see steps.benchmark"
            )
        present = [name for name in self.candidates if f"candidate/{name}" in inputs]
        with tempfile.TemporaryDirectory(prefix="bundle-", dir=out.parent) as folder:
            bundle = Path(folder)
            entries = []
            sizes = {}
            for name in present:
                spec = self.candidates[name]
                result = inputs[f"candidate/{name}"]
                files = artifact_files(result, spec["artifact"])
                (bundle / name).mkdir()
                for file in files:
                    shutil.copyfile(file, bundle / name / file.name)
                sizes[name] = sum(file.stat().st_size for file in files)
                entries.append(
                    {
                        "id": name,
                        "runtime": spec["runtime"],
                        "file": f"{name}/{spec['artifact']}",
                        "options": spec["options"],
                        "signature": json.loads((result / SIGNATURE).read_text()),
                    }
                )
            entries.append(
                {
                    "id": REFERENCE,
                    "runtime": REFERENCE,
                    "file": "bundle.json",
                    "options": {},
                    "threads": 1,
                    "signature": {"inputs": []},
                }
            )
            images = np.load(inputs["samples"] / "selection.npy", mmap_mode="r", allow_pickle=False)[:BENCHMARK_SAMPLES]
            np.save(bundle / "samples.npy", images)
            protocol = {
                "rounds": self.rounds, "min_calls": self.min_calls, "min_seconds": self.min_seconds, "seed": self.seed,
                "threads": max(1, min(self.threads, len(os.sched_getaffinity(0)))),
            }  # fmt: skip
            (bundle / "bundle.json").write_text(
                json.dumps(
                    {"schema_version": 1, "protocol": protocol, "baseline": self.baseline, "candidates": entries},
                    indent=1,
                    sort_keys=True,
                )
            )
            measured = measure(bundle, out, report_progress)
        native = host.is_target(
            measured["host"],
            self.arch,
            list(self.isa),
            self.cores,
            self.memory_mb,
            self.match.cpu_model,
            self.match.this_host,
        )
        for name, figures in measured["candidates"].items():
            figures["size_bytes"] = sizes[name]
        return {
            "host": measured["host"],
            "protocol": protocol,
            "is_target": native,
            "reference_drift": measured["reference_drift"],
            "candidates": measured["candidates"],
            "failed": measured["failed"],
        }


def artifact_files(result: Path, artifact: str) -> list[Path]:
    """The files of a candidate's artifact: its own and those that share its stem (`model.xml`, `model.bin`)."""
    stem = artifact.partition(".")[0]
    return sorted(p for p in result.iterdir() if p.is_file() and p.name.partition(".")[0] == stem)
