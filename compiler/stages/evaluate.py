"""Evaluate: accuracy of one candidate on one split, paired with the baseline on the same samples."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.conversion import SIGNATURE
from compiler.runtime.names import distributions_of, modules_of
from compiler.stage import Stage, report_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 64
Z_95 = 1.959964


@dataclasses.dataclass(kw_only=True)
class Evaluate(Stage):
    """Writes `predictions.npz` (`top1`: int64 class a sample, `top5`: bool, label among the first five).

    Inputs: `model` (the artifact's result), `samples`, and for all but the baseline itself `baseline` (its evaluation
    on the same split).
    """

    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    on_host: ClassVar[bool] = True  # kernels differ between CPUs, and what they round with them

    split: str
    runtime: str
    artifact: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def dynamic_modules(self) -> tuple[str, ...]:
        """The runtime through which the figure is taken."""
        return modules_of(self.runtime, self.options)

    def used_tools(self) -> tuple[str, ...]:
        """The runtime's library."""
        return (*self.tools, *distributions_of(self.runtime))

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. Accuracies and drops are in percent (points)."""
        import numpy as np

        from compiler.runtime.preprocess import decode, encode
        from compiler.runtime.session import open_model

        signature = json.loads((inputs["model"] / SIGNATURE).read_text())
        options = {"threads": len(os.sched_getaffinity(0)), **self.options}
        session = open_model(self.runtime, inputs["model"] / self.artifact, options)
        images = np.load(inputs["samples"] / f"{self.split}.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(inputs["samples"] / f"{self.split}.labels.npy", allow_pickle=False)
        batch = signature["inputs"][0]["shape"][0]
        top1 = np.empty(len(images), np.int64)
        top5 = np.empty(len(images), bool)
        for start in range(0, len(images), CHUNK):
            values = encode(images[start : start + CHUNK], signature)
            padding = -len(values) % batch
            values = np.concatenate([values, np.repeat(values[-1:], padding, axis=0)]) if padding else values
            rows = [session.run([values[i : i + batch]])[0] for i in range(0, len(values), batch)]
            logits = decode(np.concatenate(rows), signature["outputs"][0])[: len(values) - padding]
            stop = start + len(logits)
            top1[start:stop] = logits.argmax(axis=1)
            best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
            top5[start:stop] = (best == labels[start:stop, None]).any(axis=1)
            report_progress(stop, len(images), "samples")
        np.savez(out / "predictions.npz", top1=top1, top5=top5)
        right = top1 == labels
        facts: dict[str, Any] = {
            "metric": "top1",
            "split": self.split,
            "value": round(100.0 * float(right.mean()), 4),
            "top5": round(100.0 * float(top5.mean()), 4),
            "n": len(labels),
            "isa": platform.machine(),
            "drop": 0.0,
            "drop_ci95": None,
        }
        if "baseline" in inputs:
            with np.load(inputs["baseline"] / "predictions.npz", allow_pickle=False) as stored:
                before = stored["top1"] == labels
            facts["drop"], facts["drop_ci95"] = paired_drop(before, right)
        return facts


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, list[float]]:
    """Loss of accuracy in points and its 95 % interval, from the samples on which the two disagree.

    Source of the interval: Agresti and Min, 2005, "Simple improved confidence intervals for comparing matched
    proportions" (Wald interval after adding 0.5 to each cell of the 2 x 2 table).
    """
    count = len(before)
    lost = int((before & ~after).sum())
    won = int((~before & after).sum())
    a, b, n = lost + 0.5, won + 0.5, count + 2.0
    centre = (a - b) / n
    error = ((a + b) - (a - b) ** 2 / n) ** 0.5 / n
    interval = [100.0 * (centre - Z_95 * error), 100.0 * (centre + Z_95 * error)]
    return round(100.0 * (lost - won) / count, 4), [round(v, 4) for v in interval]
