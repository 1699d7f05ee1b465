"""The float16 ONNX: as accurate, float32 at its ends, and float32 inside where float16 cannot hold the values."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from steps import Steps, imagenet, mobilenetv3

from compiler.errors import ConfigError
from compiler.qdq import violations
from compiler.stages._half import convert, sensitive
from compiler.stages.calibrate import Calibrate
from compiler.stages.cast import Cast
from compiler.stages.quantize import Quantize

__all__ = ["imagenet", "mobilenetv3"]  # fixtures
pytestmark = pytest.mark.real

FLOAT16_KINDS = {"Conv": 52, "Gemm": 2, "HardSwish": 19, "Relu": 14, "HardSigmoid": 9, "Mul": 9, "Add": 6}


@pytest.fixture(scope="session")
def half(mobilenetv3: Steps, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """MobileNetV3 in float16: its folder, and the stage's facts."""
    out = tmp_path_factory.mktemp("half")
    return out, Cast().run(mobilenetv3.inputs(), out)


@pytest.fixture(scope="session")
def quantized(mobilenetv3: Steps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV3 quantized for TensorRT."""
    out = tmp_path_factory.mktemp("quantized")
    Quantize(placement="tensorrt", ranges="mse").run(mobilenetv3.inputs(), out)
    return out


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of each tensor."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def test_the_whole_network_is_float16_between_float32_ends(half: tuple[Path, dict[str, Any]]) -> None:
    facts = half[1]
    assert facts["fp32_nodes"] == [] and facts["casts"] == 2 and facts["dynamic_batch"]
    assert facts["fp16_operators"].items() >= FLOAT16_KINDS.items()
    assert facts["fp16_nodes"] == sum(facts["fp16_operators"].values())
    model = onnx.load(str(half[0] / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    known = types(model)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {known[name] for node in convolutions for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}


def test_accuracy_on_digits_is_kept(mobilenetv3: Steps, half: tuple[Path, dict[str, Any]]) -> None:
    before = mobilenetv3.top1(mobilenetv3.folder / "fuse", "report")
    assert abs(mobilenetv3.top1(half[0], "report") - before) <= 0.25
    assert half[1]["fidelity"]["centred_cosine"] > 0.9999
    assert (half[0] / "model.onnx").stat().st_size < 0.55 * (mobilenetv3.folder / "fuse/model.onnx").stat().st_size


@pytest.mark.soak
def test_accuracy_on_imagenet_is_kept(imagenet: Steps, tmp_path: Path) -> None:
    Cast().run(imagenet.inputs(), tmp_path)
    before = imagenet.top1(imagenet.folder / "fuse", "selection", "report")
    after = imagenet.top1(tmp_path, "selection", "report")
    print(f"{before:.2f} % in fp32, {after:.2f} % in fp16, of 400 images")
    assert abs(after - before) <= 0.5


def test_the_same_bytes_twice(mobilenetv3: Steps, half: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    Cast().convert(mobilenetv3.inputs(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == (half[0] / "model.onnx").read_bytes()


def planted(mobilenetv3: Steps, folder: Path) -> Path:
    """The fused network with one activation made 10^5 times as large, by two nodes, and small again."""
    shutil.copytree(mobilenetv3.folder / "fuse", folder)
    model = mobilenetv3.onnx()
    at, relu = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Relu")
    wanted, relu.output[0] = relu.output[0], "small"
    for name, value in (("hundred", 100.0), ("thousand", 1000.0), ("back", 1e-5)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    steps = [("small", "hundred", "large"), ("large", "thousand", "huge"), ("huge", "back", wanted)]
    for offset, (source, factor, made) in enumerate(steps):
        node = helper.make_node("Mul", [source, factor], [made], name=f"planted_{made}")
        model.graph.node.insert(at + 1 + offset, node)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


def test_a_planted_large_activation_stays_float32(mobilenetv3: Steps, tmp_path: Path) -> None:
    folder = planted(mobilenetv3, tmp_path / "planted")
    inputs = mobilenetv3.inputs(folder)
    inputs["calibration"] = tmp_path / "calibrate"
    inputs["calibration"].mkdir()
    Calibrate().run({"model": folder, "samples": inputs["samples"]}, inputs["calibration"])
    (tmp_path / "out").mkdir()
    facts = Cast().run(inputs, tmp_path / "out")
    rows = {row["node"]: row["why"] for row in facts["fp32_nodes"]}
    assert "planted_huge" in rows and "above data_max 512" in rows["planted_huge"]
    model = onnx.load(str(tmp_path / "out" / "model.onnx"))
    known = types(model)
    chain = {node.name: node for node in model.graph.node if node.name in rows}
    assert {known[node.output[0]] for node in chain.values()} == {TensorProto.FLOAT}
    after = next(node for node in chain.values() if "back" in node.input[1])
    assert chain["planted_huge"].output[0] == after.input[0]  # past float16, not through it
    assert facts["fp16_operators"]["Conv"] == 52 and len(rows) <= 5
    assert facts["fidelity"]["centred_cosine"] > 0.9999


def network(*constants: np.ndarray) -> onnx.ModelProto:
    """x -> two products of it -> their sum -> the sum with itself -> y; float32 (1, 4)."""
    nodes = [
        helper.make_node("Mul", ["x", "c0"], ["a"], name="first"),
        helper.make_node("Mul", ["x", "c1"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["s"], name="sum"),
        helper.make_node("Add", ["s", "s"], ["d"], name="double"),
        helper.make_node("Mul", ["d", "c2"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(c, np.float32), f"c{i}") for i, c in enumerate(constants)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


ONES = np.ones(4)


def fp32(model: onnx.ModelProto, **magnitudes: float) -> dict[str, str]:
    return sensitive(model, magnitudes, (), 512.0, 65504.0, 0.01)


def test_weights_that_overflow_or_underflow_stay_float32() -> None:
    reasons = fp32(network(1e5 * ONES, 1e-9 * ONES, ONES))
    assert reasons == {
        "first": "c0 reaches 1e+05, above init_max 65504",
        "second": "c1 loses 1 of its norm, above init_loss 0.01: it is too small",
    }
    # a few tiny weights among ordinary ones are no loss
    assert fp32(network(np.array([1, 1, 1, 1e-9]), ONES, ONES)) == {}


def test_both_sides_of_a_large_tensor_stay_float32() -> None:
    reasons = fp32(network(ONES, ONES, ONES), s=513.0, d=100.0, a=512.0)
    assert set(reasons) == {"sum", "double"}


@pytest.mark.parametrize("names", [set(), {"first"}, {"first", "second"}, {"sum", "double"}, {"double", "last"},
                                   {"first", "second", "sum", "double", "last"}])  # fmt: skip
def test_any_nodes_may_stay_float32_beside_each_other(names: set[str]) -> None:
    """Each tensor between is cast where its two ends differ, and only there."""
    model = network(ONES, 2 * ONES, ONES)
    x = np.array([[1.0, -2.0, 3.0, 4.0]], np.float32)
    before = run(model, x)
    result, facts = convert(onnx.ModelProto.FromString(model.SerializeToString()), dict.fromkeys(names, "asked"))
    onnx.checker.check_model(result, full_check=True)
    assert {row["node"] for row in facts["fp32_nodes"]} == names and facts["fp16_nodes"] == 5 - len(names)
    known = types(result)
    made = {node.name: known[node.output[0]] for node in result.graph.node if node.op_type != "Cast"}
    assert all(made[name] == TensorProto.FLOAT for name in names)
    assert result.graph.output[0].name == "y" and known["x"] == known["y"] == TensorProto.FLOAT
    np.testing.assert_allclose(run(result, x), before, rtol=1e-3)


def test_what_is_too_large_for_float16_passes_only_with_care() -> None:
    """In the reference implementation, whose float16 is float16 everywhere."""
    x = np.array([[1.0, -2.0, 3.0, 4.0]], np.float32)
    large = network(1e4 * ONES, 1e4 * ONES, 1e-4 * ONES)
    reasons = fp32(large, x=4.0, a=4e4, b=4e4, s=8e4, d=1.6e5, y=16.0)
    assert set(reasons) == {"first", "second", "sum", "double", "last"}
    careless, careful = (
        ReferenceEvaluator(convert(onnx.ModelProto.FromString(large.SerializeToString()), why)[0]).run(None, {"x": x})
        for why in ({}, reasons)
    )
    assert not np.isfinite(careless[0]).all()
    np.testing.assert_allclose(careful[0], 4 * x, rtol=1e-3)


def test_kept_nodes_and_types_stay_float32(mobilenetv3: Steps, tmp_path: Path) -> None:
    first = next(node.name for node in mobilenetv3.onnx().graph.node if node.op_type == "Conv")
    facts = Cast(keep=(first, "Gemm")).run(mobilenetv3.inputs(), tmp_path)
    assert {(row["op"], row["why"]) for row in facts["fp32_nodes"]} == {
        ("Conv", "kept by the configuration"), ("Gemm", "kept by the configuration"),
    }  # fmt: skip
    assert len(facts["fp32_nodes"]) == 3 and facts["fp16_operators"]["Conv"] == 51


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": ("HardSwisch",)}, "unknown node or operator type 'HardSwisch'; did you mean 'HardSwish'"),
        ({"data_max": 0.0}, "data_max is 0"),
        ({"init_max": 70000.0}, "init_max is 70000"),
        ({"init_loss": 2.0}, "init_loss is 2"),
    ],
)
def test_wrong_fields_are_answered(mobilenetv3: Steps, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Cast(**fields).convert(mobilenetv3.inputs(), tmp_path)


# After quantization: Q/DQ pairs with float16 around them


def test_pairs_keep_their_rules_in_float16(mobilenetv3: Steps, quantized: Path, tmp_path: Path) -> None:
    facts = Cast().run(mobilenetv3.inputs(quantized), tmp_path)
    assert facts["fp32_nodes"] == [] and facts["casts"] == 2 and facts["dynamic_batch"]
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert violations(model) == [] and model.opset_import[0].version == 19
    known = types(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {known[node.input[1]] for node in pairs} == {TensorProto.FLOAT16}
    before = mobilenetv3.top1(mobilenetv3.folder / "fuse", "report")
    assert mobilenetv3.top1(tmp_path, "report") >= before - 1.0


@pytest.mark.parametrize("seed", range(6))
def test_any_kept_nodes_leave_a_sound_network(mobilenetv3: Steps, quantized: Path, tmp_path: Path, seed: int) -> None:
    """No cast comes between a DequantizeLinear and its operator: the stage checks the rules, and the outputs."""
    model = onnx.load(str(quantized / "model.onnx"))
    names = [node.name for node in model.graph.node]
    keep = tuple(random.Random(seed).sample(names, 1 + 4 * seed))
    facts = Cast(keep=keep).run(mobilenetv3.inputs(quantized), tmp_path)
    assert {row["node"] for row in facts["fp32_nodes"]} >= set(keep)
    assert facts["fidelity"]["centred_cosine"] > 0.999
