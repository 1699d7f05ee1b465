"""Hostile artifacts and measurements: every digest right, everything else as bad as it can be."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compiler.canonical import file_digest
from compiler.runtime.verify import files_digest

MEMORY = 1 << 30
"""Address space of a child: what libraries map, and nothing like what the bombs ask for."""


def limited() -> None:
    """For `preexec_fn`: a bomb that goes off is a MemoryError, and a failed test, not a dead machine."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def seal(folder: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """Changes a version's manifest, and makes sizes and digests those of the files that are there."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        file = folder / entry["path"]
        if file.is_file():
            entry |= {"size_bytes": file.stat().st_size, "sha256": file_digest(file)}
    if change is not None:
        change(manifest)
    manifest["digest"] = files_digest(manifest["files"])
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write(folder: Path, name: str, content: bytes) -> None:
    """A file in place of another, which may be read-only."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)


def disguise(folder: Path, runtime: str, files: dict[str, bytes], options: dict[str, Any] | None = None) -> Path:
    """Turns a version of the null model into one of `runtime`: the first of `files`, float32 (1, 4) in and out."""

    def change(manifest: dict[str, Any]) -> None:
        kept = [entry for entry in manifest["files"] if entry["role"] not in ("model", "weights")]
        for number, name in enumerate(files):
            kept.append({
                "path": name, "role": "weights" if number else "model", "media_type": "application/octet-stream",
                "portable": True, "size_bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name),
            })  # fmt: skip
        manifest["files"] = kept
        tensor = {"name": "x", "dtype": "float32", "shape": [1, 4], "layout": "NC"}
        manifest["signature"] = {"inputs": [tensor], "outputs": [tensor | {"name": "y"}]}
        row = next(row for row in manifest["candidates"] if row["id"] == manifest["selected"])
        row |= {"runtime": runtime, "options": {"threads": 1, "batch": 1, **(options or {})}}

    (folder / "model.npz").unlink()
    for name, content in files.items():
        write(folder, name, content)
    return seal(folder, change)


class Trigger:
    """Unpickled, it touches a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def pickled(canary: Path) -> bytes:
    """An `.npy` file whose one object runs code when it is unpickled."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    stream.write(pickle.dumps([Trigger(canary)]))
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4", body: bytes = b"") -> bytes:
    """An `.npy` file whose header says what it likes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


def archive(**members: bytes) -> bytes:
    """An `.npz` file of these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return stream.getvalue()


def bomb(gigabytes: int = 1) -> bytes:
    """An `.npz` file of a few megabytes that unpacks to gigabytes of zeros."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("weight.npy", "w", force_zip64=True) as f,
    ):
        count = gigabytes << 28
        f.write(header((count // 4, 4)))
        chunk = bytes(16 << 20)
        for _ in range((count << 2) // len(chunk)):
            f.write(chunk)
    return stream.getvalue()


def onnx_model(location: str | None, length: int = 64) -> bytes:
    """y = x @ w, (batch, 4) float32; `w` lies in the file, or in the one that `location` names."""
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    if location is None:
        weight.raw_data = np.eye(4, dtype=np.float32).tobytes()
    else:
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", str(length))):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    found: bytes = model.SerializeToString()
    return found


def tflite_model() -> bytes:
    """y = x + w, (1, 4) float32, in the TFLite format."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, buffer: int) -> Any:
        found = schema.TensorT()
        found.name, found.shape, found.type, found.buffer = name, [1, 4], schema.TensorType.FLOAT32, buffer
        return found

    empty, weight = schema.BufferT(), schema.BufferT()
    weight.data = np.frombuffer(np.ones(4, np.float32).tobytes(), np.uint8)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = [tensor("x", 0), tensor("w", 1), tensor("y", 0)], [0], [2]
    graph.operators = [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [empty, weight]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def openvino_model(folder: Path) -> dict[str, bytes]:
    """y = x + w, (1, 4) float32, as an IR: the contents of its two files."""
    import openvino
    from openvino import opset13

    x = opset13.parameter([1, 4], np.float32, name="x")
    y = opset13.add(x, opset13.constant(np.arange(4, dtype=np.float32).reshape(1, 4)), name="y")
    openvino.save_model(openvino.Model([y], [x]), str(folder / "model.xml"), compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}
