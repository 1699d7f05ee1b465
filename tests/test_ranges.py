"""Ranges of activations: what one sample reaches is kept, infinities have none, and optimizations are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.backends import openvino
from compiler.conversion import PROBE, SIGNATURE
from compiler.errors import ConfigError, StepError
from compiler.plan import make_stage
from compiler.stages import _optimized, quantize
from compiler.stages._kept import next_to_infinities
from compiler.stages.calibrate import Calibrate, finite_values, infinite_tensors, ranges

ENTRY = {"name": "x", "dtype": "float32", "shape": [1, 3, 4, 4], "layout": "NCHW"}
SIGNATURE_OF_X: dict[str, Any] = {
    "inputs": [ENTRY], "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 4], "layout": "NC"}],
    "preprocessing": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}, "trained": True,
}  # fmt: skip


def masked(folder: Path) -> dict[str, Path]:
    """Inputs of `calibrate`: scores (1, 3, 4, 4) with a mask of minus infinity added, then softmax."""
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["scores"], "add"),
        helper.make_node("Softmax", ["scores"], ["shares"], "softmax"),
        helper.make_node("ReduceMean", ["shares"], ["y"], "mean", axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "masked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(mask, "mask")],
    )  # fmt: skip
    (folder / "model").mkdir()
    (folder / "samples").mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "model" / "model.onnx",
    )
    (folder / "model" / SIGNATURE).write_text(json.dumps(SIGNATURE_OF_X))
    images = np.random.default_rng(5).integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.save(folder / "samples" / "calibration.npy", images)
    return {"model": folder / "model", "samples": folder / "samples"}


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_ranges_are_of_finite_values_and_infinite_tensors_are_named(tmp_path: Path, method: str) -> None:
    inputs, out = masked(tmp_path), tmp_path / "out"
    out.mkdir()
    assert Calibrate().run(inputs, out)["infinite"] == ["scores"]
    assert infinite_tensors(out) == {"scores"}
    assert all(np.isfinite(span).all() and span[0] >= -10 for span in ranges(out, method, 99.9).values())


def test_nodes_beside_infinities_stay_float(tmp_path: Path) -> None:
    graph = onnx.load(masked(tmp_path)["model"] / "model.onnx").graph
    assert next_to_infinities(graph, {"scores"}) == {"add", "softmax"}
    assert next_to_infinities(graph, set()) == {"add"}  # the mask itself is a constant that is not finite


def test_nan_is_an_error_that_names_the_tensor() -> None:
    values = np.array([1.0, np.nan, -np.inf], np.float32)
    with pytest.raises(StepError, match=r"tensor hidden\.7 .* NaN"):
        finite_values("hidden.7", values)
    assert finite_values("t", np.array([2.0, np.inf, -np.inf], np.float32)).tolist() == [2.0]


def test_unknown_ranges_of_openvino_are_refused() -> None:
    with pytest.raises(ConfigError, match="ranges is 'minmaxx', and must be one of minmax, mean_minmax; did you mean"):
        make_stage(openvino.Quantize, {"ranges": "minmaxx"}, "quantize")
    with pytest.raises(ConfigError, match="source is 'int4'"):
        make_stage(openvino.Convert, {"source": "int4"}, "convert")


@pytest.mark.parametrize(
    ("fused", "plain", "without", "expected"),
    [
        (2.0, 0.2, 0.2, _optimized.FUSER),  # optimizations spoil what the file says, and one of them is it
        (2.0, 0.2, 2.0, "another than " + _optimized.FUSER),
        (0.3, 0.2, 0.3, None),  # kernels round elsewhere
        (2.0, 2.0, 2.0, None),  # bad, but not by optimizations: `judge` has that
        (0.01, 0.0, 0.0, None),  # next to nothing
    ],
)
def test_optimizations_that_spoil_a_model_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: float, plain: float, without: float, expected: str | None
) -> None:
    inputs = masked(tmp_path)
    reference = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.save(inputs["model"] / PROBE, reference)

    def answers(model: Path, values: Any, optimized: bool, disabled: tuple[str, ...]) -> Any:
        return reference + ((without if disabled else fused) if optimized else plain)

    monkeypatch.setattr(_optimized, "_answers", answers)
    assert _optimized.spoiled_by(tmp_path / "model.onnx", inputs) == expected


def attending(folder: Path) -> dict[str, Path]:
    """Inputs of `quantize`: attention of x (1, 3, 4, 4) to itself, between two linear layers, to y (1, 4)."""
    inputs = masked(folder)
    draw = np.random.default_rng(6)
    query, value = (draw.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "query"], ["q"], "linear"),
        helper.make_node("Transpose", ["x"], ["k"], "turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "k"], ["scores"], "score"),
        helper.make_node("Softmax", ["scores"], ["shares"], "softmax"),
        helper.make_node("MatMul", ["shares", "x"], ["mixed"], "mix"),
        helper.make_node("MatMul", ["mixed", "value"], ["out"], "project"),
        helper.make_node("ReduceMean", ["out"], ["y"], "mean", axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(query, "query"), numpy_helper.from_array(value, "value")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model" / "model.onnx")
    (folder / "calibration").mkdir()
    Calibrate().run(inputs, folder / "calibration")
    return {**inputs, "calibration": folder / "calibration"}


def _int8(model: Path) -> set[str]:
    """The nodes that stand between DequantizeLinear and QuantizeLinear, which is what an int8 operator is made of."""
    graph = onnx.load(str(model)).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    read = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input}
    return {
        node.name
        for node in graph.node
        if made.get(node.input[0]) == "DequantizeLinear" and not read.isdisjoint(node.output)
    }


@pytest.mark.parametrize(
    ("spoiling", "left", "still_int8"),
    [
        ("softmax", ["mix", "score", "softmax"], {"linear", "project"}),
        ("project", ["linear", "mix", "project", "score", "softmax"], set()),
    ],
)
def test_operators_whose_fusion_spoils_the_answers_stay_float_and_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiling: str, left: list[str], still_int8: set[str]
) -> None:
    """What an optimization spoils depends on the CPU; here it is said to spoil one operator."""
    inputs, out = attending(tmp_path), tmp_path / "out"
    out.mkdir()
    asked: list[bool] = []

    def spoiled(model: Path, given: Any) -> str | None:
        asked.append(spoiling in _int8(model))
        return _optimized.FUSER if asked[-1] else None

    monkeypatch.setattr(quantize, "spoiled_by", spoiled)
    facts = quantize.Quantize(ranges="minmax").convert(inputs, out)
    assert facts["optimizer"] == {"name": _optimized.FUSER, "left_float": left} and asked[-2:] == [True, False]
    assert _int8(out / "model.onnx") & {"linear", "score", "softmax", "mix", "project"} == still_int8
    monkeypatch.setattr(quantize, "spoiled_by", lambda model, given: _optimized.FUSER)
    with pytest.raises(StepError, match=_optimized.FUSER):
        quantize.Quantize(ranges="minmax").convert(inputs, out)
