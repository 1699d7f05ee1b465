"""Quantize: the fused ONNX with explicit Q/DQ pairs, static int8, per-channel weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from compiler.conversion import Conversion
from compiler.errors import ConfigError, StepError, unknown_name
from compiler.limits import Between, OneOf
from compiler.qdq import violations
from compiler.stage import PREVIOUS
from compiler.stages import _limits
from compiler.stages._explicit import place
from compiler.stages._kept import attention, kept_nodes, next_to_infinities, products
from compiler.stages._model_files import save_onnx
from compiler.stages._optimized import spoiled_by
from compiler.stages.calibrate import infinite_tensors, ranges

SYMMETRIC = ("uint8_asymmetric", "int8_symmetric")
PLACEMENTS = {"onnxruntime": ("minmax", "percentile"), "tensorrt": _limits.METHODS}
"""Who is to fuse the Q/DQ pairs -> the ways of choosing ranges that there are for it."""
FLOAT_IN_TURN: tuple[Callable[[Any], set[str]], ...] = (lambda graph: set(), attention, products)
"""What is left float, from the graph: nothing, and more in turn where ONNX Runtime's optimizations get it wrong."""


@dataclasses.dataclass(kw_only=True)
class Quantize(Conversion):
    """Writes `model.onnx` with QuantizeLinear/DequantizeLinear pairs, where `placement` fuses them.

    `onnxruntime`: around every operator that has an int8 kernel. Weights: int8, symmetric, per output channel.
    Activations: uint8 asymmetric (x86), or int8 symmetric. `tensorrt`: before Conv, ConvTranspose, Gemm, MatMul and on
    residual branches; int8 and symmetric throughout, weights per channel, biases float. The result is checked
    against the rules in `compiler/qdq.py`.

    Ranges come from the histograms of `calibrate`; what reads or writes infinities (masked attention) stays float. For
    `onnxruntime` the answers with graph optimizations are compared with those without: where they are spoiled, Softmax
    and the products of two activations stay float too, then every MatMul, and `optimizer` in the facts says so. `keep`
    names nodes, or operator types, that stay float.
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": PREVIOUS, "samples": "samples", "calibration": "calibrate"}
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    artifact: ClassVar[str] = "model.onnx"
    runtime: ClassVar[str] = "onnxruntime"

    placement: Annotated[str, OneOf(*PLACEMENTS)] = "onnxruntime"
    ranges: str = "percentile"
    percentile: Annotated[float, Between(50, 100, above=True)] = 99.99
    activations: Annotated[str, OneOf(*SYMMETRIC)] = "uint8_asymmetric"
    reduce_range: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = PLACEMENTS.get(self.placement, ())
        if self.ranges not in known:
            raise unknown_name(f"ranges (placement {self.placement})", self.ranges, known)
        if self.placement == "tensorrt" and self.reduce_range:
            raise ConfigError(
                "reduce_range is for CPUs that saturate, not for placement=tensorrt", fix="leave reduce_range out"
            )

    def precision(self) -> str:
        """int8."""
        return "int8"

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`.

        Raises:
            StepError: TensorRT's rules do not hold in what was written for it, or ONNX Runtime's optimizations spoil
                what was written for it.
        """
        return self._for_tensorrt(inputs, out) if self.placement == "tensorrt" else self._for_onnxruntime(inputs, out)

    def _for_tensorrt(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        import onnx

        model = onnx.load(str(inputs["model"] / "model.onnx"))
        endless = infinite_tensors(inputs["calibration"])
        spans = _limits.limits(inputs["calibration"], self.ranges, self.percentile)
        spans = {name: limit for name, limit in spans.items() if name not in endless}
        placed = place(model, spans, kept_nodes(model.graph, self.keep))
        del model.graph.value_info[:]
        save_onnx(model, out / "model.onnx")
        wrong = violations(onnx.load(str(out / "model.onnx")), {row["node"] for row in placed.left_float})
        if wrong:
            raise StepError(
                f"the quantized model breaks {len(wrong)} of TensorRT's rules",
                fix="set keep=[NODE] for the node that is named, or leave this candidate out",
                details=[f"{v.rule}: {v.node} {v.sentence}" for v in wrong[:8]],
            )
        return {
            **_counts(model),
            "quantized": dict(sorted(placed.quantized.items())),
            "residual_adds": placed.residual_adds,
            "left_float": placed.left_float,
        }

    def _for_onnxruntime(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """Quantizes; where optimizations spoil the result, again with more of attention in float."""
        cause = None
        for choose in FLOAT_IN_TURN:
            facts, left = self._pairs(inputs, out, choose)
            spoiled = spoiled_by(out / "model.onnx", inputs)
            if spoiled is None:
                return {**facts, "optimizer": {"name": cause, "left_float": left}} if cause else facts
            cause = cause or spoiled
        raise StepError(
            f"ONNX Runtime's graph optimizations change what the Q/DQ model computes: {cause}",
            fix="name more operators in keep, such as keep=[LayerNormalization,Add], or leave this candidate out",
        )

    def _pairs(
        self, inputs: Mapping[str, Path], out: Path, choose: Callable[[Any], set[str]]
    ) -> tuple[dict[str, Any], list[str]]:
        """Writes the Q/DQ model; returns its facts, and the nodes that `choose` leaves float in addition to `keep`."""
        import numpy as np
        import onnx
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.registry import QDQRegistry

        model = onnx.load(str(inputs["model"] / "model.onnx"))
        symmetric = self.activations == "int8_symmetric"
        spans = ranges(inputs["calibration"], self.ranges, self.percentile)
        endless = next_to_infinities(model.graph, infinite_tensors(inputs["calibration"]))
        chosen = choose(model.graph)
        kept = kept_nodes(model.graph, self.keep) | chosen
        data = {
            name: TensorData(lowest=np.array(min(low, 0.0), np.float32), highest=np.array(max(high, 0.0), np.float32))
            for name, (low, high) in spans.items()
        }
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=self.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(kept | endless),
            op_types_to_quantize=sorted(QDQRegistry),
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, "DedicatedQDQPair": False},
        )
        quantizer.quantize_model()
        result = quantizer.model.model
        del result.graph.value_info[:]  # the quantizer's guesses at open dimensions
        save_onnx(result, out / "model.onnx")
        return {**_counts(result), **({"float_for_infinities": sorted(endless)} if endless else {})}, sorted(chosen)


def _counts(model: Any) -> dict[str, int]:
    kinds = [node.op_type for node in model.graph.node]
    return {"quantize_nodes": kinds.count("QuantizeLinear"), "dequantize_nodes": kinds.count("DequantizeLinear")}
