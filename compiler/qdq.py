"""The rules by which TensorRT fuses explicitly quantized operators, checked on an ONNX model.

Source: NVIDIA, "TensorRT: Explicit Quantization", Q/DQ Layer-Placement Recommendations: all inputs of weighted
operations are quantized and their outputs are not; so is the residual input of a skip connection, or the sum is not
fused with the convolution; activations have one scale a tensor, weights one a channel; quantization is symmetric.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What is quantized; each takes two tensors, the third is a bias."""
CONVOLUTIONS = ("Conv", "ConvTranspose")
RESIDUAL = ("Add", "Sum")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
INTEGER = (
    "QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
)  # fmt: skip
"""Quantized without pairs: TensorRT takes none of them."""

RULES = {
    "valid": "the model passes the ONNX checker",
    "both_inputs": "a quantized operator has Q/DQ on both inputs",
    "pair": "a QuantizeLinear feeds nothing but DequantizeLinear of the same scale and zero point",
    "direct": "a DequantizeLinear feeds a quantized operator or a residual Add, with nothing between",
    "activation": "activations are symmetric int8 of one finite scale above 0",
    "weight": "weights are symmetric int8 with a scale for each channel, where TensorRT takes such scales",
    "bias": "biases stay float",
    "residual": "of a residual Add's branches, one comes straight from its convolution, the other through Q/DQ",
    "left_float": "no operator is left float without a reason",
}


@dataclass(frozen=True)
class Violation:
    """One place where a rule of `RULES` does not hold."""

    rule: str
    node: str
    sentence: str


def label(node: Any) -> str:
    """The name by which a node is reported: its own, or that of its first output."""
    return str(node.name or node.output[0])


class View:
    """Who makes and who takes each tensor of an onnx.GraphProto; a picture of it as it was."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.outputs = {value.name for value in graph.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, Any] = {}
        self.consumers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in graph.node:
            for name in node.output:
                self.producers[name] = node
            taken = [*node.input, *_captured(node)]  # a branch's or loop's body takes tensors that no input lists
            for index, name in enumerate(taken):
                self.consumers[name].append((node, index))
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t

    def made_by(self, name: str, *kinds: str) -> Any:
        """The node that makes the tensor `name`, if it is of one of the `kinds`, else None."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def is_alone(self, name: str) -> bool:
        """Whether the tensor is taken once, and not a result of the graph."""
        return len(self.consumers[name]) == 1 and name not in self.outputs

    def is_computed_constant(self, name: str) -> bool:
        """Whether `name` is no input of the graph and depends on none: it is worked out of constants, and is none."""
        inputs = {value.name for value in self.graph.input} - set(self.constants)
        seen: set[str] = set()
        left = [name]
        while left:
            tensor = left.pop()
            if tensor in inputs:
                return False
            maker = self.producers.get(tensor) if tensor not in seen else None
            seen.add(tensor)
            left += [*maker.input, *_captured(maker)] if maker is not None else []
        return name not in self.constants

    def value(self, name: str) -> Any:
        """The constant `name` as an array, or None where it is none."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


def weight_axis(node: Any, index: int, rank: int) -> int:
    """The axis of a constant's scales, where it is input `index` of `node` and has `rank` dimensions.

    Conv: (out, in / groups, ...), by output channel. ConvTranspose: (in, out / groups, ...), by input channel:
    TensorRT's kernels are those of a convolution's gradient, take scales along the first axis only, and compute wrong
    numbers of others (NVIDIA/TensorRT issues 1694 and 2380). Gemm and MatMul: what is not summed over.
    """
    if node.op_type in CONVOLUTIONS:
        return 0
    axis = rank - 2 if index == 0 else rank - 1
    transposed = node.op_type == "Gemm" and _attribute(node, ("transA", "transB")[index], 0)
    return 1 - axis if transposed else axis


def not_per_channel(node: Any, left: bool) -> str:
    """Why TensorRT takes no scale a channel for the weights of `node`, or ''; `left`: they are its first input.

    Source: NVIDIA/TensorRT issue 1934; "Quantization Schemes": of a MatMul, the second input's weights alone.
    """
    if node.op_type == "ConvTranspose" and _attribute(node, "group", 1) != 1:
        return "TensorRT before 10.9 takes no grouped ConvTranspose in int8"
    if node.op_type not in CONVOLUTIONS and left:
        return "its weights are its first input, where TensorRT takes no scale a channel"
    return ""


def violations(model: Any, left_float: Collection[str] = ()) -> list[Violation]:
    """Every violation of `RULES` in an onnx.ModelProto. `left_float`: labels of operators that are float on purpose."""
    view = View(model.graph)
    found = [*_valid(model), *_pairs(view)]
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            found += _operator(view, node, left_float)
        elif node.op_type in RESIDUAL and label(node) not in left_float:
            found += _residual(view, node)
    for node in (*inner_nodes(model.graph), *(node for function in model.functions for node in function.node)):
        if node.op_type in WEIGHTED and label(node) not in left_float:
            found.append(
                Violation("left_float", label(node), f"{node.op_type} inside a branch, a loop or a function is float")
            )
    return found


def _captured(node: Any) -> Iterator[str]:
    """What the bodies of a control-flow node take from outside, and names of their own."""
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from inner.input
                yield from _captured(inner)


def inner_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of the bodies of control-flow nodes, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from body.node
                yield from inner_nodes(body)


def _valid(model: Any) -> Iterator[Violation]:
    import onnx

    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return  # the checker takes only files of that size, and whoever opens one checks it
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield Violation("valid", "", str(error).splitlines()[0])


def _pairs(view: View) -> Iterator[Violation]:
    for node in view.graph.node:
        name = label(node)
        if node.op_type in INTEGER:
            yield Violation("pair", name, f"{node.op_type} is quantized without Q/DQ")
        elif node.op_type in (QUANTIZE, DEQUANTIZE) and node.domain not in ("", "ai.onnx"):
            yield Violation("pair", name, f"is the {node.op_type} of {node.domain}, not of ONNX")
        elif node.op_type == QUANTIZE:
            others = [taker for taker, _ in view.consumers[node.output[0]] if taker.op_type != DEQUANTIZE]
            if others or node.output[0] in view.outputs:
                yield Violation("pair", name, f"feeds {label(others[0]) if others else 'the output'}, no Dequantize")
        elif node.op_type == DEQUANTIZE:
            source = view.made_by(node.input[0], QUANTIZE)
            if source is None:
                yield Violation("pair", name, f"reads {node.input[0]}, which no QuantizeLinear makes")
            elif not _same_grid(view, source, node):
                yield Violation("pair", name, f"has another scale, zero point or axis than {label(source)}")
            for taker, index in view.consumers[node.output[0]]:
                if taker.op_type in WEIGHTED and index > 1:
                    yield Violation("bias", label(taker), f"its bias comes from {name}")
                elif taker.op_type not in (*WEIGHTED, *RESIDUAL):
                    yield Violation("direct", name, f"feeds {taker.op_type} {label(taker)}")
            if node.output[0] in view.outputs:
                yield Violation("direct", name, "feeds an output of the network")


def _operator(view: View, node: Any, left_float: Collection[str]) -> Iterator[Violation]:
    name = label(node)
    sources = [view.made_by(tensor, DEQUANTIZE) for tensor in node.input[:2]]
    if not any(sources):
        if name not in left_float:
            yield Violation("left_float", name, f"{node.op_type} is float, and no reason was given")
        return
    if len(node.input) > 2 and node.input[2] in view.constants and not _is_float(view.constants[node.input[2]]):
        yield Violation("bias", name, f"its bias {node.input[2]} is no float")
    for index, dequantize in enumerate(sources):
        if dequantize is None:
            yield Violation("both_inputs", name, f"its input {index}, {node.input[index]}, has no Q/DQ")
            continue
        quantize = view.made_by(dequantize.input[0], QUANTIZE)
        if quantize is None:
            continue  # said by `pair`
        weight = view.constants.get(quantize.input[0])
        if weight is not None:
            yield from _weight(view, node, index, quantize, list(weight.dims))
        elif index == 1 and node.op_type in CONVOLUTIONS:
            yield Violation("weight", name, f"its weights {quantize.input[0]} are no constant")
        elif view.is_computed_constant(quantize.input[0]):
            yield Violation("weight", name, f"its weights {quantize.input[0]} are worked out of constants: fold them")
        else:
            yield from _activation(view, node, quantize)


def _activation(view: View, node: Any, quantize: Any) -> Iterator[Violation]:
    wrong = _grid(view, quantize)
    scale = view.value(quantize.input[1])
    if not wrong and scale.size != 1:
        wrong = f"has {scale.size} scales"
    if wrong:
        yield Violation("activation", label(node), f"the Q/DQ on {quantize.input[0]} {wrong}")


def _weight(view: View, node: Any, index: int, quantize: Any, dims: list[int]) -> Iterator[Violation]:
    refused = not_per_channel(node, index == 0)
    if refused:
        yield Violation("weight", label(node), refused)
        return
    wrong = _grid(view, quantize)
    if not wrong:
        scale, axis = view.value(quantize.input[1]), _attribute(quantize, "axis", 1)
        right = weight_axis(node, index, len(dims))
        if scale.ndim != 1:
            wrong = "is not per channel"
        elif axis % len(dims) != right:
            wrong = f"has its scales along axis {axis}, not {right}"
        elif len(scale) != dims[right]:
            wrong = f"has {len(scale)} scales for {dims[right]} channels"
    if wrong:
        yield Violation("weight", label(node), f"the Q/DQ on {quantize.input[0]} {wrong}")


def _residual(view: View, node: Any) -> Iterator[Violation]:
    quantized = [view.made_by(name, DEQUANTIZE) is not None for name in node.input]
    branches = [_before_pair(view, name) for name in node.input]
    # a convolution that nothing else takes is fused with the Add after it
    fusible = [
        name is not None
        and name not in view.constants
        and view.is_alone(name)
        and (producer := view.made_by(name, *CONVOLUTIONS)) is not None
        and view.made_by(producer.input[0], DEQUANTIZE) is not None
        for name in branches
    ]
    if len(node.input) != 2 or not any(fusible) or any(name in view.constants for name in branches):
        if any(quantized):
            yield Violation("residual", label(node), "is no residual Add, and has Q/DQ on an input")
        return
    if not any(quantized):
        yield Violation("residual", label(node), "has Q/DQ on neither branch")
    elif all(quantized):
        yield Violation("residual", label(node), "has Q/DQ on both branches: none is fused with its convolution")
    elif not fusible[quantized.index(False)]:
        yield Violation("residual", label(node), "has Q/DQ on the branch that comes straight from its convolution")
    else:
        side = quantized.index(True)
        pair = view.made_by(view.producers[node.input[side]].input[0], QUANTIZE)
        if pair is not None:
            yield from _activation(view, node, pair)


def _before_pair(view: View, name: str) -> str | None:
    """The tensor before Q/DQ, or `name` itself where there is none; None where the pair is torn."""
    dequantize = view.made_by(name, DEQUANTIZE)
    if dequantize is None:
        return name
    quantize = view.made_by(dequantize.input[0], QUANTIZE)
    return str(quantize.input[0]) if quantize is not None else None


def _grid(view: View, node: Any) -> str:
    """What is wrong with the scale and zero point of a Q or DQ, or ''."""
    import numpy as np

    scale = view.value(node.input[1])
    zero = view.value(node.input[2]) if len(node.input) > 2 else None
    if scale is None:
        return "has a scale that is no constant"
    if not (np.isfinite(scale.astype(np.float64)).all() and (scale > 0).all()):
        return "has a scale that is not finite and above 0"
    if zero is None or zero.dtype != np.int8:
        return f"is {'uint8' if zero is None else zero.dtype}, not int8"
    if _attribute(node, "block_size", 0):
        return "has a scale for each block"
    if zero.any() or zero.shape != scale.shape:
        return "has a zero point that is not 0 for each scale"
    return ""


def _same_grid(view: View, quantize: Any, dequantize: Any) -> bool:
    import numpy as np

    if len(quantize.input) != len(dequantize.input):
        return False
    for one, other in zip(quantize.input[1:], dequantize.input[1:], strict=True):
        a, b = view.value(one), view.value(other)
        if one != other and (a is None or b is None or a.dtype != b.dtype or not np.array_equal(a, b)):
            return False
    return all(
        _attribute(quantize, attribute, default) == _attribute(dequantize, attribute, default)
        for attribute, default in (("axis", 1), ("block_size", 0))
    )


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _is_float(tensor: Any) -> bool:
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
