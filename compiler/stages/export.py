"""Export: the trained network as a PyTorch program and as ONNX, with its signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import PROBE, SIGNATURE, compare, judge, probe, probe_images
from compiler.errors import ConfigError
from compiler.stage import Stage, write_json
from compiler.stages._checkpoint import load_state, read_metadata
from compiler.stages._model_files import save_onnx, save_program
from compiler.stages.samples import read_meta


@dataclasses.dataclass(kw_only=True)
class Export(Stage):
    """Writes `module.safetensors` (the network as it is, for the baseline), `program.pt2` (torch.export), `model.onnx`,
    `signature.json` and the probe's outputs.

    `architecture` is a classifier of torchvision, or `package.module:function` that takes `num_classes` and
    returns a torch.nn.Module. Without `weights` the network has random weights and no accuracy is claimed.
    """

    inputs: ClassVar[Mapping[str, str]] = {"samples": "samples"}
    tools: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors")

    architecture: str
    weights: Path | None = None
    sha256: str | None = None
    num_classes: int | None = None
    seed: int = 0
    opset: int = 18

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
            ConfigError: the weights do not fit the architecture, or the classes do not fit the data.
            StepError: the exported program or the ONNX model computes something else than the network.
        """
        import numpy as np
        import torch

        from compiler.runtime.pytorch import save

        meta = read_meta(inputs["samples"])
        metadata = read_metadata(self.weights) if self.weights else {}
        torch.manual_seed(self.seed)
        model = self._network(len(meta["classes"])).eval()
        side = meta["preprocessing"]["crop"]
        shape = (1, 3, side, side) if meta["layout"] == "NCHW" else (1, side, side, 3)
        example = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        with torch.no_grad():
            logits = model(example)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ConfigError(
                f"{self.architecture} does not return one (batch, classes) tensor",
                fix="wrap it so that forward returns logits only",
            )
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
        save(model, shape, logits.shape[1], out / "module.safetensors")
        with torch.no_grad():
            program = torch.export.export(model, (example,))
        save_program(program, out / "program.pt2")
        onnx_program = torch.onnx.export(
            program, (example,), dynamo=True, opset_version=self.opset, external_data=False, optimize=False,
            input_names=["input"], output_names=["logits"], verbose=False,
        )  # fmt: skip
        assert onnx_program is not None
        written = onnx_program.model_proto.opset_import[0].version
        if written != self.opset:
            raise ConfigError(
                f"the exporter wrote ONNX opset {written}, not {self.opset}", fix=f"set steps.export.opset={written}"
            )
        save_onnx(onnx_program.model_proto, out / "model.onnx")

        trained, sentence = self._claim(metadata, meta)
        base = {
            "preprocessing": meta["preprocessing"],
            "labels": meta["classes"],
            "trained": trained,
            "claim": sentence,
            "demo": metadata.get("kind") == "demo",
        }
        start = base | {"inputs": [], "outputs": []}
        outputs, signature = probe(out / "program.pt2", "torch_export", {}, start, inputs["samples"], meta["layout"])
        signature["inputs"][0]["name"], signature["outputs"][0]["name"] = "input", "logits"
        from compiler.runtime.preprocess import encode

        values = torch.from_numpy(encode(probe_images(inputs["samples"]), signature))
        with torch.inference_mode():
            eager = torch.cat([model(row[None]) for row in values]).numpy()
        fidelity = compare(eager, outputs)
        judge(fidelity, "fp32", trained=trained)
        onnx_outputs, _ = probe(out / "model.onnx", "onnxruntime", {}, signature, inputs["samples"], meta["layout"])
        onnx_fidelity = compare(outputs, onnx_outputs)
        judge(onnx_fidelity, "fp32", trained=trained)
        np.save(out / PROBE, outputs)
        write_json(out / SIGNATURE, signature)
        parameters = sum(p.numel() for p in model.parameters())
        return {
            "parameters": parameters,
            "fidelity": fidelity,
            "onnx_fidelity": onnx_fidelity,
        }

    def _network(self, data_classes: int) -> Any:
        from compiler.runtime.pytorch import network

        if self.weights is None:
            return network(self.architecture, self.num_classes or data_classes)
        state = load_state(self.weights)
        classes = self.num_classes or self._classes_of(state) or data_classes
        model = network(self.architecture, classes)
        _check_fit(model.state_dict(), state, self.weights, self.architecture)
        model.load_state_dict(state)
        return model

    def _classes_of(self, state: Mapping[str, Any]) -> int | None:
        """As many classes as the checkpoint's tensor for the network's last parameter has rows."""
        import torch

        from compiler.runtime.pytorch import network

        with torch.device("meta"):
            names = [name for name, _ in network(self.architecture, 1000).named_parameters()]
        last = state.get(names[-1]) if names else None
        return int(last.shape[0]) if last is not None and last.ndim else None

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


def _check_fit(expected: Mapping[str, Any], state: Mapping[str, Any], path: Path, architecture: str) -> None:
    """Names the first few keys that are missing, unknown or of another shape.

    Raises:
        ConfigError: the checkpoint does not fit.
    """
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name}: checkpoint {tuple(state[name].shape)}, network {tuple(expected[name].shape)}"
        for name in expected
        if name in state and tuple(state[name].shape) != tuple(expected[name].shape)
    ]
    if not (missing or unknown or shapes):
        return
    details = [
        f"{title} ({len(names)}): {'; '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for title, names in (("missing", missing), ("unknown", unknown), ("other shape", shapes))
        if names
    ]
    raise ConfigError(
        f"the checkpoint {path.name} does not fit {architecture}",
        fix="check model.architecture and model.num_classes against what was trained",
        details=details,
    )
