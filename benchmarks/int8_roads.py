"""What int8 costs by every road, over several calibration sets: net losses, agreement with fp32, divergence.

    python benchmarks/int8_roads.py --images IMAGES --classes classes.txt --weights mobilenet_v2.safetensors
    python benchmarks/int8_roads.py --noise 75       # the demo network on scikit-learn's digits, made harder by noise

The network is exported and fused once. Each seed draws another calibration set from the same pool; all are judged on
the same pictures, which take part in no calibration. A net loss is a picture that fp32 has right and int8 has wrong,
less one the other way round. Agreement is of the top-1 class; KL is of int8's softmax from fp32's, in nats. "before"
are the rules for ranges that each library has by itself: NNCF's mean of extremes, ai-edge-quantizer's moving average.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from compiler.backends import openvino, tflite
from compiler.conversion import Conversion
from compiler.errors import CompilerError
from compiler.runtime.preprocess import decode, encode
from compiler.runtime.session import open_model
from compiler.stages.calibrate import Calibrate
from compiler.stages.export import Export
from compiler.stages.fuse import Fuse
from compiler.stages.quantize import Quantize
from compiler.stages.samples import Samples, SplitSizes
from compiler.zoo import digits

Logits = NDArray[np.float32]


class Roads:
    """The roads to int8 from one fused network, each with calibration sets drawn from one pool of samples."""

    def __init__(self, folder: Path, samples: Path, model: Path, calibration: int) -> None:
        self._folder, self._samples, self._model, self._calibration = folder, samples, model, calibration
        self._pool = np.load(samples / "calibration.npy")
        self._images = np.load(samples / "report.npy")
        self._numbers = itertools.count()
        self.refused: Counter[str] = Counter()
        """Files that a build would have refused by their distance from the float network, by the reason."""
        self._float: dict[str, Path] = {}
        for name, stage in (("openvino", openvino.Convert()), ("tflite", tflite.Convert())):
            self._float[name] = self._run(stage, model, None, f"{name}-fp32")

    def all(self, seed: int) -> Iterator[tuple[str, Callable[[], Logits]]]:
        """Each road's name, and what makes its file with the calibration set of `seed` and returns its logits."""
        order = np.random.default_rng(seed).permutation(len(self._pool))[: self._calibration]
        drawn, calibration = self._folder / f"drawn-{seed}", self._folder / f"calibration-{seed}"
        drawn.mkdir()
        calibration.mkdir()
        np.save(drawn / "calibration.npy", self._pool[order])
        Calibrate().run({"model": self._model, "samples": drawn}, calibration)
        pairs: dict[str, Path] = {}

        def qdq(ranges: str) -> Path:
            if ranges not in pairs:
                stage = Quantize(ranges=ranges)
                pairs[ranges] = self._run(stage, self._model, calibration, f"qdq-{ranges}-{seed}")
            return pairs[ranges]

        def road(stage: Conversion, source: Callable[[], Path]) -> Callable[[], Logits]:
            name = f"{type(stage).__module__.rpartition('.')[2]}-{next(self._numbers)}"
            return lambda: self.logits(stage, self._run(stage, source(), calibration, name))

        for ranges in ("minmax", "percentile"):
            yield f"ONNX Runtime, Q/DQ, {ranges}", lambda ranges=ranges: self.logits(Quantize(), qdq(ranges))
            yield f"OpenVINO from Q/DQ, {ranges}", road(openvino.Convert(source="int8"), lambda r=ranges: qdq(r))
        for ranges, when in (("mean_minmax", "before"), ("minmax", "now")):
            stage = openvino.Quantize(preset="mixed", ranges=ranges)
            yield f"OpenVINO by NNCF, {ranges} ({when})", road(stage, lambda: self._float["openvino"])
        source = lambda: self._float["tflite"]  # noqa: E731
        yield "TFLite, TensorFlow's calibrator", road(tflite.Quantize(recipe="int8"), source)
        averaged = road(tflite.Quantize(recipe="int8", quantizer="ai_edge_quantizer"), source)
        yield "TFLite, ai-edge-quantizer, moving average (before)", lambda: _with_moving_average(averaged)
        extremes = road(tflite.Quantize(recipe="int8", quantizer="ai_edge_quantizer"), source)
        yield "TFLite, ai-edge-quantizer, min-max (now)", extremes

    def logits(self, stage: Conversion, result: Path) -> Logits:
        """The outputs, float32 (n, classes), for the pictures that are judged."""
        precision = {"INFERENCE_PRECISION_HINT": "f32"} if stage.runtime == "openvino" else {}
        session = open_model(stage.runtime, result / stage.artifact, {"threads": 1, **precision})
        signature = {**json.loads((self._model / "signature.json").read_text()), **session.signature()}
        for entry in signature["inputs"]:
            entry["layout"] = "NHWC" if stage.runtime == "tflite" else "NCHW"
        rows = [session.run([encode(self._images[i : i + 1], signature)])[0] for i in range(len(self._images))]
        return decode(np.concatenate(rows), signature["outputs"][0])

    def reference(self) -> Logits:
        """The fused float network's outputs, by OpenVINO in float32."""
        return self.logits(openvino.Convert(), self._float["openvino"])

    def _run(self, stage: Conversion, model: Path, calibration: Path | None, name: str) -> Path:
        out = self._folder / name
        out.mkdir()
        inputs = {"model": model, "samples": self._samples}
        try:
            stage.run(inputs if calibration is None else {**inputs, "calibration": calibration}, out)
        except CompilerError as error:
            if not (out / stage.artifact).is_file():
                raise
            self.refused[error.what] += 1  # it is judged here all the same
        return out


def _with_moving_average(road: Callable[[], Logits]) -> Logits:
    """ai-edge-quantizer as it calibrates by itself."""
    with mock.patch.object(
        tflite, "_extremes", lambda source, worker, samples: worker.calibrate(samples, num_threads=1)
    ):
        return road()


def compared(reference: Logits, outputs: Logits, labels: NDArray[np.int64]) -> tuple[int, float, float]:
    """Net losses, agreement from 0 to 1, and mean KL divergence in nats; both outputs float32 (n, classes)."""
    right, still = reference.argmax(1) == labels, outputs.argmax(1) == labels
    p, q = (_log_softmax(values.astype(np.float64)) for values in (reference, outputs))
    kl = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return int(right.sum() - still.sum()), float((reference.argmax(1) == outputs.argmax(1)).mean()), kl


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    moved = values - values.max(axis=1, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=1, keepdims=True)))


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The folders of the samples and of the fused network."""
    samples, exported, fused = (folder / name for name in ("samples", "exported", "fused"))
    for made in (samples, exported, fused):
        made.mkdir()
    if arguments.images is None:
        sizes = SplitSizes(train=1000, calibration=297, selection=100, report=400)
        stage = Samples(dataset="digits", resize=0, crop=digits.SIDE, num_classes=10, splits=sizes)
        weights, architecture = Path(digits.__file__).parent / "mobilenetv3_digits.safetensors", "mobilenet_v3_small"
    else:
        sizes = SplitSizes(calibration=arguments.pool, selection=1, report=None)
        stage = Samples(dataset="imagefolder", root=arguments.images, classes=arguments.classes, splits=sizes)
        weights, architecture = arguments.weights, arguments.architecture
    stage.run({}, samples)
    if arguments.noise:
        add_noise(samples, arguments.noise)
    Export(architecture=architecture, weights=weights).run({"samples": samples}, exported)
    Fuse().run({"model": exported, "samples": samples}, fused)
    return samples, fused


def add_noise(samples: Path, deviation: float) -> None:
    """Adds Gaussian noise, of a standard deviation in steps of 0 to 255, to every picture of every split."""
    draw = np.random.default_rng(0)
    for path in (samples / f"{split}.npy" for split in ("calibration", "selection", "report")):
        images = np.load(path)
        noisy = images + deviation * draw.standard_normal(images.shape, np.float32)
        np.save(path, np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--architecture", default="mobilenet_v2")
    parser.add_argument("--pool", type=int, default=200, help="pictures from which calibration sets are drawn")
    parser.add_argument("--calibration", type=int, default=100, help="pictures in each calibration set")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, in steps of 0 to 255")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        samples, fused = prepared(arguments, Path(name))
        roads = Roads(Path(name), samples, fused, arguments.calibration)
        reference, labels = roads.reference(), np.load(samples / "report.labels.npy")
        rows: dict[str, list[tuple[int, float, float] | None]] = {}
        for seed in range(arguments.seeds):
            for road, make in roads.all(seed):
                print(f"seed {seed}: {road}")
                try:
                    rows.setdefault(road, []).append(compared(reference, make(), labels))
                except CompilerError as error:
                    print(f"{road}: {error.what}")
                    rows.setdefault(road, []).append(None)
    print(f"fp32: {100 * (reference.argmax(1) == labels).mean():.2f} % top-1 of {len(labels)} pictures; "
          f"{arguments.seeds} calibration sets of {arguments.calibration}")  # fmt: skip
    print("| road | net losses, summed | range of a set | agreement | mean KL |\n|---|---|---|---|---|")
    for road, found in rows.items():
        sound = [row for row in found if row is not None]
        failed = f"; {len(found) - len(sound)} failed" if len(sound) < len(found) else ""
        if not sound:
            print(f"| {road} | failed | | | |")
            continue
        losses = [row[0] for row in sound]
        print(
            f"| {road} | {sum(losses)}{failed} | {min(losses)} to {max(losses)} "
            f"| {100 * np.mean([row[1] for row in sound]):.1f} % | {np.mean([row[2] for row in sound]):.4f} |"
        )
    for why, times in sorted(roads.refused.items()):
        print(f"a build would have refused this file ({times} times): {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
