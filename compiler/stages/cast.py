"""Cast: the ONNX model in float16, with what float16 cannot hold kept in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from compiler.conversion import Conversion
from compiler.errors import ConfigError, StepError
from compiler.limits import Between
from compiler.qdq import violations
from compiler.stage import PREVIOUS
from compiler.stages._half import convert, has_pairs, sensitive
from compiler.stages._kept import kept_nodes
from compiler.stages._limits import limits
from compiler.stages._model_files import save_onnx

FLOAT16_MAX = 65504.0


@dataclasses.dataclass(kw_only=True)
class Cast(Conversion):
    """Writes `model.onnx` with float16 weights and activations; its inputs and outputs stay float32.

    In float32 stay: nodes with an input or output above `data_max` on a calibration sample, nodes with a weight above
    `init_max` or weights of which float16 loses more than the share `init_loss` (what underflows), and what `keep`
    names, node or operator type. The two limits and their defaults are those of NVIDIA ModelOpt's AutoCast
    (its `data_max` and `init_max`).

    A model with Q/DQ pairs keeps them: their scales become float16 too. ONNX Runtime 1.31 may then fail the comparison
    without cause: its optimizer WeightBiasQuantization (Conv, Relu or Clip, QuantizeLinear) multiplies the scales of
    activation and weights in float16, where the product underflows. MobileNetV2 meets it, MobileNetV3 does not.

    What is too large is known from calibration alone: ONNX Runtime computes much of float16 in float32 on a CPU, so the
    comparison with the step before would not see it overflow.
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": PREVIOUS, "samples": "samples", "calibration": "calibrate"}
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    artifact: ClassVar[str] = "model.onnx"
    runtime: ClassVar[str] = "onnxruntime"
    # it multiplies the float16 scales of a Conv's input and weight, and the product underflows: 0.5 % top-1 for 78 %
    runtime_options: ClassVar[Mapping[str, Any]] = {"disabled_optimizers": ["WeightBiasQuantization"]}

    data_max: Annotated[float, Between(0, FLOAT16_MAX, above=True)] = 512.0
    init_max: Annotated[float, Between(0, FLOAT16_MAX, above=True)] = FLOAT16_MAX
    init_loss: Annotated[float, Between(0, 1)] = 0.01
    keep: tuple[str, ...] = ()

    _quantized = False  # whether the model has Q/DQ pairs, once it is read

    def precision(self) -> str:
        """fp16; int8 of a quantized model, where float16 moves values across the borders of int8's steps."""
        return "int8" if self._quantized else "fp16"

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`.

        Raises:
            ConfigError: a limit out of range, or an unknown node to keep.
            StepError: the result is no valid ONNX model, or breaks TensorRT's rules for its Q/DQ pairs.
        """
        import onnx

        for name in ("data_max", "init_max"):
            if not 0 < getattr(self, name) <= FLOAT16_MAX:
                raise ConfigError(
                    f"{name} is {getattr(self, name):g}", fix=f"give a number above 0 and up to {FLOAT16_MAX:g}"
                )
        if not 0 < self.init_loss <= 1:
            raise ConfigError(f"init_loss is {self.init_loss:g}", fix="give a share above 0 and up to 1, such as 0.01")
        model = onnx.load(str(inputs["model"] / "model.onnx"))
        self._quantized = has_pairs(model)
        magnitudes = limits(inputs["calibration"], "minmax", 100.0)
        kept = kept_nodes(model.graph, self.keep)
        reasons = sensitive(model, magnitudes, kept, self.data_max, self.init_max, self.init_loss)
        model, facts = convert(model, reasons)
        save_onnx(model, out / "model.onnx")
        _check(onnx.load(str(out / "model.onnx")))
        return facts


def _check(model: Any) -> None:
    """Raises StepError where an onnx.ModelProto is invalid, or its Q/DQ pairs are no longer where TensorRT fuses."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StepError(
            "the float16 model is not valid", fix="name the node that is at fault in keep", details=[str(error)[:300]]
        ) from error
    if not has_pairs(model):
        return
    wrong = [v for v in violations(model) if v.rule != "left_float"]  # what is float was judged when it was quantized
    if wrong:
        raise StepError(
            f"the float16 model breaks {len(wrong)} of TensorRT's rules",
            fix="set keep=[NODE] for the node that is named, or leave this candidate out",
            details=[f"{v.rule}: {v.node} {v.sentence}" for v in wrong[:8]],
        )
