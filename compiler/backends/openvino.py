"""OpenVINO IR: conversion from ONNX, int8 by NNCF's post-training quantization."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from compiler.conversion import SIGNATURE, Conversion
from compiler.errors import StepError
from compiler.limits import OneOf
from compiler.stage import PREVIOUS

PRESETS = ("mixed", "performance")
SOURCES = ("fp32", "int8")
RANGES = ("minmax", "mean_minmax")


@dataclasses.dataclass(kw_only=True)
class Convert(Conversion):
    """ONNX to `model.xml` and `model.bin`, weights in fp32. Execution precision is chosen when the IR is opened.

    source: precision of the ONNX, by which the result is judged; `int8` where it holds Q/DQ pairs, which OpenVINO
    rounds elsewhere than ONNX Runtime does.
    """

    tools: ClassVar[tuple[str, ...]] = ("openvino",)
    artifact: ClassVar[str] = "model.xml"
    runtime: ClassVar[str] = "openvino"
    runtime_options: ClassVar[Mapping[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}

    source: Annotated[str, OneOf(*SOURCES)] = "fp32"

    def precision(self) -> str:
        """The source's."""
        return self.source

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`.

        Raises:
            StepError: OpenVINO has no translation for an operator.
        """
        import openvino

        try:
            with contextlib.chdir(inputs["model"]):  # it takes a comma in a path for the end of the path
                model = openvino.convert_model("model.onnx")
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            named = next(
                (line for line in lines if "not supported" in line.lower() or "unsupported" in line.lower()),
                lines[-1] if lines else "",
            )
            raise StepError(
                f"OpenVINO cannot convert the model: {named}",
                fix="replace the operator, or choose candidates of another backend",
                details=lines[:6],
            ) from error
        _name_by_position(model)
        openvino.save_model(model, str(out / "model.xml"), compress_to_fp16=False)
        return {"operations": len(model.get_ops())}


def _name_by_position(model: Any) -> None:
    """Renames operations whose name is their type and a counter of the process, which differs from run to run."""
    for position, operation in enumerate(model.get_ordered_ops()):
        kind = operation.get_type_name()
        if re.fullmatch(rf"{re.escape(kind)}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{kind}_at_{position}")


@dataclasses.dataclass(kw_only=True)
class Quantize(Conversion):
    """A float IR to int8: weights per channel; preset `mixed` takes asymmetric activations, `performance` symmetric.

    ranges of the activations, over the calibration samples: `minmax` from the least value to the largest,
    `mean_minmax` (NNCF's own default) from the mean of the samples' least values to that of their largest, where a
    tensor has one range; one for each channel (a depthwise convolution's input) is `minmax` there too. The mean cuts
    off what few samples reach, which costs a network with hard-swish or squeeze-and-excitation accuracy.
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": PREVIOUS, "samples": "samples", "calibration": "calibrate"}
    tools: ClassVar[tuple[str, ...]] = ("openvino", "nncf", "numpy")
    artifact: ClassVar[str] = "model.xml"
    runtime: ClassVar[str] = "openvino"
    runtime_options: ClassVar[Mapping[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}

    preset: Annotated[str, OneOf(*PRESETS)] = "mixed"
    ranges: Annotated[str, OneOf(*RANGES)] = "minmax"
    fast_bias_correction: bool = True

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("nncf", "openvino")

    def precision(self) -> str:
        """int8."""
        return "int8"

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`."""
        import nncf
        import numpy as np
        import openvino
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        from compiler.runtime.preprocess import encode

        signature = json.loads((inputs["model"] / SIGNATURE).read_text())
        images = np.load(inputs["calibration"] / "samples.npy", mmap_mode="r", allow_pickle=False)
        dataset = nncf.Dataset(range(len(images)), lambda i: encode(images[i : i + 1], signature))
        quantized = nncf.quantize(
            openvino.Core().read_model(str(inputs["model"] / "model.xml")),
            dataset,
            preset=nncf.QuantizationPreset(self.preset),
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
            fast_bias_correction=self.fast_bias_correction,
            # NNCF's own rule cannot be named: MEAN_MINMAX given here would hold for ranges by channel as well
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=(
                    RangeEstimatorParametersSet.MINMAX if self.ranges == "minmax" else None
                )
            ),
        )
        _name_by_position(quantized)
        openvino.save_model(quantized, str(out / "model.xml"), compress_to_fp16=False)
        kinds = [op.get_type_name() for op in quantized.get_ops()]
        return {"fake_quantize_operations": kinds.count("FakeQuantize")}
