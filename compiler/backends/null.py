"""A linear classifier on synthetic samples: every kind of step in milliseconds, for testing the machinery.

The classes are separable blobs, so the classifier is really right; `drop` makes a candidate lose accuracy, `fail` makes
its step fail.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import PROBE, SIGNATURE, Conversion, probe
from compiler.data.splits import digest
from compiler.disk import write_array
from compiler.errors import StepError
from compiler.stage import Stage, write_json

SPLITS = {"calibration": 64, "selection": 100, "report": 400}


@dataclasses.dataclass(kw_only=True)
class Samples(Stage):
    """Images of one colour channel each in one of four brightness patterns, (n, 8, 8, 3) uint8."""

    tools: ClassVar[tuple[str, ...]] = ("numpy",)

    seed: int = 0
    classes: int = 4
    source: Path | None = None

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`."""
        import numpy as np

        generator = np.random.default_rng(self.seed)
        sizes = {}
        for name, count in SPLITS.items():
            labels = np.arange(count) % self.classes
            images = generator.integers(0, 60, (count, 8, 8, 3))
            for row, label in enumerate(labels):
                images[row, label * 2 : label * 2 + 2] += 180
            write_array(out / f"{name}.npy", images.astype(np.uint8))
            write_array(out / f"{name}.labels.npy", labels.astype(np.int64))
            sizes[name] = {"n": count, "digest": digest([f"{self.seed}/{name}/{i}" for i in range(count)])}
        meta = {
            "dataset": "null",
            "classes": [str(i) for i in range(self.classes)],
            "layout": "NHWC",
            "splits": sizes,
            "split_seed": self.seed,
            "preprocessing": {"color": "RGB", "resize": 0, "crop": 8, "divide_by": 255.0, "mean": [0.0] * 3}
            | {"std": [1.0] * 3},
        }
        write_json(out / "meta.json", meta)
        return {"dataset": "null", "splits": sizes, "split_seed": self.seed, "classes": self.classes}


@dataclasses.dataclass(kw_only=True)
class Export(Stage):
    """The classifier as `model.npz`: each class sums the pixels of its own rows.

    `scramble` shifts the order of its classes against the data's, `noise` spoils its weights: a baseline that is wrong.
    """

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples"}
    numeric: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy",)

    scale: float = 1.0
    trained: bool = True
    delay_s: float = 0.0
    scramble: int = 0
    noise: float = 0.0
    weights: Path | None = None
    sha256: str | None = None

    def dynamic_modules(self) -> tuple[str, ...]:
        """The runtime that probes the result."""
        return ("compiler.runtime.null",)

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`."""
        import json

        import numpy as np

        time.sleep(self.delay_s)
        meta = json.loads((inputs["samples"] / "meta.json").read_text())
        classes = len(meta["classes"])
        weight = np.zeros((8, 8, 3, classes), np.float32)
        for label in range(classes):
            weight[label * 2 : label * 2 + 2, :, :, (label + self.scramble) % classes] = 1.0
        weight += self.noise * np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
        _save(out, weight.reshape(-1, classes), self.scale)
        claim = (
            "" if self.trained else "no accuracy is claimed: the network has random weights; give model.weights=FILE"
        )
        base = {
            "preprocessing": meta["preprocessing"],
            "labels": meta["classes"],
            "trained": self.trained,
            "claim": claim,
            "demo": False,
        }
        outputs, signature = probe(
            out / "model.npz", "null", {}, base | {"inputs": [], "outputs": []}, inputs["samples"], "NHWC"
        )
        write_array(out / PROBE, outputs)
        write_json(out / SIGNATURE, signature | {"dynamic_batch": True})
        return {"parameters": int(weight.size)}


@dataclasses.dataclass(kw_only=True)
class Convert(Conversion):
    """Copies the classifier; `noise` spoils its weights, `fail` ends the step as it says, `delay_s` makes it slow.

    `fixed_batch` makes a file that runs at batch 1 only.
    """

    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    artifact: ClassVar[str] = "model.npz"
    runtime: ClassVar[str] = "null"

    noise: float = 0.0
    fail: str | None = None
    delay_s: float = 0.0
    fixed_batch: bool = False

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`."""
        import numpy as np

        time.sleep(self.delay_s)
        if self.fail == "error":
            raise StepError("the null converter was told to fail", fix="do not tell it to")
        if self.fail == "crash":
            os.abort()
        if self.fail == "exception":
            raise ValueError("a converter's own exception")
        if self.fail == "disk":
            raise OSError(28, "No space left on device")
        with np.load(inputs["model"] / "model.npz", allow_pickle=False) as stored:
            weight, scale = stored["weight"], float(stored["scale"])
        weight = weight + self.noise * np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
        if self.fail == "not_a_number":
            weight[0, 0] = np.nan
        if self.fail == "constant":
            weight[:] = 0.0
        if self.fail == "permute":
            weight = weight[:, ::-1]
        _save(out, weight, scale, fixed_batch=self.fixed_batch)
        return {}


@dataclasses.dataclass(kw_only=True)
class Quantize(Convert):
    """Rounds the weights to a grid of `bits` bits."""

    bits: int = 8

    def precision(self) -> str:
        """int8."""
        return "int8"

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`."""
        import numpy as np

        super().convert(inputs, out)
        with np.load(out / "model.npz", allow_pickle=False) as stored:
            weight, scale = stored["weight"], float(stored["scale"])
        step = float(np.abs(weight).max()) / (2 ** (self.bits - 1) - 1) or 1.0
        _save(out, np.round(weight / step).astype(np.int8), scale * step, fixed_batch=self.fixed_batch)
        return {"bits": self.bits}


def _save(out: Path, weight: Any, scale: float, *, fixed_batch: bool = False) -> None:
    import numpy as np

    fixed: dict[str, Any] = {"batch": np.array(1)} if fixed_batch else {}
    np.savez(out / "model.npz", weight=weight, scale=np.float32(scale), shape=np.array([8, 8, 3]), **fixed)
