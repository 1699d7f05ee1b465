"""Which nodes the user keeps in float32: by name, or all of an operator type."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from compiler.errors import unknown_name
from compiler.qdq import label


def kept_nodes(graph: Any, keep: Iterable[str]) -> set[str]:
    """The labels of the nodes of an onnx.GraphProto that `keep` names.

    Raises:
        ConfigError: a word of `keep` is neither a node's name nor an operator type of this graph.
    """
    nodes = {label(node): node.op_type for node in graph.node}
    result = set()
    for word in keep:
        named = {name for name, kind in nodes.items() if word in (name, kind)}
        if not named:
            raise unknown_name("node or operator type", word, {*nodes, *nodes.values()})
        result |= named
    return result


def attention(graph: Any) -> set[str]:
    """Return the labels of the Softmax nodes, and of the MatMul nodes around them: those that multiply two activations.

    Softmax alone could not stay float: between two int8 products its input and output are int8 all the same.
    """
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return {
        label(node)
        for node in graph.node
        if node.op_type == "Softmax" or (node.op_type == "MatMul" and constant.isdisjoint(node.input))
    }


def products(graph: Any) -> set[str]:
    """Return the labels of all Softmax and MatMul nodes."""
    return {label(node) for node in graph.node if node.op_type in ("Softmax", "MatMul")}


def next_to_infinities(graph: Any, tensors: Collection[str]) -> set[str]:
    """Return the labels of the nodes that read or write one of `tensors`, or read a constant that is not finite."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    masks = {
        constant.name
        for constant in graph.initializer
        if constant.data_type in kinds and not np.isfinite(numpy_helper.to_array(constant)).all()
    }
    return {
        label(node)
        for node in graph.node
        if not {*node.input, *node.output}.isdisjoint(tensors) or not masks.isdisjoint(node.input)
    }
