"""The shared steps of a build, run by their stages in this process, for tests of one conversion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import ROOT

from compiler.runtime.preprocess import encode
from compiler.runtime.session import open_model
from compiler.stages.calibrate import Calibrate
from compiler.stages.export import Export
from compiler.stages.fuse import Fuse
from compiler.stages.samples import Samples, SplitSizes

HALF = (0.5, 0.5, 0.5)
FEW = SplitSizes(train=1000, calibration=4, selection=1, report=1)
DIGITS = SplitSizes(train=1000, calibration=100, selection=297, report=400)


class Steps:
    """samples, export, fuse and calibrate of one network, each in a folder of that name."""

    def __init__(self, folder: Path, samples: Samples, export: Export) -> None:
        self.folder = folder
        self._run("samples", samples, {})
        self._run("export", export, {"samples": "samples"})
        self._run("fuse", Fuse(), {"model": "export", "samples": "samples"})
        self._run("calibrate", Calibrate(), {"model": "fuse", "samples": "samples"})

    def _run(self, name: str, stage: Any, roles: dict[str, str]) -> None:
        (self.folder / name).mkdir(parents=True)
        stage.run({role: self.folder / source for role, source in roles.items()}, self.folder / name)

    def inputs(self, model: Path | None = None) -> dict[str, Path]:
        """What a conversion after `fuse`, or after the step in `model`, gets."""
        return {
            "model": model or self.folder / "fuse",
            "samples": self.folder / "samples",
            "calibration": self.folder / "calibrate",
        }

    def onnx(self) -> onnx.ModelProto:
        """The fused ONNX model."""
        return onnx.load(str(self.folder / "fuse" / "model.onnx"))

    def top1(self, folder: Path, *splits: str) -> float:
        """Percent of the samples of `splits` that the ONNX model in `folder` gets right."""
        session = open_model("onnxruntime", folder / "model.onnx", {"threads": 1})
        signature = json.loads((folder / "signature.json").read_text())
        right = total = 0
        for split in splits:
            images = np.load(self.folder / "samples" / f"{split}.npy", mmap_mode="r")
            labels = np.load(self.folder / "samples" / f"{split}.labels.npy")
            for image, wanted in zip(images, labels, strict=True):
                right += int(session.run([encode(image[None], signature)])[0].argmax() == wanted)
            total += len(labels)
        return 100.0 * right / total


def digits(splits: SplitSizes, crop: int) -> Samples:
    """scikit-learn's digits."""
    return Samples(dataset="digits", resize=0, crop=crop, mean=HALF, std=HALF, num_classes=10, splits=splits)


@pytest.fixture(scope="session")
def mobilenetv3(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """MobileNetV3-small with the demo weights, as `model=mobilenetv3 data=digits` builds it."""
    weights = ROOT / "compiler/zoo/mobilenetv3_digits.safetensors"
    folder = tmp_path_factory.mktemp("mobilenetv3")
    return Steps(folder, digits(DIGITS, 96), Export(architecture="mobilenet_v3_small", weights=weights))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Steps]:
    """Networks of torchvision with random weights and small inputs: for their structure."""
    done: dict[str, Steps] = {}

    def steps(architecture: str) -> Steps:
        if architecture not in done:
            folder = tmp_path_factory.mktemp(architecture)
            done[architecture] = Steps(folder, digits(FEW, 64), Export(architecture=architecture))
        return done[architecture]

    return steps


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """MobileNetV2 on the ImageNet sample that IMAGENET_SAMPLE names: 100 images to calibrate, 400 to report on."""
    given = os.environ.get("IMAGENET_SAMPLE")
    if not given:
        pytest.skip("set IMAGENET_SAMPLE to a folder with images/, classes.txt and mobilenet_v2.safetensors")
    root = Path(given)
    samples = Samples(
        dataset="imagefolder", root=root / "images", classes=root / "classes.txt", resize=0, crop=224, mean=HALF,
        std=HALF, splits=SplitSizes(train=0, calibration=100, selection=1, report=None),
    )  # fmt: skip
    export = Export(architecture="mobilenet_v2", weights=root / "mobilenet_v2.safetensors")
    return Steps(tmp_path_factory.mktemp("imagenet"), samples, export)
