"""Evaluate: accuracy of one candidate on one split, paired with the baseline on the same samples."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler import chance, metrics
from compiler.conversion import SIGNATURE
from compiler.errors import ConfigError, StepError
from compiler.metrics import paired_drop
from compiler.runtime.names import distributions_of, modules_of
from compiler.stage import Stage, report_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 64
TOP = 5


@dataclasses.dataclass(kw_only=True)
class Evaluate(Stage):
    """Writes `predictions.npz`: `top1`, int64 class a sample (-1 where an output is NaN or infinite); `top5`, bool,
    label among the first five; and for a metric of the user's own `logits`, float32 (n, classes).

    `metric` is `top1`, `top5`, or `package.module:function` (see `compiler.metrics`). Inputs: `model` (the artifact's
    result), `samples`, and for all but the baseline itself `baseline` (its evaluation on the same split).
    """

    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    numeric: ClassVar[bool] = True

    split: str
    runtime: str
    artifact: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    metric: str = "top1"

    def __post_init__(self) -> None:
        metrics.check_name(self.metric)  # before anything is measured

    def functions(self) -> Mapping[str, str]:
        """See `Stage.functions`."""
        return {"data.metric": self.metric} if metrics.own_modules(self.metric) else {}

    def dynamic_modules(self) -> tuple[str, ...]:
        """The runtime through which the figure is taken, and the user's metric."""
        return (*modules_of(self.runtime, self.options), *metrics.own_modules(self.metric))

    def used_tools(self) -> tuple[str, ...]:
        """The runtime's library."""
        return (*self.tools, *distributions_of(self.runtime))

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. Accuracies and drops are in percent (points); those of a user's metric in its own unit.

        Raises:
            ConfigError: the user's metric cannot be loaded, or top-5 says nothing about so few classes.
            StepError: the user's metric failed, or returned what it may not.
        """
        import numpy as np

        own = metrics.load(self.metric) if metrics.own_modules(self.metric) else None
        labels = np.load(inputs["samples"] / f"{self.split}.labels.npy", allow_pickle=False)
        logits = np.empty((len(labels), 0), np.float32)
        top1 = np.empty(len(labels), np.int64)
        top5 = np.empty(len(labels), bool)
        for start, rows in self._outputs(inputs):
            stop = start + len(rows)
            finite = np.isfinite(rows).all(axis=1)
            top1[start:stop] = np.where(finite, rows.argmax(axis=1), -1)  # argmax would take the NaN for the largest
            best = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]
            top5[start:stop] = (best == labels[start:stop, None]).any(axis=1) & finite
            if start == 0 and self.metric == "top5" and rows.shape[1] <= TOP:
                raise ConfigError(f"top5 of {rows.shape[1]} classes is always 100 %", fix="set data.metric=top1")
            if own:
                logits = np.empty((len(labels), rows.shape[1]), np.float32) if start == 0 else logits
                logits[start:stop] = rows
            report_progress(stop, len(labels), "samples")
        hits = {"top1": top1 == labels, "top5": top5}
        shares = {name: round(100.0 * float(right.mean()), 4) for name, right in hits.items()}
        facts: dict[str, Any] = {
            "metric": self.metric,
            "split": self.split,
            "value": shares.get(self.metric),
            **shares,
            "n": len(labels),
            "isa": platform.machine(),
            "drop": 0.0,
            "drop_ci95": None,
            "drop_upper95": None,
            "drop_sd": None,
            "value_lower95": None,
        }
        stored = {"top1": top1, "top5": top5} | ({"logits": logits} if own else {})
        np.savez(out / "predictions.npz", **stored)  # type: ignore[arg-type]
        before = inputs["baseline"] / "predictions.npz" if "baseline" in inputs else None
        if own:
            facts |= self._own(own, logits, labels, before)
        elif before:
            with np.load(before, allow_pickle=False) as theirs:
                earlier = theirs["top5"] if self.metric == "top5" else theirs["top1"] == labels
            facts |= paired_drop(earlier, hits[self.metric]).facts()
        if before is None:  # the baseline: what it is worth decides what a drop against it means
            judged = "top5" if self.metric == "top5" else "top1"
            facts["chance"] = chance.against_chance(labels, hits[judged], TOP if judged == "top5" else 1)
            facts["other_order"] = chance.other_order(top1, labels)
        return facts

    def _outputs(self, inputs: Mapping[str, Path]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The model's logits, float32 (up to `CHUNK`, classes), chunk by chunk with the index of the first sample."""
        import numpy as np

        from compiler.runtime.control_group import usable_cores
        from compiler.runtime.preprocess import decode, encode
        from compiler.runtime.session import open_model

        signature = json.loads((inputs["model"] / SIGNATURE).read_text())
        options = {"threads": usable_cores(), **self.options}
        session = open_model(self.runtime, inputs["model"] / self.artifact, options)
        images = np.load(inputs["samples"] / f"{self.split}.npy", mmap_mode="r", allow_pickle=False)
        batch = signature["inputs"][0]["shape"][0]
        for start in range(0, len(images), CHUNK):
            values = encode(images[start : start + CHUNK], signature)
            padding = -len(values) % batch
            values = np.concatenate([values, np.repeat(values[-1:], padding, axis=0)]) if padding else values
            rows = [session.run([values[i : i + batch]])[0] for i in range(0, len(values), batch)]
            yield start, decode(np.concatenate(rows), signature["outputs"][0])[: len(values) - padding]

    def _own(
        self, function: metrics.Function, logits: NDArray[np.float32], labels: NDArray[np.int64], before: Path | None
    ) -> dict[str, Any]:
        """Value, drop and interval by the user's metric; `before` is the baseline's `predictions.npz`."""
        import numpy as np

        value, scores = metrics.apply(self.metric, function, logits, labels)
        facts: dict[str, Any] = {"value": round(value, 4)}
        if before is None:
            if scores is None and 0.0 < value <= 1.0:
                # a budget of one point would let everything pass
                raise StepError(
                    f"the metric {self.metric} returned {value:g} for the baseline: a share, not percent",
                    fix="return 100 times that, so that budget.accuracy_drop=1 means one point",
                )
            return facts
        with np.load(before, allow_pickle=False) as theirs:
            earlier = theirs["logits"]
        theirs_scores = metrics.apply(self.metric, function, earlier, labels)[1]
        if (scores is None) != (theirs_scores is None):
            raise StepError(
                f"the metric {self.metric} returns one number for one model and a score a sample for another",
                fix="it must return the same kind always",
            )
        if scores is not None and theirs_scores is not None:
            drop = metrics.paired_score_drop(theirs_scores, scores)
        else:
            drop = metrics.paired_call_drop(self.metric, function, earlier, logits, labels, report_progress)
        return facts | drop.facts()
