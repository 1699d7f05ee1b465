"""Whether a model answers each sample in a batch as it does alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compiler.conversion import MAX_BATCH_ERROR, SIGNATURE, same
from compiler.runtime.preprocess import decode, encode
from compiler.runtime.session import open_model

BATCH = 4
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
TFLITE = {
    "tflite_fp32": ("tflite", "model.tflite", {}, "fp32"),
    "tflite_fp16": ("tflite", "model.tflite", {}, "fp16"),
    "tflite_dynamic_int8": ("tflite", "model.tflite", {}, "int8"),
    "tflite_int8": ("tflite", "model.tflite", {}, "int8"),
    "tflite_int8_io": ("tflite", "model.tflite", {}, "int8"),
    "tflite_ai_edge_int8": ("tflite", "model.tflite", {}, "int8"),
}
Form = tuple[str, str, dict[str, Any], str]
FORMS: dict[str, Form] = {
    "fuse": ("onnxruntime", "model.onnx", {}, "fp32"),
    "onnxruntime_int8": ("onnxruntime", "model.onnx", {}, "int8"),
    "openvino_fp32": ("openvino", "model.xml", F32, "fp32"),
    "openvino_int8": ("openvino", "model.xml", F32, "int8"),
    **TFLITE,
}
"""Runtime, file, options and precision."""

# without it OpenVINO forks to report that it was used, and this process has threads
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def answers(samples: Path, form: Form, folder: Path, batch: int) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Logits of the first `BATCH` samples, `batch` of them a run, and the session's signature."""
    name, file, options, _ = form
    signature = json.loads((folder / SIGNATURE).read_text())
    images = np.load(samples / "calibration.npy")[:BATCH]
    values = encode(images, signature)
    session = open_model(name, folder / file, {"threads": 1, **options, "batch": batch})
    rows = [session.run([values[i : i + batch]])[0] for i in range(0, BATCH, batch)]
    return decode(np.concatenate(rows), signature["outputs"][0]), session.signature()


def check(samples: Path, form: Form, folder: Path) -> None:
    """Fails where a sample is answered otherwise in a batch than alone; `samples`: the result of that step."""
    alone, signature = answers(samples, form, folder, 1)
    together, opened = answers(samples, form, folder, BATCH)
    stored = json.loads((folder / SIGNATURE).read_text())
    assert stored["dynamic_batch"] is True
    assert stored["inputs"][0]["shape"] == signature["inputs"][0]["shape"]
    for side in ("inputs", "outputs"):
        assert opened[side][0]["shape"] == [BATCH, *signature[side][0]["shape"][1:]]
    exact = MAX_BATCH_ERROR["fp32"] / 10
    assert same(alone, together, exact if form[3] == "fp32" else 0.05)
    assert (alone.argmax(axis=1) == together.argmax(axis=1)).all()
