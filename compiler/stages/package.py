"""Package: the files that are delivered, gathered with a role each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.conversion import SIGNATURE
from compiler.disk import copy
from compiler.runtime.measure import RAW, RESULT
from compiler.stage import Stage, write_json
from compiler.stages._measurement import artifact_files
from compiler.stages.benchmark import SCREEN_RAW
from compiler.stages.sweep import CURVES
from compiler.uneven import RECORD

MEDIA_TYPES = {
    ".tflite": "application/vnd.tflite", ".onnx": "application/vnd.onnx", ".xml": "application/vnd.openvino.ir+xml",
    ".json": "application/json", ".txt": "text/plain", ".npz": "application/vnd.numpy.npz",
}  # fmt: skip
OCTETS = "application/octet-stream"


@dataclasses.dataclass(kw_only=True)
class Package(Stage):
    """Copies the selected model, its signature and labels, the calibration record and the raw latencies.

    Inputs: `model` (the selected candidate's result), `benchmark`, and what else is to be delivered. Without
    `benchmark` (when a version is rebuilt to be compared) only what does not depend on measuring is gathered.
    """

    inputs: ClassVar[Mapping[str, str]] = {"benchmark": "benchmark", "select": "select"}

    not_portable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (RAW, SCREEN_RAW, RESULT, CURVES), "figures differ each time they are taken"
    )

    artifact: str

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`; the facts list each file's role and media type."""
        files = []

        def add(source: Path, name: str, role: str) -> None:
            copy(source, out / name)
            files.append({"path": name, "role": role, "media_type": MEDIA_TYPES.get(Path(name).suffix, OCTETS)})

        for path in artifact_files(inputs["model"], self.artifact):
            add(path, path.name, "model" if path.name == self.artifact else "weights")
        signature = json.loads((inputs["model"] / SIGNATURE).read_text())
        write_json(out / SIGNATURE, signature)
        files.append({"path": SIGNATURE, "role": "signature", "media_type": MEDIA_TYPES[".json"]})
        (out / "labels.txt").write_text("".join(f"{label}\n" for label in signature["labels"]), encoding="utf-8")
        files.append({"path": "labels.txt", "role": "labels", "media_type": MEDIA_TYPES[".txt"]})
        roles = {RAW: "raw_latencies", SCREEN_RAW: "raw_latencies", RESULT: "measurement", CURVES: "curves"}
        for name, role in roles.items():
            if "benchmark" in inputs and (inputs["benchmark"] / name).exists():
                add(inputs["benchmark"] / name, name, role)
        if "calibrate" in inputs:
            add(inputs["calibrate"] / RECORD, RECORD, "calibration_record")
        return {"files": sorted(files, key=lambda f: f["path"]), "signature": signature}
