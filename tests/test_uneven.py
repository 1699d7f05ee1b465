"""Channels whose ranges differ too much for one scale: found by calibration, named where int8 fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.conversion import PROBE, SIGNATURE, compare, judge, probe
from compiler.errors import StepError
from compiler.stages.calibrate import Calibrate
from compiler.stages.quantize import Quantize
from compiler.uneven import ChannelRanges, uneven_layers

START: dict[str, Any] = {
    "inputs": [], "outputs": [], "labels": list("abcd"), "trained": True,
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}  # fmt: skip


def network(folder: Path, factor: float) -> dict[str, Path]:
    """Inputs of `calibrate` and `quantize`: two convolutions; `factor` scales a channel between them, and back."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.3
    second = rng.standard_normal((4, 8, 3, 3)).astype(np.float32) * 0.3
    first[2] *= factor
    second[:, 2] /= factor
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["hidden"], "body/first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["hidden"], ["positive"], "relu"),
        helper.make_node("Conv", ["positive", "w2"], ["maps"], "body/second", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["maps"], ["y"], "pool", axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "uneven",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")],
    )  # fmt: skip
    model, samples = folder / "model", folder / "samples"
    for made in (model, samples, folder / "calibration", folder / "out"):
        made.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model / "model.onnx")
    np.save(samples / "calibration.npy", rng.integers(0, 256, (16, 8, 8, 3), np.uint8))
    outputs, signature = probe(model / "model.onnx", "onnxruntime", {}, START, samples, "NCHW")
    np.save(model / PROBE, outputs)
    (model / SIGNATURE).write_text(json.dumps(signature))
    Calibrate().run({"model": model, "samples": samples}, folder / "calibration")
    return {"model": model, "samples": samples, "calibration": folder / "calibration"}


def test_int8_that_fails_by_uneven_channels_names_the_layer_and_no_other_quantizer(tmp_path: Path) -> None:
    inputs = network(tmp_path, 1000.0)
    with pytest.raises(StepError) as failed:
        Quantize(ranges="minmax").run(inputs, tmp_path / "out")
    assert "body/first" in str(failed.value.details) and "body/second" not in str(failed.value.details)
    assert "equalization" in failed.value.fix and "quantizer" not in failed.value.fix


def test_the_same_function_with_even_channels_quantizes_and_nothing_is_recorded(tmp_path: Path) -> None:
    inputs = network(tmp_path, 1.0)
    assert Quantize(ranges="minmax").run(inputs, tmp_path / "out")["fidelity"]["centred_cosine"] > 0.9
    assert "uneven" not in json.loads((inputs["calibration"] / "calibration.json").read_text())
    assert uneven_layers(inputs["calibration"]) == [] == uneven_layers(None)


def test_channels_without_any_value_do_not_count() -> None:
    found = ChannelRanges([helper.make_node("Gemm", ["x", "w"], ["y"], "head")])
    found.add("y", np.array([[0.0, 0.0, 0.0, 2.0, 3.0]], np.float32))
    found.add("other", np.array([[1.0, 1e6]], np.float32))
    assert found.uneven() == []
    found.add("y", np.array([[0.0, np.inf, 0.01, 2.0, 900.0]], np.float32))
    assert [row["layer"] for row in found.uneven()] == ["head"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_garbage_of_an_untrained_network_fails_by_its_relative_error(precision: str) -> None:
    """Its samples differ by so little that correlations of the rest say nothing."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal(6) + 1e-5 * rng.standard_normal((32, 6))).astype(np.float32)
    near = logits * np.float32(1.004)
    judge(compare(logits, near), precision, trained=False)
    for garbage in (rng.standard_normal((32, 6)).astype(np.float32), logits * -1, logits * 40, np.zeros_like(logits)):
        with pytest.raises(StepError, match="relative error"):
            judge(compare(logits, garbage), precision, trained=False)
