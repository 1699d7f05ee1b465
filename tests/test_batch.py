"""Every candidate at other batches than 1: each sample is answered as it is alone, or the batch is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import BATCH, FORMS, Form, check
from conftest import First, Project

from compiler import runtime
from compiler.backends import openvino, tflite
from compiler.conversion import SIGNATURE
from compiler.errors import ConfigError
from compiler.runtime.names import MAX_BATCH
from compiler.runtime.session import batch_of, open_model
from compiler.stage import Stage
from compiler.stages.calibrate import Calibrate
from compiler.stages.export import EXPORTED_OPEN, FIXED, OPENED, Export
from compiler.stages.fuse import Fuse
from compiler.stages.quantize import Quantize
from compiler.stages.samples import Samples, SplitSizes
from compiler.zoo.digits import SIDE, SPLITS

pytestmark = pytest.mark.real


class Flat(torch.nn.Module):
    """Flattens a map of 3 x 3, which makes a RESHAPE; networks that pool to a point first need none."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.MaxPool2d(8, stride=8),
        )  # fmt: skip
        self.classifier = torch.nn.Linear(72, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Token(Flat):
    """Puts a learned token beside the features, as vision transformers do: its copies follow the batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.token = torch.nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.features(x).flatten(2).transpose(1, 2)
        joined = torch.cat([self.token.expand(self.copies(x), -1, -1), rows], dim=1)
        return self.classifier(joined[:, 1:].flatten(1) * joined[:, :1].mean(-1))

    def copies(self, x: torch.Tensor) -> int:
        return x.shape[0]


class Fixed(Token):
    """Holds its batch as a number."""

    def copies(self, x: torch.Tensor) -> int:
        return 1


class Sliced(Flat):
    """Takes a part of a tensor, for which TFLite's operator has the size as a constant."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes + 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x).relu()
        return logits[:, 1:-1] - logits[:, 2:]


class Mixing(Flat):
    """Runs at any batch, but no sample is answered as it is alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits - logits.mean(dim=0, keepdim=True) / 2


STEPS: dict[str, tuple[Stage, dict[str, str]]] = {
    "fuse": (Fuse(), {"model": "export"}),
    "calibrate": (Calibrate(), {"model": "fuse"}),
    "onnxruntime_int8": (Quantize(), {"model": "fuse", "calibration": "calibrate"}),
    "openvino_fp32": (openvino.Convert(), {"model": "fuse"}),
    "openvino_int8": (openvino.Quantize(), {"model": "openvino_fp32", "calibration": "calibrate"}),
    "openvino_qdq_int8": (openvino.Convert(source="int8"), {"model": "onnxruntime_int8"}),
    "tflite_fp32": (tflite.Convert(), {"model": "fuse"}),
    **{
        name: (stage, {"model": "tflite_fp32", "calibration": "calibrate"})
        for name, stage in {
            "tflite_fp16": tflite.Quantize(recipe="fp16"),
            "tflite_dynamic_int8": tflite.Quantize(recipe="dynamic_int8"),
            "tflite_int8": tflite.Quantize(recipe="int8"),
            "tflite_int8_io": tflite.Quantize(recipe="int8", io="int8"),
            "tflite_ai_edge_int8": tflite.Quantize(recipe="int8", quantizer="ai_edge_quantizer"),
        }.items()
    },
}
"""The stages of a build and where their inputs come from; all take the samples as well."""


class Steps:
    """Steps of a build, each run once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[tuple[str, str], dict[str, Any]] = {}

    def __call__(self, network: str, step: str) -> Path:
        """The result of `step` for a network of this file; the default model's are looked at in `test_real.py`."""
        out = self.folder / network / step
        if (network, step) not in self.facts:
            if step == "samples":
                stage: Stage = Samples(dataset="digits", resize=0, crop=SIDE, splits=SplitSizes(**SPLITS))
                inputs: dict[str, str] = {}
            elif step == "export":
                stage, inputs = Export(architecture=f"test_batch:{network}"), {}
            else:
                stage, inputs = STEPS[step]
            sources = {role: self(network, source) for role, source in inputs.items()}
            if step != "samples":
                sources["samples"] = self("any", "samples")
            out.mkdir(parents=True)
            self.facts[network, step] = stage.run(sources, out)
        return out


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return Steps(tmp_path_factory.mktemp("batch"))


def _check(steps: Steps, form: Form, folder: Path) -> None:
    check(steps("any", "samples"), form, folder)


@pytest.mark.parametrize("step", FORMS)
def test_a_network_that_flattens_a_map_is_answered_alike_in_a_batch_and_alone(steps: Steps, step: str) -> None:
    _check(steps, FORMS[step], steps("flat", step))


def test_the_program_and_the_baseline_take_a_batch(steps: Steps) -> None:
    _check(steps, ("torch_export", "program.pt2", {}, "fp32"), steps("flat", "fuse"))
    options = {"architecture": "test_batch:flat"}
    _check(steps, ("pytorch", "module.safetensors", options, "fp32"), steps("flat", "export"))


def test_a_reshape_is_opened_in_place(steps: Steps, tmp_path: Path) -> None:
    source = steps("flat", "tflite_fp32") / "model.tflite"
    assert steps.facts["flat", "tflite_fp32"]["batches_opened"] == 1
    (tmp_path / "copy.tflite").write_bytes(source.read_bytes())
    assert tflite.open_batch(tmp_path / "copy.tflite") == 0  # there is no other
    assert (tmp_path / "copy.tflite").read_bytes() == source.read_bytes()


def test_no_symbol_of_the_exporter_is_in_the_files(steps: Steps) -> None:
    import onnx

    for step in ("export", "fuse", "onnxruntime_int8"):
        for network in ("flat", "token"):
            graph = onnx.load(str(steps(network, step) / "model.onnx")).graph
            first = [v.type.tensor_type.shape.dim[0].dim_param for v in (*graph.input, *graph.output)]
            assert first == ["batch", "batch"]
            assert all(
                d.dim_param in ("", "batch") or "batch" in d.dim_param
                for v in graph.value_info for d in v.type.tensor_type.shape.dim
            )  # fmt: skip


@pytest.mark.parametrize("network", ["flat", "token"])
def test_two_exports_give_the_same_bytes(steps: Steps, network: str, tmp_path: Path) -> None:
    again = Steps(tmp_path)
    for step in ("export", "fuse"):
        for file in ("model.onnx", "program.pt2"):
            assert (steps(network, step) / file).read_bytes() == (again(network, step) / file).read_bytes()


def test_a_network_whose_copies_follow_the_batch_is_exported_with_an_open_one(steps: Steps) -> None:
    assert steps("flat", "export") and steps.facts["flat", "export"]["batch"] == OPENED
    assert steps("token", "export") and steps.facts["token", "export"]["batch"] == EXPORTED_OPEN
    for step in ("fuse", "onnxruntime_int8", "openvino_fp32"):
        _check(steps, FORMS[step], steps("token", step))
    _check(steps, ("torch_export", "program.pt2", {}, "fp32"), steps("token", "fuse"))


def _refused(form: Form, folder: Path) -> None:
    name, file, options, _ = form
    assert json.loads((folder / SIGNATURE).read_text())["dynamic_batch"] is False
    assert open_model(name, folder / file, {**options, "batch": 1}).signature()["inputs"][0]["shape"][0] == 1
    with pytest.raises(ConfigError, match=f"{file} runs at batch 1 only, not at {BATCH}") as error:
        session = open_model(name, folder / file, {**options, "batch": BATCH})
        session.run([np.zeros(session.signature()["inputs"][0]["shape"], np.float32)])
    assert "leave the batch at 1" in error.value.fix


@pytest.mark.parametrize("network", ["fixed", "mixing"])
def test_a_network_of_one_batch_is_refused_any_other(steps: Steps, network: str) -> None:
    _refused(("pytorch", "module.safetensors", {"architecture": f"test_batch:{network}"}, ""), steps(network, "export"))
    assert steps.facts[network, "export"]["batch"] == FIXED
    for step in ("fuse", "onnxruntime_int8", "openvino_fp32", "openvino_int8"):
        _refused(FORMS[step], steps(network, step))


def test_a_program_that_holds_its_batch_is_refused_another(steps: Steps) -> None:
    _refused(("torch_export", "program.pt2", {}, ""), steps("fixed", "export"))


def test_a_file_whose_format_holds_the_batch_is_refused_another(steps: Steps) -> None:
    """The network's other formats take any batch."""
    _check(steps, FORMS["fuse"], steps("sliced", "fuse"))
    for step in ("tflite_fp32", "tflite_int8"):
        _refused(FORMS[step], steps("sliced", step))


@pytest.mark.parametrize("batch", [0, -1, True, "2", 1.5, MAX_BATCH + 1])
def test_a_batch_that_is_none_is_refused(batch: object) -> None:
    with pytest.raises(ConfigError, match="batch is"):
        batch_of({"batch": batch})


def test_an_artifact_is_opened_at_another_batch(first: First) -> None:
    folder = first.project.latest
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3)).astype(np.uint8)
    alone, together = runtime.load(folder), runtime.load(folder, batch=3)
    assert (alone.batch, together.batch) == (1, 3)
    assert np.allclose(alone.predict(images), together.predict(images))
    with pytest.raises(ConfigError, match="shape"):
        together.run([np.zeros((1, 8, 8, 3), np.float32)])


def test_an_artifact_of_one_batch_is_not_opened_at_another(built: Project) -> None:
    done = built.build("candidates=[null_fp32]", "candidate.null_fp32.steps.convert.fixed_batch=true")
    with pytest.raises(ConfigError, match=r"model.npz runs at batch 1 only, not at 2"):
        runtime.load(done.manifest_path.parent, batch=2)


def flat(num_classes: int) -> torch.nn.Module:
    return Flat(num_classes)


def token(num_classes: int) -> torch.nn.Module:
    return Token(num_classes)


def sliced(num_classes: int) -> torch.nn.Module:
    return Sliced(num_classes)


def fixed(num_classes: int) -> torch.nn.Module:
    return Fixed(num_classes)


def mixing(num_classes: int) -> torch.nn.Module:
    return Mixing(num_classes)
