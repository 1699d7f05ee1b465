"""Q/DQ violations that hide: each is planted in a small network with every kind of operator, and must be named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.qdq import violations
from compiler.stages._explicit import place

INT8 = np.int8(0)
Plant = Callable[[onnx.ModelProto], str]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def network(residual: str = "Add") -> onnx.ModelProto:
    """Depthwise Conv, Conv, residual, ConvTranspose, Gemm (transB), a MatMul of weights and one of activations."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "depthwise_w", "depthwise_b"], ["a"], name="depthwise", group=4, pads=[1, 1, 1, 1]),
        make("Relu", ["a"], ["r"], name="relu"),
        make("Conv", ["r", "point_w", "point_b"], ["p"], name="point"),
        make(residual, ["p", "r"], ["s"], name="sum"),
        make("ConvTranspose", ["s", "up_w"], ["u"], name="up"),
        make("GlobalAveragePool", ["u"], ["g"], name="pool"),
        make("Flatten", ["g"], ["f"], name="flat"),
        make("Gemm", ["f", "rows_w", "rows_b"], ["h"], name="rows", transB=1),
        make("MatMul", ["h", "columns_w"], ["m"], name="columns"),
        make("MatMul", ["m", "f"], ["y"], name="both"),
    ]
    constants = {
        "depthwise_w": normal(4, 1, 3, 3), "depthwise_b": normal(4), "point_w": normal(4, 4, 1, 1),
        "point_b": normal(4), "up_w": normal(4, 6, 2, 2), "rows_w": normal(5, 6), "rows_b": normal(5),
        "columns_w": normal(5, 1),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    placed = place(model, dict.fromkeys("xarpsugfhmy", 3.0), ())
    assert placed.residual_adds == 1 and placed.left_float == []
    return model


@pytest.fixture
def model() -> onnx.ModelProto:
    return network()


def node(model: onnx.ModelProto, name: str) -> Any:
    return next(n for n in model.graph.node if n.name == name)


def maker(model: onnx.ModelProto, tensor: str) -> Any:
    return next(n for n in model.graph.node if tensor in n.output)


def pair(model: onnx.ModelProto, name: str, index: int) -> tuple[Any, Any]:
    after = maker(model, node(model, name).input[index])
    return maker(model, after.input[0]), after


def constant(model: onnx.ModelProto, value: Any) -> str:
    name = f"planted_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def regrid(model: onnx.ModelProto, name: str, index: int, scale: Any, zero: Any, axis: int | None = None) -> None:
    grid = [constant(model, scale), constant(model, zero)]
    for n in pair(model, name, index):
        n.input[1:] = grid
        del n.attribute[:]
        if axis is not None:
            n.attribute.append(helper.make_attribute("axis", axis))


def before(model: onnx.ModelProto, name: str, *nodes: Any) -> None:
    at = [n.name for n in model.graph.node].index(name)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(at + offset, new)


def axis(name: str, wrong: int, length: int) -> Plant:
    """One scale for each entry along the `wrong` axis of the weights of `name`."""

    def plant(model: onnx.ModelProto) -> str:
        regrid(model, name, 1, np.full(length, 0.1, np.float32), np.zeros(length, np.int8), wrong)
        return name

    return plant


def default_axis(model: onnx.ModelProto) -> str:
    """Without the attribute the axis is 1, not 0."""
    for n in pair(model, "point", 1):
        del n.attribute[:]
    return "point"


def scale(value: float, name: str = "both", index: int = 1) -> Plant:
    def plant(model: onnx.ModelProto) -> str:
        regrid(model, name, index, np.float32(value), INT8)
        return name

    return plant


def no_zero_point(name: str, index: int) -> Plant:
    """uint8 is what ONNX takes where there is no zero point."""

    def plant(model: onnx.ModelProto) -> str:
        for n in pair(model, name, index):
            del n.input[2]
        return name

    return plant


def zero_point_of_one_side(model: onnx.ModelProto) -> str:
    del pair(model, "rows", 0)[0].input[2]
    return pair(model, "rows", 0)[1].name


def one_bad_channel(model: onnx.ModelProto) -> str:
    scales = np.array([0.1, 0.1, np.inf, 0.1], np.float32)
    regrid(model, "depthwise", 1, scales, np.zeros(4, np.int8), 0)
    return "depthwise"


def one_shifted_channel(model: onnx.ModelProto) -> str:
    regrid(model, "depthwise", 1, np.full(4, 0.1, np.float32), np.array([0, 0, 1, 0], np.int8), 0)
    return "depthwise"


def relu_between(model: onnx.ModelProto) -> str:
    target = node(model, "point")
    name = pair(model, "point", 0)[1].name
    before(model, "point", helper.make_node("Relu", [target.input[0]], ["between"], name="between"))
    target.input[0] = "between"
    return name


def through_transpose(operator: str, name: str) -> Plant:
    """The weights reach their pair by another operator, and have one scale, as an activation would."""

    def plant(model: onnx.ModelProto) -> str:
        quantize = pair(model, name, 1)[0]
        regrid(model, name, 1, np.float32(0.1), INT8)
        if operator == "Transpose":
            value = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == quantize.input[0]))
            given = constant(model, np.ascontiguousarray(value.T))
        else:
            given = quantize.input[0]
        before(model, quantize.name, helper.make_node(operator, [given], ["moved"], name="moved"))
        quantize.input[0] = "moved"
        return name

    return plant


def transpose_after(model: onnx.ModelProto) -> str:
    """The weights' pair is right, and something stands between it and its operator."""
    after = pair(model, "rows", 1)[1]
    turned = [f"turned_{i}" for i in range(2)]
    before(
        model, "rows", helper.make_node("Transpose", [after.output[0]], [turned[0]], name="turn"),
        helper.make_node("Transpose", [turned[0]], [turned[1]], name="turn_back"),
    )  # fmt: skip
    node(model, "rows").input[1] = turned[1]
    return after.name


def quantized_bias(name: str) -> Plant:
    def plant(model: onnx.ModelProto) -> str:
        grid = [constant(model, np.float32(0.1)), constant(model, INT8)]
        before(
            model, name, helper.make_node("QuantizeLinear", [node(model, name).input[2], *grid], ["bq"], name="bias_q"),
            helper.make_node("DequantizeLinear", ["bq", *grid], ["bd"], name="bias_dq"),
        )  # fmt: skip
        node(model, name).input[2] = "bd"
        return name

    return plant


def integer_bias(model: onnx.ModelProto) -> str:
    """As ONNX Runtime's quantizer writes it: int32 behind a DequantizeLinear alone."""
    given = [constant(model, np.zeros(4, np.int32)), constant(model, np.full(4, 0.1, np.float32))]
    before(model, "point", helper.make_node("DequantizeLinear", given, ["bd"], name="bias_dq", axis=0))
    node(model, "point").input[2] = "bd"
    return "point"


def float_branches(model: onnx.ModelProto) -> str:
    node(model, "sum").input[1] = "r"
    return "sum"


def quantized_output(model: onnx.ModelProto) -> str:
    grid = [constant(model, np.float32(0.1)), constant(model, INT8)]
    node(model, "both").output[0] = "inner"
    model.graph.node.extend(
        [helper.make_node("QuantizeLinear", ["inner", *grid], ["yq"], name="out_q"),
         helper.make_node("DequantizeLinear", ["yq", *grid], ["y"], name="out_dq")]
    )  # fmt: skip
    return "out_dq"


def quantized_twice(model: onnx.ModelProto) -> str:
    quantize, after = pair(model, "rows", 0)
    before(
        model, "rows",
        helper.make_node("QuantizeLinear", [after.output[0], *quantize.input[1:]], ["q2"], name="again_q"),
        helper.make_node("DequantizeLinear", ["q2", *quantize.input[1:]], ["d2"], name="again_dq"),
    )  # fmt: skip
    node(model, "rows").input[0] = "d2"
    return after.name


def float_conv(model: onnx.ModelProto) -> str:
    for index in (0, 1):
        node(model, "up").input[index] = pair(model, "up", index)[0].input[0]
    return "up"


def half_quantized_product(model: onnx.ModelProto) -> str:
    node(model, "both").input[1] = "f"
    return "both"


def float_taker(model: onnx.ModelProto) -> str:
    """A pool reads what was quantized for a convolution."""
    after = pair(model, "up", 0)[1]
    before(model, "up", helper.make_node("GlobalAveragePool", [after.output[0]], ["unused"], name="shared"))
    return after.name


def branch(model: onnx.ModelProto, tensor: str, operator: str = "Relu") -> None:
    """An If whose bodies take `tensor` from outside; no input lists it."""
    bodies = {}
    for name in ("then_branch", "else_branch"):
        inner = helper.make_node(operator, [tensor] * (2 if operator == "MatMul" else 1), [f"{name}_y"], name=name)
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph([inner], name, [], [value])
    model.graph.node.append(
        helper.make_node("If", [constant(model, np.array(True))], ["unused"], name="branch", **bodies)
    )


def taken_in_a_branch(model: onnx.ModelProto) -> str:
    after = pair(model, "up", 0)[1]
    branch(model, after.output[0])
    return after.name


def float_in_a_branch(model: onnx.ModelProto) -> str:
    branch(model, "both_input_0_float", "MatMul")
    return "then_branch"


def float_in_a_function(model: onnx.ModelProto) -> str:
    inner = helper.make_node("MatMul", ["a", "b"], ["c"], name="hidden")
    model.functions.append(
        helper.make_function("own", "Product", ["a", "b"], ["c"], [inner], [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    target = node(model, "both")
    target.op_type, target.domain = "Product", "own"
    target.input[:] = ["m", "f"]
    return "hidden"


def integer_operator(model: onnx.ModelProto) -> str:
    left, right = (pair(model, "both", index)[0] for index in (0, 1))
    before(model, "both", helper.make_node("MatMulInteger", [left.output[0], right.output[0]], ["i"], name="integer"))
    return "integer"


def dynamic(model: onnx.ModelProto) -> str:
    before(model, "rows", helper.make_node("DynamicQuantizeLinear", ["f"], ["dq", "ds", "dz"], name="dynamic"))
    return "dynamic"


def of_another_domain(model: onnx.ModelProto) -> str:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    quantize = pair(model, "rows", 0)[0]
    quantize.domain = "com.microsoft"
    return quantize.name


def computed_scale(model: onnx.ModelProto) -> str:
    before(
        model, pair(model, "rows", 0)[0].name,
        helper.make_node("Abs", [constant(model, np.float32(0.1))], ["computed"], name="abs"),
    )  # fmt: skip
    for n in pair(model, "rows", 0):
        n.input[1] = "computed"
    return "rows"


def per_block(model: onnx.ModelProto) -> str:
    model.opset_import[0].version = 21
    regrid(model, "columns", 1, np.full((5, 1), 0.1, np.float32), np.zeros((5, 1), np.int8), 0)
    for n in pair(model, "columns", 1):
        n.attribute.append(helper.make_attribute("block_size", 1))
    return "columns"


def grouped(model: onnx.ModelProto) -> str:
    model.graph.node.append(onnx.NodeProto.FromString(node(model, "up").SerializeToString()))
    added = model.graph.node[-1]
    added.name, added.output[0] = "grouped", "unused"
    added.attribute.append(helper.make_attribute("group", 2))
    return "grouped"


def weights_on_the_left(model: onnx.ModelProto) -> str:
    """The scales lie along what is not summed over, and TensorRT takes none there."""
    quantize = pair(model, "both", 0)[0]
    given = [constant(model, normal(3, 1)), constant(model, np.full(3, 0.1, np.float32))]
    given.append(constant(model, np.zeros(3, np.int8)))
    model.graph.node.extend(
        [helper.make_node("QuantizeLinear", given, ["lq"], name="left_q", axis=0),
         helper.make_node("DequantizeLinear", ["lq", *given[1:]], ["ld"], name="left_dq", axis=0),
         helper.make_node("QuantizeLinear", ["m", *quantize.input[1:]], ["mq"], name="m_q"),
         helper.make_node("DequantizeLinear", ["mq", *quantize.input[1:]], ["md"], name="m_dq"),
         helper.make_node("MatMul", ["ld", "md"], ["unused"], name="left")]
    )  # fmt: skip
    return "left"


PLANTS: list[tuple[str, Plant]] = [
    ("weight", axis("up", 1, 6)),
    ("weight", grouped),
    ("weight", weights_on_the_left),
    ("weight", axis("rows", 1, 6)),
    ("weight", axis("columns", 0, 5)),
    ("weight", default_axis),
    ("weight", one_bad_channel),
    ("weight", one_shifted_channel),
    ("weight", no_zero_point("point", 1)),
    ("weight", through_transpose("Identity", "point")),
    ("weight", through_transpose("Transpose", "columns")),
    ("weight", through_transpose("Identity", "rows")),
    ("weight", per_block),
    ("activation", scale(0.0)),
    ("activation", scale(float("nan"))),
    ("activation", scale(float("inf"), "columns", 0)),
    ("activation", no_zero_point("both", 0)),
    ("activation", no_zero_point("sum", 1)),
    ("activation", computed_scale),
    ("pair", zero_point_of_one_side),
    ("pair", of_another_domain),
    ("pair", integer_operator),
    ("pair", dynamic),
    ("direct", relu_between),
    ("direct", transpose_after),
    ("direct", quantized_output),
    ("direct", quantized_twice),
    ("direct", float_taker),
    ("direct", taken_in_a_branch),
    ("bias", quantized_bias("depthwise")),
    ("bias", quantized_bias("rows")),
    ("bias", integer_bias),
    ("both_inputs", half_quantized_product),
    ("residual", float_branches),
    ("left_float", float_conv),
    ("left_float", float_in_a_branch),
    ("left_float", float_in_a_function),
]


@pytest.mark.parametrize("kind", ["Add", "Sum"])
def test_the_network_is_good_before_anything_is_planted(kind: str) -> None:
    assert violations(network(kind)) == []


@pytest.mark.parametrize(("rule", "plant"), PLANTS, ids=lambda v: getattr(v, "__qualname__", str(v)).split(".")[0])
def test_a_hidden_violation_is_named(model: onnx.ModelProto, rule: str, plant: Plant) -> None:
    name = plant(model)
    assert (rule, name) in {(found.rule, found.node) for found in violations(model)}


def test_a_sum_with_two_float_branches_is_named_as_an_add_is() -> None:
    model = network("Sum")
    assert [(found.rule, found.node) for found in violations(model)] == []
    float_branches(model)
    assert [(found.rule, found.node) for found in violations(model)] == [("residual", "sum")]


def test_a_convolution_that_a_branch_takes_too_is_not_fused_with_its_add() -> None:
    model = network()
    branch(model, "p")
    assert [(found.rule, found.node) for found in violations(model)] == [("residual", "sum")]


def test_one_pair_for_two_operators_is_no_violation(model: onnx.ModelProto) -> None:
    """Each quantizer has its own habit; TensorRT gives every taker its DequantizeLinear."""
    again = onnx.NodeProto.FromString(node(model, "rows").SerializeToString())
    again.name, again.output[0] = "rows_again", "h_again"
    before(model, "columns", again)
    assert violations(model) == []
