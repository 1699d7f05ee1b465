"""Puts Q/DQ pairs into an ONNX model where TensorRT fuses them; the rules are in `compiler/qdq.py`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from compiler.qdq import CONVOLUTIONS, RESIDUAL, WEIGHTED, View, inner_nodes, label, not_per_channel, weight_axis

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 127
"""The integer that a range's end becomes. -128 is left unused by weights, so that w and -w become alike."""


@dataclasses.dataclass
class Placed:
    """What was quantized, and what was not: {"node", "op", "why"} for each operator that stays float."""

    quantized: Counter[str] = dataclasses.field(default_factory=Counter)
    residual_adds: int = 0
    left_float: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def leave(self, node: Any, why: str) -> None:
        """Notes that `node` stays float."""
        self.left_float.append({"node": label(node), "op": node.op_type, "why": why})


def place(model: Any, limits: Mapping[str, float], kept: Collection[str]) -> Placed:
    """Adds a Q/DQ pair to both inputs of every Conv, ConvTranspose, Gemm and MatMul, and to residual branches.

    `model`: a float32 onnx.ModelProto, changed in place. `limits`: the magnitude up to which each activation is
    represented. `kept`: labels of nodes that stay float.

    Every consumer gets a pair of its own, as NVIDIA's own quantizers write them: TensorRT fuses a DequantizeLinear with
    its one consumer, and joins equal QuantizeLinear again. Weights stay float32 before their pair, which TensorRT
    10 and 11 both fold when they build: both also take int8 weights behind a DequantizeLinear alone, but the pair is
    what NVIDIA documents for exported networks, keeps Q/DQ alike on both inputs, and lets the rules be checked against
    the weights that were rounded. It costs the file's size, not the engine's.
    """
    view = View(model.graph)
    pairs = _Pairs(model.graph, view, limits)
    placed = Placed()
    floats: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        why = "kept by the configuration" if label(node) in kept else _obstacle(view, node, limits)
        if why:
            placed.leave(node, why)
            floats.add(label(node))
            continue
        placed.quantized[node.op_type] += 1
        for index in (0, 1):
            pairs.ask(node, index)
    for node in inner_nodes(model.graph):
        if node.op_type in WEIGHTED:
            placed.leave(node, "inside a branch or a loop, whose activations calibration does not see")
    depths = _depths(model.graph)
    for node in model.graph.node:
        side = _residual_side(view, node, floats, depths)
        if side is None:
            continue
        if label(node) in kept or node.input[side] not in limits:
            placed.leave(node, "kept by the configuration" if label(node) in kept else _unseen(node.input[side]))
            continue
        placed.residual_adds += 1
        pairs.ask(node, side)
    pairs.write()
    return placed


def _obstacle(view: View, node: Any, limits: Mapping[str, float]) -> str:
    """Why an operator cannot be quantized, or ''."""
    import numpy as np

    constant = [name in view.constants for name in node.input[:2]]
    if node.op_type in CONVOLUTIONS and not constant[1]:
        return "its weights are computed while the network runs"
    if all(constant):
        return "both inputs are constants"
    refused = not_per_channel(node, constant[0])
    if refused:
        return refused
    for name, is_constant in zip(node.input[:2], constant, strict=True):
        if not is_constant and name not in limits:
            return _unseen(name)
        if not is_constant:
            continue
        weight = view.value(name)
        if weight.dtype != np.float32 or weight.ndim < 2:
            return f"its weights {name} are {weight.dtype} with {weight.ndim} dimensions"
        if node.op_type == "MatMul" and weight.ndim > 2:  # ONNX Runtime refuses to run these with a scale per channel
            return f"its weights {name} are a batch of matrices"
    return ""


def _unseen(name: str) -> str:
    return f"calibration did not see its input {name}"


def _depths(graph: Any) -> dict[str, int]:
    """How many nodes the longest way to each tensor has."""
    depths: dict[str, int] = {}
    for node in graph.node:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
    return depths


def _residual_side(view: View, node: Any, floats: Collection[str], depths: Mapping[str, int]) -> int | None:
    """Which input of `node` is the residual branch, if it is an Add that is fused with a quantized convolution.

    Where both inputs come straight from convolutions (a ResNet block that changes the shape), the longer way is the
    one that is fused, and the shortcut is the residual.
    """
    if node.op_type not in RESIDUAL or len(node.input) != 2 or any(name in view.constants for name in node.input):
        return None
    straight = []
    for side in (0, 1):
        maker = view.made_by(node.input[side], *CONVOLUTIONS)
        if maker is not None and label(maker) not in floats and view.is_alone(node.input[side]):
            straight.append(side)
    if not straight:
        return None
    fused = max(straight, key=lambda side: depths[node.input[side]])
    return 1 - fused


class _Pairs:
    """Collects where Q/DQ goes, then writes it. Scales are shared, the nodes are not."""

    def __init__(self, graph: Any, view: View, limits: Mapping[str, float]) -> None:
        self.graph, self.view, self.limits = graph, view, limits
        self.names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        self.names |= {*view.constants, *(value.name for value in graph.input)}
        self.asked: dict[str, list[tuple[int, list[str], int | None]]] = {}
        self.grids: dict[tuple[str, int | None], list[str]] = {}

    def ask(self, node: Any, index: int) -> None:
        """Input `index` of `node` shall be quantized."""
        name = node.input[index]
        axis = weight_axis(node, index, len(self.view.constants[name].dims)) if name in self.view.constants else None
        grid = self.grids.get((name, axis))
        if grid is None:
            scale = _scale(self.limits[name]) if axis is None else _scales(self.view.value(name), axis)
            grid = self.grids[name, axis] = self._store(name, scale)
        self.asked.setdefault(node.output[0], []).append((index, grid, axis))

    def write(self) -> None:
        """Puts the pairs into the graph, each before the node it belongs to."""
        from onnx import helper

        result = []
        for node in self.graph.node:
            for index, grid, axis in self.asked.get(node.output[0], []):
                source = f"{label(node)}_input_{index}"
                between, after = self._fresh(f"{source}_int8"), self._fresh(f"{source}_float")
                along = {} if axis is None else {"axis": axis}
                for kind, given, made in (
                    ("QuantizeLinear", node.input[index], between),
                    ("DequantizeLinear", between, after),
                ):
                    name = self._fresh(f"{source}_{kind}")
                    result.append(helper.make_node(kind, [given, *grid], [made], name=name, **along))
                node.input[index] = after
            result.append(node)
        nodes = [type(node).FromString(node.SerializeToString()) for node in result]  # the graph's own are freed below
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _store(self, name: str, scale: NDArray[np.float32]) -> list[str]:
        import numpy as np
        from onnx import numpy_helper

        names = [self._fresh(f"{name}_scale"), self._fresh(f"{name}_zero_point")]
        for constant, value in zip(names, (scale, np.zeros(scale.shape, np.int8)), strict=True):
            self.graph.initializer.append(numpy_helper.from_array(value, constant))
        return names

    def _fresh(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def _scale(limit: float) -> NDArray[np.float32]:
    """The scale of an activation, (): what was 0 on every sample is given a range of 1."""
    return _safe(limit)


def _scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The scales of weights along `axis`, (channels,)."""
    import numpy as np

    return _safe(np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)))


def _safe(limit: Any) -> NDArray[np.float32]:
    """`limit` over 127 as float32, 1/127 where that is no normal number above 0."""
    import numpy as np

    scale = np.asarray(limit, np.float64) / LARGEST
    return np.where(scale >= np.finfo(np.float32).tiny, scale, 1 / LARGEST).astype(np.float32)
