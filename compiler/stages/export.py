"""Export: the trained network as a PyTorch program and as ONNX, with its signature."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from compiler.conversion import (
    BATCH,
    PROBE,
    SIGNATURE,
    compare,
    judge,
    probe,
    probe_images,
    takes_batches,
)
from compiler.disk import write_array
from compiler.errors import ConfigError, StepError, unknown_name
from compiler.limits import Between
from compiler.stage import Stage, write_json
from compiler.stages._architectures import architectures
from compiler.stages._checkpoint import check_kind, read_metadata, read_sets
from compiler.stages._fit import fit
from compiler.stages._model_files import name_batch, open_batch, save_onnx, save_program
from compiler.stages._trial import try_network
from compiler.stages.samples import read_meta
from compiler.user_code import own_line

OPENED, EXPORTED_OPEN, FIXED = "opened in the ONNX model", "exported open", "fixed at 1"
"""How a network gets its open batch: the first that works, since it takes least time."""
TRACED = (
    "the program that torch.export traced differs: forward must not branch on values, or keep anything between calls"
)
LEAST_OPSET, LARGEST_OPSET = 13, 23
"""From where scales may differ by channel, up to what PyTorch's exporter writes."""
WRITTEN = "the ONNX exporter wrote something else: try another steps.export.opset, or other operators in forward"


@dataclasses.dataclass(kw_only=True)
class Export(Stage):
    """Writes `module.safetensors` (the network as it is, for the baseline), `program.pt2` (torch.export), `model.onnx`,
    `signature.json` and the probe's outputs.

    `architecture` is a classifier of torchvision, or `package.module:function` that takes `num_classes` and
    returns a torch.nn.Module. Without `weights` the network has random weights and no accuracy is claimed.
    """

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples"}
    numeric: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors")

    architecture: str
    weights: Path | None = None
    sha256: str | None = None
    num_classes: Annotated[int, Between(1)] | None = None
    seed: int = 0
    opset: Annotated[int, Between(LEAST_OPSET, LARGEST_OPSET)] = 18

    def functions(self) -> Mapping[str, str]:
        """See `Stage.functions`."""
        return {"model.architecture": self.architecture} if ":" in self.architecture else {}

    def check_files(self) -> None:
        """See `Stage.check_files`: the architecture's name, and what kind of file the weights are."""
        if ":" not in self.architecture and (known := architectures()) and self.architecture not in known:
            raise unknown_name("architecture", self.architecture, known)
        if self.weights is not None:
            check_kind(self.weights)

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("torch", "torchvision", "onnxscript")

    def dynamic_modules(self) -> tuple[str, ...]:
        """The two runtimes that check the result, and the user's own module where one is named."""
        own = (self.architecture.partition(":")[0],) if ":" in self.architecture else ()
        return ("compiler.runtime.torch_export", "compiler.runtime.onnxruntime", *own)

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`.

        Raises:
            ConfigError: the weights do not fit the architecture, the classes do not fit the data, or the network is
                none that answers one picture with its logits, alike each time.
            StepError: the exported program or the ONNX model computes something else than the network.
        """
        import torch

        from compiler.runtime.pytorch import save

        meta = read_meta(inputs["samples"])
        metadata = read_metadata(self.weights) if self.weights else {}
        torch.manual_seed(self.seed)
        model, notes = self._network(len(meta["classes"]))
        model = model.eval()
        side = meta["preprocessing"]["crop"]
        shape = (1, 3, side, side) if meta["layout"] == "NCHW" else (1, side, side, 3)
        example = torch.randn((BATCH, *shape[1:]), generator=torch.Generator().manual_seed(self.seed))
        trial = try_network(model, example)
        logits, any_batch = trial.logits, trial.any_batch
        if not torch.isfinite(logits).all():
            raise ConfigError(
                f"the network returns NaN or infinity{f' with the weights of {self.weights}' if self.weights else ''}",
                fix="the weights are damaged, or training diverged: check the checkpoint",
            )
        if logits.shape[1] != len(meta["classes"]):
            raise ConfigError(
                f"the network has {logits.shape[1]} classes, the data has {len(meta['classes'])}",
                fix="give model.weights=FILE for this data, or data.classes=FILE with the network's classes in order",
            )
        save(model, shape, logits.shape[1], out / "module.safetensors", any_batch, trial.changes_input)
        trained, sentence = self._claim(metadata, meta)
        start = {
            "inputs": [],
            "outputs": [],
            "preprocessing": meta["preprocessing"],
            "labels": meta["classes"],
            "trained": trained,
            "claim": sentence,
            "notes": notes,
            "demo": metadata.get("kind") == "demo",
        }
        for batch in (OPENED, EXPORTED_OPEN, FIXED) if any_batch else (FIXED,):
            try:
                facts = self._export(model, example, batch, start, inputs["samples"], out)
            except ConfigError:
                raise
            except Exception as error:
                if batch == FIXED:
                    raise
                print(f"the batch cannot be {batch}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                break
        return {"parameters": sum(p.numel() for p in model.parameters()), **facts}

    def _export(
        self, model: Any, example: Any, batch: str, start: Mapping[str, Any], samples: Path, out: Path
    ) -> dict[str, Any]:
        """Writes the program, the ONNX model, the signature and the probe's outputs; checks and returns its facts.

        `example`: float32 (batch, ...); `batch`: how the first dimension is left open, or FIXED.
        """
        import numpy as np
        import torch

        from compiler.runtime.preprocess import encode

        # torch.export takes a dimension of 1 for a constant, so an open one is exported with 2
        example = example[:2] if batch == EXPORTED_OPEN else example[:1]
        shapes = ({0: torch.export.Dim("batch")},) if batch == EXPORTED_OPEN else None
        program = _traced(model, example, shapes)
        save_program(program, out / "program.pt2")
        save_onnx(self._to_onnx(program, example, batch), out / "model.onnx")
        layout = read_meta(samples)["layout"]
        outputs, signature = probe(out / "program.pt2", "torch_export", {}, start, samples, layout)
        signature["inputs"][0]["name"], signature["outputs"][0]["name"] = "input", "logits"
        values = torch.from_numpy(encode(probe_images(samples), signature))
        with torch.inference_mode():
            eager = torch.cat([model(row[None]) for row in values]).numpy()
        if not np.isfinite(eager).all():
            raise ConfigError(
                f"the network returns NaN or infinity for pictures of the data, by {len(eager)} of them",
                fix="check the checkpoint, and data.mean and data.std against what the network was trained with",
            )
        fidelity = compare(eager, outputs)
        judge(fidelity, "fp32", trained=start["trained"], fix=TRACED)
        onnx_outputs, _ = probe(out / "model.onnx", "onnxruntime", {}, signature, samples, layout)
        onnx_fidelity = compare(outputs, onnx_outputs)
        judge(onnx_fidelity, "fp32", trained=start["trained"], fix=WRITTEN)
        if batch != FIXED and not takes_batches(
            out / "model.onnx", "onnxruntime", {}, signature, samples, onnx_outputs, "fp32"
        ):
            raise StepError(f"at batch {BATCH} the model answers otherwise than at batch 1")
        write_array(out / PROBE, outputs)
        write_json(out / SIGNATURE, {**signature, "dynamic_batch": batch != FIXED})
        return {"batch": batch, "dynamic_batch": batch != FIXED, "fidelity": fidelity, "onnx_fidelity": onnx_fidelity}

    def _to_onnx(self, program: Any, example: Any, batch: str) -> Any:
        """The program as an onnx.ModelProto. Raises ConfigError where it is not of the opset asked for."""
        import torch

        result = torch.onnx.export(
            program, (example,), dynamo=True, opset_version=self.opset, external_data=False, optimize=False,
            input_names=["input"], output_names=["logits"], verbose=False,
        )  # fmt: skip
        assert result is not None
        proto = result.model_proto  # made anew each time it is asked for
        written = proto.opset_import[0].version
        if written != self.opset:
            raise ConfigError(
                f"the exporter wrote ONNX opset {written}, not {self.opset}", fix=f"set steps.export.opset={written}"
            )
        if batch == OPENED:
            open_batch(proto)
        elif batch == EXPORTED_OPEN:
            name_batch(proto)
        return proto

    def _network(self, data_classes: int) -> tuple[Any, list[str]]:
        """The network with its weights, and notes on how they were loaded."""
        from compiler.runtime.pytorch import network

        count = self.num_classes or data_classes
        if self.weights is None:
            return network(self.architecture, count), []

        def build(classes: int) -> Any:
            return network(self.architecture, classes)

        return fit(
            build, read_sets(self.weights), count, self.weights, self.architecture, infer=self.num_classes is None
        )

    def _claim(self, metadata: Mapping[str, str], meta: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether the weights are trained for this data, and the sentence that says why not."""
        if self.weights is None:
            return False, "no accuracy is claimed: the network has random weights; give model.weights=FILE"
        if metadata.get("dataset") not in (None, meta["dataset"]):
            return (
                False,
                f"no accuracy is claimed: the weights were trained on {metadata['dataset']}, not on {meta['dataset']}; "
                "give model.weights=FILE",
            )
        recorded = metadata.get("train_split")
        if recorded and recorded != meta["splits"]["train"]["digest"]:
            return (
                False,
                "no accuracy is claimed: the weights were trained on another split of this data, so the report split "
                "is not unseen; restore data.splits and data.split_seed",
            )
        return True, ""


def _traced(model: Any, example: Any, shapes: Any) -> Any:
    """The module as torch.export's program, with `example`, float32 (batch, ...), as its input.

    Raises:
        StepError: torch.export cannot follow it, with the line of the network where it could not.
    """
    import torch

    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=shapes)
    except Exception as error:
        line = own_line(error)
        at = f" ({line})" if line else ""
        words = next((text.strip() for text in str(error).splitlines() if text.strip()), "(no message)")[:400]
        raise StepError(
            f"torch.export cannot follow the network: {type(error).__name__}: {words}{at}",
            fix="the network runs, but cannot be traced: let forward not branch on values or sizes of tensors there",
            details=str(error).splitlines()[1:9],
        ) from error
