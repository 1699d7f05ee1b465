"""Which nodes of an ONNX model float16 cannot hold, and the conversion of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from compiler.qdq import DEQUANTIZE, QUANTIZE, RESIDUAL, View, label

FLOAT16_PAIRS = 19
"""The first ONNX opset whose QuantizeLinear and DequantizeLinear take float16."""


def has_pairs(model: Any) -> bool:
    """Whether an onnx.ModelProto has Q/DQ pairs."""
    return any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node)


def sensitive(
    model: Any, magnitudes: Mapping[str, float], kept: Collection[str], data_max: float, init_max: float,
    init_loss: float,
) -> dict[str, str]:  # fmt: skip
    """Label -> why, of each node of a float32 onnx.ModelProto that must stay in float32.

    `magnitudes`: tensor -> largest magnitude on the calibration samples; the limits are those of `Cast`.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    view = View(model.graph)
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        why = ""
        if label(node) in kept:
            why = "kept by the configuration"
        elif node.op_type in DEFAULT_OP_BLOCK_LIST:
            why = f"{node.op_type} is not converted to float16"
        else:
            for name in (*node.input, *node.output):
                if magnitudes.get(name, 0.0) > data_max:
                    why = f"{name} reaches {magnitudes[name]:.4g}, above data_max {data_max:g}"
                elif name in view.constants:
                    why = why or _unfit(view, name, init_max, init_loss)
        if why:
            reasons[label(node)] = why
    return _with_partners(view, reasons)


def _unfit(view: View, name: str, init_max: float, init_loss: float) -> str:
    """Why the constant `name` does not fit float16, or ''."""
    import numpy as np

    value = view.value(name)
    if value.dtype != np.float32 or not value.size:
        return ""
    largest = float(np.abs(value).max())
    if largest > init_max:
        return f"{name} reaches {largest:.4g}, above init_max {init_max:g}"
    norm = float(np.linalg.norm(value.astype(np.float64)))
    lost = float(np.linalg.norm((value - value.astype(np.float16).astype(np.float32)).astype(np.float64)))
    if norm and lost > init_loss * norm:  # plain rounding loses at most 1/2048
        return f"{name} loses {lost / norm:.2g} of its norm, above init_loss {init_loss:g}: it is too small"
    return ""


def _with_partners(view: View, reasons: Mapping[str, str]) -> dict[str, str]:
    """`reasons` for whole groups: a quantized operator, its pairs, its residual Add, and what shares a pair's scale.

    A cast between DequantizeLinear and its operator would keep TensorRT from fusing them.
    """
    links = []
    by_scale: dict[str, str] = {}
    for node in view.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            links.append((label(node), by_scale.setdefault(node.input[1], label(node))))
        for taker, _ in view.consumers[node.output[0]] if node.op_type == DEQUANTIZE else ():
            links.append((label(node), label(taker)))
            if taker.op_type in RESIDUAL:  # and the convolution that is fused with it
                links += [(label(taker), label(view.producers[name])) for name in taker.input if name in view.producers]
    result = dict(reasons)
    changed = True
    while changed:
        changed = False
        for one, other in links:
            for given, new in ((one, other), (other, one)):
                if given in result and new not in result:
                    result[new] = f"belongs to {given}" if given in reasons else result[given]
                    changed = True
    return result


def convert(model: Any, reasons: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """The float32 onnx.ModelProto in float16 but for the nodes of `reasons`, and what is worth stating about it."""
    from onnx import TensorProto, version_converter
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    for node in model.graph.node:
        node.name = label(node)  # the library blocks by name
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if has_pairs(model) and opset < FLOAT16_PAIRS:
        model = version_converter.convert_version(model, FLOAT16_PAIRS)
    original = {node.name: node.op_type for node in model.graph.node}
    model = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=sorted(reasons))
    _join_casts(model.graph, original)
    OnnxModel.graph_topological_sort(model.graph, is_deterministic=True)  # the library appends its casts at the end
    del model.graph.value_info[:]
    halves = _float16_tensors(model)
    casts = [node for node in model.graph.node if node.name not in original and node.op_type == "Cast"]
    in_half = [
        node
        for node in model.graph.node
        if node.name in original and node.op_type not in (QUANTIZE, DEQUANTIZE) and halves.intersection(node.output)
    ]
    return model, {
        "fp16_nodes": len(in_half),
        "fp16_operators": dict(sorted(Counter(node.op_type for node in in_half).items())),
        "fp32_nodes": [{"node": n, "op": original[n], "why": why} for n, why in sorted(reasons.items())],
        "casts": len(casts),
        "fp16_weights": sum(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer),
    }


def _float16_tensors(model: Any) -> set[str]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = onnx.TensorProto.FLOAT16
    return {v.name for v in (*inferred.value_info, *inferred.output) if v.type.tensor_type.elem_type == half}


def _join_casts(graph: Any, original: Collection[str]) -> None:
    """Takes a float32 tensor past the library's cast to float16 and back: it would overflow there.

    The library casts every float32 node's outputs to float16 and each of its inputs back, once for each taker under
    one and the same name.
    """
    from onnx import TensorProto

    def is_cast(node: Any, to: int) -> bool:
        return node.op_type == "Cast" and node.name not in original and node.attribute[0].i == to

    made: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in made:
            graph.node.remove(node)
        made.update(node.output)
    sources = {node.output[0]: node.input[0] for node in graph.node if is_cast(node, TensorProto.FLOAT16)}
    outputs = {value.name for value in graph.output}
    past: dict[str, str] = {}
    for node in list(graph.node):
        if not is_cast(node, TensorProto.FLOAT) or node.input[0] not in sources:
            continue
        if node.output[0] in outputs:
            node.op_type, node.input[0] = "Identity", sources[node.input[0]]
            del node.attribute[:]
        else:
            past[node.output[0]] = sources[node.input[0]]
            graph.node.remove(node)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = past.get(name, name)
    taken = {name for node in graph.node for name in node.input} | outputs
    for node in list(graph.node):
        if is_cast(node, TensorProto.FLOAT16) and node.output[0] not in taken:
            graph.node.remove(node)
