"""Q/DQ where TensorRT fuses: each rule holds in real networks, and each planted violation is found and named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from steps import Steps, imagenet, mobilenetv3, untrained

import compiler.stages.quantize
from compiler.errors import ConfigError, StepError
from compiler.plan import make_stage
from compiler.qdq import RULES, violations
from compiler.stages._explicit import _scales, place
from compiler.stages._limits import METHODS, limits
from compiler.stages.quantize import Quantize

__all__ = ["imagenet", "mobilenetv3", "untrained"]  # fixtures
pytestmark = pytest.mark.real

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@pytest.fixture(scope="session")
def good(mobilenetv3: Steps, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """MobileNetV3 quantized for TensorRT: its folder, and the stage's facts."""
    out = tmp_path_factory.mktemp("good")
    return out, Quantize(placement="tensorrt", ranges="mse").run(mobilenetv3.inputs(), out)


@pytest.fixture
def model(good: tuple[Path, dict[str, Any]]) -> onnx.ModelProto:
    """A copy of it, to spoil."""
    return onnx.load(str(good[0] / "model.onnx"))


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def of_type(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def check_structure(model: onnx.ModelProto, adds: int) -> None:
    """Every rule once more, in other words than the checker's: by walking back from each operator."""
    onnx.checker.check_model(model, full_check=True)
    made = makers(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    takers = Counter(name for node in model.graph.node for name in node.input)

    def pair(name: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        after = made[name]
        before = made[after.input[0]]
        assert (before.op_type, after.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert before.input[1:] == after.input[1:] and before.attribute == after.attribute
        assert takers[before.output[0]] == takers[after.output[0]] == 1
        scale, zero = arrays[before.input[1]], arrays[before.input[2]]
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape
        assert np.isfinite(scale).all() and (scale > 0).all()
        return before, after

    for node in of_type(model, *WEIGHTED):
        activation, weight = pair(node.input[0])[0], pair(node.input[1])[0]
        assert activation.input[0] not in arrays and arrays[activation.input[1]].shape == ()
        values = arrays[weight.input[0]]
        rows = next((a.i for a in node.attribute if a.name == "transB"), 0) if node.op_type == "Gemm" else 1
        axis = 0 if rows else 1
        assert weight.attribute[0].name == "axis" and weight.attribute[0].i == axis
        largest = np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(axis=1)
        np.testing.assert_allclose(arrays[weight.input[1]] * 127, np.where(largest > 0, largest, 1), rtol=1e-6)
        if len(node.input) > 2:
            assert arrays[node.input[2]].dtype == np.float32
    sums = of_type(model, "Add")
    assert len(sums) == adds
    for node in sums:
        sides = [made[name].op_type for name in node.input]
        assert sorted(sides) == ["Conv", "DequantizeLinear"]
        assert takers[node.input[sides.index("Conv")]] == 1
        pair(node.input[sides.index("DequantizeLinear")])


def test_every_rule_holds_in_mobilenetv3(good: tuple[Path, dict[str, Any]], model: onnx.ModelProto) -> None:
    facts = good[1]
    assert facts["quantized"] == {"Conv": 52, "Gemm": 2}
    assert facts["residual_adds"] == 6 and facts["left_float"] == []
    assert facts["quantize_nodes"] == facts["dequantize_nodes"] == 2 * 54 + 6
    assert facts["dynamic_batch"]
    assert violations(model) == []
    check_structure(model, adds=6)
    depthwise = [n for n in of_type(model, "Conv") if any(a.name == "group" and a.i > 1 for a in n.attribute)]
    assert len(depthwise) == 11


@pytest.mark.parametrize(
    ("architecture", "quantized", "adds"),
    [("mobilenet_v2", {"Conv": 52, "Gemm": 1}, 10), ("resnet50", {"Conv": 53, "Gemm": 1}, 16)],
)
def test_every_rule_holds_in_other_networks(
    untrained: Callable[[str], Steps], tmp_path: Path, architecture: str, quantized: dict[str, int], adds: int
) -> None:
    facts = Quantize(placement="tensorrt").run(untrained(architecture).inputs(), tmp_path)
    assert facts["quantized"] == quantized
    assert facts["residual_adds"] == adds and facts["left_float"] == []
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert violations(model) == []
    check_structure(model, adds)
    if architecture != "resnet50":
        return
    made = makers(model)
    shortcuts = 0
    for node in of_type(model, "Add"):
        residual = next(made[name] for name in node.input if made[name].op_type == "DequantizeLinear")
        maker = made[made[residual.input[0]].input[0]]
        if maker.op_type == "Conv":  # a block that changes the shape: the shortcut is quantized, not the longer way
            shortcuts += 1
            assert "downsample" in made[made[maker.input[1]].input[0]].input[0]
    assert shortcuts == 4


def test_accuracy_on_digits_stays_within_a_point(mobilenetv3: Steps, good: tuple[Path, dict[str, Any]]) -> None:
    before = mobilenetv3.top1(mobilenetv3.folder / "fuse", "report")
    assert before >= 98.5
    assert mobilenetv3.top1(good[0], "report") >= before - 1.0
    assert good[1]["fidelity"]["centred_cosine"] > 0.999


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_accuracy_on_imagenet_stays_within_a_point(imagenet: Steps, tmp_path: Path, method: str) -> None:
    Quantize(placement="tensorrt", ranges=method).run(imagenet.inputs(), tmp_path)
    before = imagenet.top1(imagenet.folder / "fuse", "selection", "report")
    after = imagenet.top1(tmp_path, "selection", "report")
    print(f"{method}: {before:.2f} % in fp32, {after:.2f} % in int8, of 400 images")
    assert after >= before - 1.0


def test_the_same_bytes_twice(mobilenetv3: Steps, good: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    Quantize(placement="tensorrt", ranges="mse").convert(mobilenetv3.inputs(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == (good[0] / "model.onnx").read_bytes()


# Planted violations: each changes a good model and returns the node that must be named.


def constant(model: onnx.ModelProto, value: Any) -> str:
    name = f"planted_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def pair_before(model: onnx.ModelProto, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    made = makers(model)
    return made[made[name].input[0]], made[name]


def set_grid(model: onnx.ModelProto, name: str, scale: Any, zero: Any) -> None:
    grid = [constant(model, scale), constant(model, zero)]
    for node in pair_before(model, name):
        del node.input[1:]
        node.input.extend(grid)


def insert(model: onnx.ModelProto, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    at = [n.output[0] for n in model.graph.node].index(before.output[0])
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)


def conv(model: onnx.ModelProto) -> onnx.NodeProto:
    return of_type(model, "Conv")[7]


def residual(model: onnx.ModelProto) -> tuple[onnx.NodeProto, int]:
    node = of_type(model, "Add")[2]
    return node, [makers(model)[name].op_type for name in node.input].index("DequantizeLinear")


def unsorted(model: onnx.ModelProto) -> str:
    first = onnx.NodeProto.FromString(model.graph.node[0].SerializeToString())
    del model.graph.node[0]
    model.graph.node.append(first)
    return ""


def no_pair_on(index: int) -> Callable[[onnx.ModelProto], str]:
    def plant(model: onnx.ModelProto) -> str:
        node = conv(model)
        node.input[index] = pair_before(model, node.input[index])[0].input[0]
        return node.name

    return plant


def other_scale(model: onnx.ModelProto) -> str:
    after = pair_before(model, conv(model).input[0])[1]
    after.input[1] = constant(model, np.float32(0.5))
    return after.name


def other_axis(model: onnx.ModelProto) -> str:
    after = pair_before(model, conv(model).input[1])[1]
    after.attribute[0].i = 1
    return after.name


def torn(model: onnx.ModelProto) -> str:
    before, after = pair_before(model, conv(model).input[0])
    insert(model, after, helper.make_node("Relu", [before.output[0]], ["torn"], name="torn"))
    after.input[0] = "torn"
    return before.name


def int8_weights(model: onnx.ModelProto) -> str:
    after = pair_before(model, conv(model).input[1])[1]
    shape = numpy_helper.to_array(
        next(t for t in model.graph.initializer if t.name == pair_before(model, after.output[0])[0].input[0])
    ).shape
    after.input[0] = constant(model, np.zeros(shape, np.int8))
    return after.name


def something_between(model: onnx.ModelProto) -> str:
    node = conv(model)
    after = pair_before(model, node.input[0])[1]
    insert(model, node, helper.make_node("Relu", [node.input[0]], ["between"], name="between"))
    node.input[0] = "between"
    return after.name


def activation(scale: Any, zero: Any) -> Callable[[onnx.ModelProto], str]:
    def plant(model: onnx.ModelProto) -> str:
        set_grid(model, conv(model).input[0], scale, zero)
        return conv(model).name

    return plant


def activation_per_channel(model: onnx.ModelProto) -> str:
    node = conv(model)
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    weights = pair_before(model, node.input[1])[0].input[0]
    channels = group * next(t for t in model.graph.initializer if t.name == weights).dims[1]
    set_grid(model, node.input[0], np.full(channels, 0.1, np.float32), np.zeros(channels, np.int8))
    return node.name


def weight(change: Callable[[np.ndarray], tuple[Any, Any]]) -> Callable[[onnx.ModelProto], str]:
    def plant(model: onnx.ModelProto) -> str:
        node = conv(model)
        name = pair_before(model, node.input[1])[0].input[1]
        scale = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
        set_grid(model, node.input[1], *change(scale))
        return node.name

    return plant


def wrong_axis(model: onnx.ModelProto) -> str:
    node = conv(model)
    weights = pair_before(model, node.input[1])[0].input[0]
    length = next(t for t in model.graph.initializer if t.name == weights).dims[1]
    set_grid(model, node.input[1], np.full(length, 0.1, np.float32), np.zeros(length, np.int8))
    for quantizer in pair_before(model, node.input[1]):
        quantizer.attribute[0].i = 1
    return node.name


def gemm_wrong_axis(model: onnx.ModelProto) -> str:
    node = of_type(model, "Gemm")[0]
    weights = pair_before(model, node.input[1])[0].input[0]
    length = next(t for t in model.graph.initializer if t.name == weights).dims[1]
    set_grid(model, node.input[1], np.full(length, 0.1, np.float32), np.zeros(length, np.int8))
    for quantizer in pair_before(model, node.input[1]):
        quantizer.attribute[0].i = 1
    return node.name


def quantized_bias(model: onnx.ModelProto) -> str:
    node = conv(model)
    grid = [constant(model, np.float32(0.01)), constant(model, np.int8(0))]
    insert(
        model, node, helper.make_node("QuantizeLinear", [node.input[2], *grid], ["bias_int8"], name="bias_q"),
        helper.make_node("DequantizeLinear", ["bias_int8", *grid], ["bias_float"], name="bias_dq"),
    )  # fmt: skip
    node.input[2] = "bias_float"
    return node.name


def float_residual(model: onnx.ModelProto) -> str:
    node, side = residual(model)
    node.input[side] = pair_before(model, node.input[side])[0].input[0]
    return node.name


def both_branches(model: onnx.ModelProto) -> str:
    node, side = residual(model)
    grid = [constant(model, np.float32(0.1)), constant(model, np.int8(0))]
    insert(
        model, node, helper.make_node("QuantizeLinear", [node.input[1 - side], *grid], ["main_int8"], name="main_q"),
        helper.make_node("DequantizeLinear", ["main_int8", *grid], ["main_float"], name="main_dq"),
    )  # fmt: skip
    node.input[1 - side] = "main_float"
    return node.name


def wrong_branch(model: onnx.ModelProto) -> str:
    both_branches(model)
    return float_residual(model)


def float_operator(model: onnx.ModelProto) -> str:
    for index in (0, 1):
        no_pair_on(index)(model)
    return conv(model).name


PLANTED = [
    ("valid", unsorted),
    ("both_inputs", no_pair_on(0)),
    ("both_inputs", no_pair_on(1)),
    ("pair", other_scale),
    ("pair", other_axis),
    ("pair", torn),
    ("pair", int8_weights),
    ("direct", something_between),
    ("activation", activation(np.float32(0.1), np.int8(3))),
    ("activation", activation(np.float32(0.1), np.uint8(0))),
    ("activation", activation(np.float32(0.0), np.int8(0))),
    ("activation", activation(np.float32(-0.1), np.int8(0))),
    ("activation", activation(np.float32(np.inf), np.int8(0))),
    ("activation", activation_per_channel),
    ("weight", weight(lambda scale: (scale.max(), np.int8(0)))),
    ("weight", weight(lambda scale: (scale[:-1], np.zeros(len(scale) - 1, np.int8)))),
    ("weight", weight(lambda scale: (scale, np.ones(len(scale), np.int8)))),
    ("weight", weight(lambda scale: (scale, np.zeros(len(scale), np.uint8)))),
    ("weight", weight(lambda scale: (scale * np.float32(np.nan), np.zeros(len(scale), np.int8)))),
    ("weight", wrong_axis),
    ("weight", gemm_wrong_axis),
    ("bias", quantized_bias),
    ("residual", float_residual),
    ("residual", both_branches),
    ("residual", wrong_branch),
    ("left_float", float_operator),
]


@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_planted_violation_is_named(
    model: onnx.ModelProto, rule: str, plant: Callable[[onnx.ModelProto], str]
) -> None:
    node = plant(model)
    assert (rule, node) in {(found.rule, found.node) for found in violations(model)}


def test_each_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _ in PLANTED} == set(RULES)


def test_what_is_float_on_purpose_is_no_violation(model: onnx.ModelProto) -> None:
    name = float_operator(model)
    assert violations(model, {name}) == []


# The stage


def test_keep_leaves_a_node_or_a_type_float_and_says_so(mobilenetv3: Steps, tmp_path: Path) -> None:
    first = of_type(mobilenetv3.onnx(), "Conv")[0].name
    facts = Quantize(placement="tensorrt", keep=(first, "Gemm")).convert(mobilenetv3.inputs(), tmp_path)
    assert facts["quantized"] == {"Conv": 51}
    assert {row["node"] for row in facts["left_float"]} >= {first}
    assert Counter(row["op"] for row in facts["left_float"]) == {"Conv": 1, "Gemm": 2}
    assert {row["why"] for row in facts["left_float"]} == {"kept by the configuration"}


def test_keep_works_for_onnxruntime_too(mobilenetv3: Steps, tmp_path: Path) -> None:
    Quantize(keep=("Gemm",)).convert(mobilenetv3.inputs(), tmp_path)
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert {makers(model)[node.input[1]].op_type for node in of_type(model, "Conv")} == {"DequantizeLinear"}
    weights = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in weights for node in of_type(model, "Gemm"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"placement": "tensorflow"}, "must be one of onnxruntime, tensorrt; did you mean 'tensorrt'?"),
        (
            {"placement": "tensorrt", "ranges": "msee"},
            "(placement tensorrt) 'msee'; did you mean 'mse'?",
        ),
        ({"ranges": "mse"}, "unknown ranges (placement onnxruntime) 'mse'"),
        ({"placement": "tensorrt", "percentile": 5.0}, "percentile is 5.0"),
        ({"placement": "tensorrt", "reduce_range": True}, "reduce_range is for CPUs"),
        ({"placement": "tensorrt", "keep": ("Con",)}, "unknown node or operator type 'Con'; did you mean 'Conv'?"),
    ],
)
def test_wrong_fields_are_answered(mobilenetv3: Steps, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        make_stage(Quantize, fields, "quantize").convert(mobilenetv3.inputs(), tmp_path)  # type: ignore[attr-defined]


def test_the_stage_fails_on_a_violation(mobilenetv3: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: onnx.ModelProto, *given: Any) -> Any:
        placed = place(model, *given)
        float_residual(model)
        return placed

    monkeypatch.setattr(compiler.stages.quantize, "place", spoiled)
    with pytest.raises(StepError, match="breaks 1 of TensorRT's rules") as caught:
        Quantize(placement="tensorrt").convert(mobilenetv3.inputs(), tmp_path)
    assert caught.value.details[0].startswith("residual: ")


# Networks made by hand, for what the real ones do not have


def network(nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)  # the checker wants the output's shape
    del model.graph.value_info[:]
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


HAND_MADE = {
    "gemm": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n")], {"w": normal(4, 6), "b": normal(6)}, 1),
    "gemm_rows": ([helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transB=1)], {"w": normal(6, 4)}, 0),
    "matmul": ([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], {"w": normal(4, 6)}, 1),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_weights_are_quantized_along_their_outputs(case: str) -> None:
    nodes, constants, axis = HAND_MADE[case]
    model = network(nodes, constants, [3, 4])
    x = normal(3, 4)
    before = run(model, x)
    placed = place(model, {"x": float(np.abs(x).max())}, ())
    assert sum(placed.quantized.values()) == 1 and violations(model) == []
    quantizer = next(node for node in of_type(model, "QuantizeLinear") if node.input[0] == "w")
    assert quantizer.attribute[0].i == axis
    assert numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == quantizer.input[1])).shape == (
        constants["w"].shape[axis],
    )
    assert np.abs(run(model, x) - before).max() < 0.05 * np.abs(before).max()


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_weights_on_the_left_stay_float_where_tensorrt_takes_no_scale_a_channel(kind: str) -> None:
    model = network([helper.make_node(kind, ["w", "x"], ["y"], name="n")], {"w": normal(5, 3)}, [3, 4])
    placed = place(model, {"x": 3.0}, ())
    assert placed.quantized == {} and "are its first input" in placed.left_float[0]["why"]
    assert violations(model, {"n"}) == []


def test_a_grouped_transposed_convolution_stays_float() -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="n", group=2)]
    model = network(nodes, {"w": normal(4, 3, 2, 2)}, [1, 4, 5, 5])
    placed = place(model, {"x": 3.0}, ())
    assert placed.left_float[0]["why"] == "TensorRT before 10.9 takes no grouped ConvTranspose in int8"
    assert violations(model, {"n"}) == []


def test_transposed_convolutions_have_their_scales_along_the_first_axis() -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="n")]
    model = network(nodes, {"w": normal(4, 3, 2, 2)}, [1, 4, 5, 5])
    x = normal(1, 4, 5, 5)
    before = run(model, x)
    place(model, {"x": float(np.abs(x).max())}, ())
    assert violations(model) == []
    assert of_type(model, "QuantizeLinear")[1].attribute[0].i == 0
    assert np.abs(run(model, x) - before).max() < 0.05 * np.abs(before).max()


def test_a_product_of_two_activations_has_pairs_on_both() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["x", "r"], ["y"], name="n")]
    model = network(nodes, {}, [4, 4])
    place(model, {"x": 3.0, "r": 3.0}, ())
    assert violations(model) == []
    assert [pair_before(model, name)[0].input[0] for name in of_type(model, "MatMul")[0].input] == ["x", "r"]
    same = network([helper.make_node("MatMul", ["x", "x"], ["y"], name="n")], {}, [4, 4])
    place(same, {"x": 3.0}, ())
    assert violations(same) == [] and len(of_type(same, "QuantizeLinear")) == 2


def test_other_takers_of_a_quantized_tensor_keep_it_float() -> None:
    """One tensor into two convolutions, a pool, a residual Add and the output."""
    one = np.ones((2, 2, 1, 1), np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["a"], name="first"),
        helper.make_node("Conv", ["r", "w"], ["b"], name="second"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Add", ["r", "a"], ["s"], name="sum"),
        helper.make_node("Add", ["b", "p"], ["t"], name="other_sum"),
        helper.make_node("Mul", ["s", "t"], ["y"]),
    ]
    model = network(nodes, {"w": one}, [1, 2, 3, 3])
    placed = place(model, dict.fromkeys("xrabpst", 2.0), ())
    assert violations(model) == [] and placed.residual_adds == 2
    made = makers(model)
    pool = of_type(model, "GlobalAveragePool")[0]
    assert made[pool.input[0]].op_type == "Relu"
    pairs = [made[name].output[0] for node in of_type(model, "Conv") for name in node.input]
    assert len(set(pairs)) == 4
    assert len([n for n in of_type(model, "QuantizeLinear") if n.input[0] == "r"]) == 3


def test_a_convolution_that_others_take_too_is_not_fused_with_an_add() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["a", "r"], ["y"], name="sum"),
    ]
    model = network(nodes, {"w": np.ones((2, 2, 1, 1), np.float32)}, [1, 2, 3, 3])
    assert place(model, dict.fromkeys("xar", 2.0), ()).residual_adds == 0
    assert violations(model) == []


def test_what_cannot_be_quantized_is_left_float_with_a_reason() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "x"], ["a"], name="computed"),
        helper.make_node("Reshape", ["a", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["m"], name="vector"),
        helper.make_node("Relu", ["m"], ["unseen"]),
        helper.make_node("MatMul", ["unseen", "u"], ["h"], name="blind"),
        helper.make_node("MatMul", ["h", "k"], ["y"], name="batch"),
    ]
    constants = {"shape": np.array([1, 1]), "v": normal(1), "u": normal(1, 2), "k": normal(3, 2, 2)}
    model = network(nodes, constants, [1, 2, 3, 3])
    placed = place(model, dict.fromkeys("xafmh", 2.0), ())
    assert placed.quantized == {}
    assert [(row["node"], row["why"]) for row in placed.left_float] == [
        ("computed", "its weights are computed while the network runs"),
        ("vector", "its weights v are float32 with 1 dimensions"),
        ("blind", "calibration did not see its input unseen"),
        ("batch", "its weights k are a batch of matrices"),
    ]
    assert violations(model, {row["node"] for row in placed.left_float}) == []
    assert {found.node for found in violations(model)} == {"computed", "vector", "blind", "batch"}


# Ranges


def histograms(folder: Path, low: float, high: float, counts: np.ndarray) -> Path:
    np.savez(
        folder / "histograms.npz", names=np.array(["t"]), low=np.array([low]), high=np.array([high]),
        counts=counts[None].astype(np.int64),
    )  # fmt: skip
    return folder


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-1e4, 1e4), width=st.floats(1e-3, 1e4), percentile=st.floats(50.1, 100.0),
    counts=arrays(np.int64, 64, elements=st.integers(0, 1000)),
)  # fmt: skip
def test_a_symmetric_range_covers_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, low: float, width: float, percentile: float, counts: np.ndarray
) -> None:
    high = low + width
    folder = histograms(tmp_path_factory.mktemp("h"), low, high, counts)
    largest = limits(folder, "minmax", 100.0)["t"]
    assert largest == max(abs(low), abs(high))
    cut = limits(folder, "percentile", percentile)["t"]
    assert 0 < cut <= largest
    assert limits(folder, "percentile", 100.0)["t"] <= largest
    if counts.sum():
        edges = np.linspace(low, high, 65)
        inside = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:])) <= cut * (1 + 1e-9)
        assert counts[inside].sum() >= percentile / 100 * counts.sum() * (1 - 1e-9)
    assert 0 < limits(folder, "mse", 100.0)["t"] <= largest


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)))
def test_weights_never_leave_their_grid(weights: np.ndarray) -> None:
    scales = _scales(weights, 0)
    assert scales.dtype == np.float32 and (scales > 0).all()
    steps = np.round(weights / scales[:, None])
    assert np.abs(steps).max() <= 127
    assert (np.abs(steps * scales[:, None] - weights) <= scales[:, None] * 0.5001).all()


def test_a_tensor_that_is_always_zero_gets_a_range(tmp_path: Path) -> None:
    assert limits(histograms(tmp_path, 0.0, 0.0, np.array([9] + [0] * 63)), "mse", 100.0)["t"] == 0.0
    model = network(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], {"w": np.zeros((4, 2), np.float32)}, [3, 4]
    )
    place(model, {"x": 0.0}, ())
    assert violations(model) == []
