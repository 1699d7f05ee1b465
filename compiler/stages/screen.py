"""Screen: every candidate and the baseline, briefly, to see which of them contend."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from compiler import bundle
from compiler.limits import Between
from compiler.runtime.measure import measure
from compiler.stage import report_progress
from compiler.stages._measurement import Count, Measurement, images_of


@dataclasses.dataclass(kw_only=True)
class Screen(Measurement):
    """Writes `measurement.json` and the raw samples, `latencies.npz`, of a few short rounds.

    Its figures order the candidates, so that accuracy is asked for from the fastest; which of them is the best is for
    `benchmark` to say.
    """

    rounds: Count = 3
    min_calls: Count = 30
    min_seconds: Annotated[float, Between(0)] = 0.2

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. `inputs` has one role `candidate/<id>` for each candidate that was built."""
        entries = self.entries(inputs)
        protocol = {
            "depth": "screen", "rounds": self.rounds, "max_rounds": self.rounds, "min_calls": self.min_calls,
            "min_seconds": self.min_seconds, "seed": self.seed, "threads": self.usable_threads(),
        }  # fmt: skip
        with bundle.temporary(out.parent) as folder:
            bundle.write(folder, entries, images_of(inputs["samples"]), protocol, self.baseline, {"objective": "size"})
            measured = measure(folder, out, report_progress)
        measured.pop("facts")
        for entry in entries:
            if entry.id in measured["candidates"]:
                measured["candidates"][entry.id] |= {"size_bytes": entry.size_bytes, "depth": "screen"}
        return {**measured, "is_target": self.is_target(measured["host"])}
