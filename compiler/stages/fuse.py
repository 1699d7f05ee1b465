"""Fuse: Conv+BatchNorm folding and hardware-neutral graph optimization, in the program and in the ONNX."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import PROBE, SIGNATURE, compare, judge, probe, takes_batches
from compiler.disk import write_array
from compiler.stage import Stage, write_json
from compiler.stages._model_files import save_onnx, save_program


@dataclasses.dataclass(kw_only=True)
class Fuse(Stage):
    """Writes `program.pt2` and `model.onnx` again, optimized, and `nodes.json` with operator counts before and after.

    Only rewrites that hold on any hardware are made: folding of batch normalisation into the convolution before
    it (Jacob et al., 2018, section 3.2), constant folding, removal of what has no effect.
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": "export", "samples": "samples"}
    numeric: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript", "onnxruntime")

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("torch", "torch.export", "onnx", "onnxscript", "onnxruntime")

    def dynamic_modules(self) -> tuple[str, ...]:
        """The two runtimes that check the result."""
        return ("compiler.runtime.torch_export", "compiler.runtime.onnxruntime")

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. Raises StepError where a fused form computes something else."""
        import numpy as np

        source = inputs["model"]
        program_nodes = fold_program(source / "program.pt2", out / "program.pt2")
        onnx_nodes = optimize_onnx(source / "model.onnx", out / "model.onnx")
        before = json.loads((source / SIGNATURE).read_text())
        layout = before["inputs"][0]["layout"]
        reference = np.load(source / PROBE, allow_pickle=False)
        facts: dict[str, Any] = {}
        for name, file, runtime in (
            ("fidelity", "program.pt2", "torch_export"),
            ("onnx_fidelity", "model.onnx", "onnxruntime"),
        ):
            outputs, signature = probe(out / file, runtime, {}, before, inputs["samples"], layout)
            facts[name] = compare(reference, outputs)
            judge(facts[name], "fp32", trained=before["trained"])
        dynamic = before["dynamic_batch"] and takes_batches(
            out / "model.onnx", "onnxruntime", {}, signature, inputs["samples"], outputs, "fp32"
        )
        write_array(out / PROBE, outputs)  # the ONNX model's: it is what most converters read
        write_json(out / SIGNATURE, {**signature, "dynamic_batch": dynamic})
        write_json(out / "nodes.json", {"program": program_nodes, "onnx": onnx_nodes})
        counts = {
            f"{kind}_nodes_{when}": sum(n[when].values())
            for kind, n in (("program", program_nodes), ("onnx", onnx_nodes))
            for when in ("before", "after")
        }
        return {**facts, **counts, "dynamic_batch": dynamic}


def fold_program(source: Path, target: Path) -> dict[str, dict[str, int]]:
    """Folds each batch normalisation that follows a convolution alone; returns operator counts before and after."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    program = torch.export.load(source)
    module = program.module(check_guards=False)
    graph = module.graph
    before = _operators(graph)
    convolutions = (torch.ops.aten.conv2d.default, torch.ops.aten.conv1d.default, torch.ops.aten.conv3d.default)

    def constant(node: Any) -> Any:
        value: Any = module
        for part in node.target.split("."):
            value = getattr(value, part)
        return value

    for index, norm in enumerate([n for n in graph.nodes if n.target == torch.ops.aten.batch_norm.default]):
        conv = norm.args[0]
        if conv.op != "call_function" or conv.target not in convolutions or len(conv.users) != 1:
            continue
        arguments = list(conv.args) + [None] * (3 - len(conv.args))
        _, scale, shift, mean, variance = norm.args[:5]
        if (
            norm.args[5]
            or mean is None
            or variance is None
            or any(n is not None and n.op != "get_attr" for n in (arguments[1], arguments[2], scale, shift))
        ):
            continue
        weight, bias = fuse_conv_bn_weights(
            constant(arguments[1]), constant(arguments[2]) if arguments[2] is not None else None, constant(mean),
            constant(variance), norm.args[7], constant(scale) if scale is not None else None,
            constant(shift) if shift is not None else None,
        )  # fmt: skip
        with graph.inserting_before(conv):
            names = []
            for kind, value in (("weight", weight), ("bias", bias)):
                name = f"folded_{index}_{kind}"
                module.register_parameter(name, torch.nn.Parameter(value.detach(), requires_grad=False))
                names.append(graph.get_attr(name))
        arguments[1], arguments[2] = names
        conv.args = tuple(arguments)
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    after = _operators(graph)
    example = program.example_inputs
    assert example is not None
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},) if program.range_constraints else None  # as it was exported
        folded = torch.export.export(module, example[0], dynamic_shapes=shapes)
    save_program(folded, target)
    return {"before": before, "after": after}


def optimize_onnx(source: Path, target: Path) -> dict[str, dict[str, int]]:
    """Constant folding, batch-norm folding and clean-up by onnxscript's optimizer; returns operator counts."""
    import onnx
    from onnxscript import ir, optimizer, rewriter

    proto = onnx.load(str(source))
    before = Counter(node.op_type for node in proto.graph.node)
    model = ir.from_proto(proto)
    optimizer.optimize(model)
    rewriter.rewrite(model)
    optimized = ir.to_proto(model)
    onnx.checker.check_model(optimized)
    save_onnx(optimized, target)
    return {
        "before": dict(sorted(before.items())),
        "after": dict(sorted(Counter(n.op_type for n in optimized.graph.node).items())),
    }


def _operators(graph: Any) -> dict[str, int]:
    return dict(sorted(Counter(str(n.target) for n in graph.nodes if n.op == "call_function").items()))
