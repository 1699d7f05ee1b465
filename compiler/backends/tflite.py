"""TFLite: conversion by litert-torch, quantization by ai-edge-quantizer or TensorFlow's post-training calibrator."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from compiler.conversion import SIGNATURE, Conversion
from compiler.errors import CompilerError, StepError
from compiler.limits import OneOf
from compiler.stage import PREVIOUS
from compiler.uneven import uneven_layers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPES = ("fp16", "dynamic_int8", "int8")
QUANTIZERS = ("tensorflow", "ai_edge_quantizer")


@dataclasses.dataclass(kw_only=True)
class Convert(Conversion):
    """PyTorch program to `model.tflite`, with NHWC input as TFLite's kernels want it."""

    tools: ClassVar[tuple[str, ...]] = ("torch", "litert-torch", "litert-converter", "ai-edge-litert")
    artifact: ClassVar[str] = "model.tflite"
    runtime: ClassVar[str] = "tflite"

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("torch", "torch.export", "litert_torch")

    def layout(self, before: str) -> str:
        """NHWC."""
        return "NHWC"

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`.

        Raises:
            StepError: the converter has no translation for an operator; the message names it.
        """
        import json

        import litert_torch
        import torch

        program = torch.export.load(inputs["model"] / "program.pt2")
        module = program.module(check_guards=False)
        module.train = lambda mode=True: module  # exported programs are in eval mode and refuse to be told so
        padded = pad_pools_with_zero(module)
        assert program.example_inputs is not None
        example = program.example_inputs[0][0][:1]  # one sample: the converter takes no open dimension
        before = json.loads((inputs["model"] / SIGNATURE).read_text())
        if before["inputs"][0]["layout"] == "NCHW":
            module = litert_torch.to_channel_last_io(module, args=[0])
            example = example.permute(0, 2, 3, 1).contiguous()
        try:
            litert_torch.convert(module, (example,)).export(str(out / "model.tflite"))
        except Exception as error:
            raise _explained(error) from error
        return {"pools_padded_with_zero": padded, "batches_opened": open_batch(out / "model.tflite")}


def pad_pools_with_zero(module: Any) -> int:
    """Pads max pooling that follows a ReLU with zeros of its own; returns how often.

    Nothing changes, since no value is below zero. But litert-torch pads a pool with minus infinity (PADV2), which
    no quantizer of TFLite can express in int8, and a zero with PAD, which all can.
    """
    import torch

    aten = torch.ops.aten
    nonnegative = (aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default)
    count = 0
    for node in [n for n in module.graph.nodes if n.target == aten.max_pool2d.default]:
        arguments = list(node.args)
        source, kernel, stride, padding, dilation, ceil = arguments + [None] * (6 - len(arguments))
        if not padding or not any(padding) or source.target not in nonnegative or ceil:
            continue
        rows, columns = padding if len(padding) == 2 else (padding[0], padding[0])
        with module.graph.inserting_before(node):
            border = [columns, columns, rows, rows]
            wider = module.graph.call_function(aten.constant_pad_nd.default, (source, border, 0.0))
        node.args = (wider, kernel, stride, [0, 0], dilation or [1, 1])
        count += 1
    module.recompile()
    return count


def open_batch(path: Path) -> int:
    """Writes -1, "what remains", where the new shape of a RESHAPE holds the batch of 1; returns in how many constants.

    The converter knows static shapes only. An interpreter may be told another shape of the input, and those of all
    operators follow, but for such constants (int32, one a dimension). One is changed where nothing but new shapes use
    it, it begins with 1 and holds no -1 yet, and what is reshaped has 1 as its first dimension too. It is changed in
    place, so all other bytes of the file stay as they are. Operators that cannot be opened so (SLICE, BROADCAST_TO)
    leave the file at batch 1: running the result tells (`takes_batches`).
    """
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(path.read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
    wanted: set[int] = set()
    barred: set[int] = set()

    def first(tensor: int) -> int:
        shape = graph.Tensors(tensor)
        return int(shape.Shape(0)) if shape.ShapeLength() else 0

    def constant(tensor: int) -> Any:
        buffer = model.Buffers(graph.Tensors(tensor).Buffer())
        return buffer.DataAsNumpy().view(np.int32) if buffer.DataLength() else np.zeros(0, np.int32)

    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        operands = [operator.Inputs(i) for i in range(operator.InputsLength())]
        for position, tensor in enumerate(operands):
            if tensor < 0:  # an operand that was left out
                continue
            holds_batch = (
                kinds[operator.OpcodeIndex()] == schema.BuiltinOperator.RESHAPE and position == 1
                and first(operands[0]) == 1 and constant(tensor)[:1].tolist() == [1] and -1 not in constant(tensor)
            )  # fmt: skip
            (wanted if holds_batch else barred).add(graph.Tensors(tensor).Buffer())
    chosen = wanted - barred
    for index in chosen:
        model.Buffers(index).DataAsNumpy().view(np.int32)[0] = -1
    if chosen:
        path.write_bytes(content)
    return len(chosen)


def _explained(error: Exception) -> Exception:
    """Names the operator that has no translation, which the converter buries in a long text."""
    text = str(error)
    found = sorted(set(re.findall(r"(?:aten|torchvision|prims|quantized)[.:]{1,2}[\w.]+", text)))
    if found and re.search(r"lower|unsupported|not supported|not implemented|no decomposition|legaliz", text, re.I):
        return StepError(
            f"litert-torch cannot convert the operator {', '.join(found[:3])}",
            fix="replace it in the model, or choose candidates of another backend",
            details=text.splitlines()[:4],
        )
    return error


@dataclasses.dataclass(kw_only=True)
class Quantize(Conversion):
    """A float `model.tflite` to a smaller one.

    recipe: `fp16` (weights stored as float16), `dynamic_int8` (int8 weights, activations quantized while running),
    `int8` (weights per channel and activations). quantizer, for int8: `tensorflow` is TensorFlow's calibrator,
    `ai_edge_quantizer` its successor, both with ranges from the least value to the largest. io: dtype of input and
    output of a full int8 file.
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": PREVIOUS, "samples": "samples", "calibration": "calibrate"}
    tools: ClassVar[tuple[str, ...]] = ("tensorflow", "ai-edge-quantizer", "ai-edge-litert", "numpy")
    artifact: ClassVar[str] = "model.tflite"
    runtime: ClassVar[str] = "tflite"

    recipe: Annotated[str, OneOf(*RECIPES)]
    quantizer: Annotated[str, OneOf(*QUANTIZERS)] = "tensorflow"
    io: Annotated[str, OneOf("float32", "int8")] = "float32"

    def preload(self) -> tuple[str, ...]:
        """TensorFlow takes seconds to import, the others do not."""
        return ("tensorflow",) if self.recipe == "int8" and self.quantizer == "tensorflow" else ()

    def precision(self) -> str:
        """The recipe's."""
        return self.recipe

    def after_crash(self) -> str:
        """XNNPACK was seen to crash on files of either quantizer that the other's files run on."""
        return f"the quantizer or TFLite's runtime crashed; {self._other()}" if self._static else super().after_crash()

    @property
    def _static(self) -> bool:
        return self.recipe == "int8"

    def _other(self) -> str:
        other = next(name for name in QUANTIZERS if name != self.quantizer)
        return f"take the other quantizer: set steps.quantize.quantizer={other} in this candidate"

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.run`.

        Raises:
            StepError: the quantizer cannot make the file, or the file computes something else. The remedy names the
                other quantizer, unless the network's channels are the reason.
        """
        if not self._static:
            return super().run(inputs, out)
        try:
            return super().run(inputs, out)
        except StepError as error:
            if uneven_layers(inputs.get("calibration")):
                raise
            raise StepError(error.what, fix=self._other(), details=error.details) from error
        except (CompilerError, OSError, MemoryError):
            raise
        except Exception as error:  # a library's own: whatever it raises, the other quantizer may do it
            first = next(iter(str(error).splitlines()), "")
            raise StepError(
                f"{self.quantizer} cannot quantize this model: {type(error).__name__}: {first[:300]}",
                fix=self._other(),
                details=str(error).splitlines()[1:9],
            ) from error

    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Conversion.convert`."""
        source, target = inputs["model"] / "model.tflite", out / "model.tflite"
        if self.recipe == "int8" and self.quantizer == "tensorflow":
            _calibrate_with_tensorflow(source, target, inputs, self.io)
        else:
            _quantize_with_ai_edge(source, target, inputs, self.recipe, self.io)
        return {"quantizer": self.quantizer if self.recipe == "int8" else "ai_edge_quantizer"}


def _calibration(inputs: Mapping[str, Path]) -> Iterator[NDArray[np.float32]]:
    """The calibration samples, in order, as the float model's input (1, height, width, 3)."""
    import json

    import numpy as np

    from compiler.runtime.preprocess import encode

    signature = json.loads((inputs["model"] / SIGNATURE).read_text())
    images = np.load(inputs["calibration"] / "samples.npy", mmap_mode="r", allow_pickle=False)
    for i in range(len(images)):
        yield encode(images[i : i + 1], signature)


def _calibrate_with_tensorflow(source: Path, target: Path, inputs: Mapping[str, Path], io: str) -> None:
    import tensorflow as tf
    from tensorflow.lite.python.optimize import calibrator

    boundary = tf.int8 if io == "int8" else tf.float32
    worker = calibrator.Calibrator(calibrator.add_intermediate_tensors(source.read_bytes()))
    data = worker.calibrate_and_quantize(
        lambda: ([value] for value in _calibration(inputs)), boundary, boundary, True,
        activations_type=tf.int8, bias_type=tf.int32, resize_input=False,
    )  # fmt: skip
    target.write_bytes(data)


def _quantize_with_ai_edge(source: Path, target: Path, inputs: Mapping[str, Path], recipe: str, io: str) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
    from ai_edge_quantizer import recipe as recipes

    worker = quantizer.Quantizer(str(source))
    calibration = None
    if recipe == "fp16":
        worker.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
        )
    elif recipe == "dynamic_int8":
        worker.load_quantization_recipe(recipes.dynamic_wi8_afp32())
    else:
        worker.load_quantization_recipe(recipes.static_wi8_ai8())
        if io == "float32":
            for name in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                worker.update_quantization_recipe(
                    regex=".*", operation_name=name, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
                )
        signatures = Interpreter(model_path=str(source)).get_signature_list()
        key = sorted(signatures)[0]
        name = signatures[key]["inputs"][0]
        calibration = _extremes(source, worker, {key: [{name: value} for value in _calibration(inputs)]})
    worker.quantize(calibration).export_model(str(target), overwrite=True)


def _extremes(source: Path, worker: Any, samples: Mapping[str, Any]) -> Any:
    """What `worker.calibrate` returns, with each tensor's range over all samples.

    The quantizer's own way is a moving average that keeps 0.95 of what it had: the first samples decide, and larger
    values of later ones are cut off.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(worker.get_quantization_recipe())
    observer = calibrator.Calibrator(source.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    observer.calibrate(samples, manager)
    return observer.get_model_qsvs()
