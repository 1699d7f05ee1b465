"""From an ONNX model to a TensorRT engine, on the GPU that will run it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, IntegrityError, MissingToolError, StepError
from compiler.runtime import bound, cuda, gpu
from compiler.runtime.device import on_tensor_cores
from compiler.runtime.tensorrt_versions import Versions, installed, is_full

PRECISIONS = ("fp32", "fp16", "int8")
LEVELS = range(6)
DETAILS = 12
TYPES = (
    ("int8", r"int8"), ("bf16", r"bf(loat)?16"), ("fp16", r"half|fp16|float16"), ("fp32", r"float|fp32"),
)  # fmt: skip
"""How the inspector writes a tensor's type, first match first."""
KINDS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
"""Under which name: TensorRT 10 has format and type in one text, 11 apart."""


def build(
    onnx: Path,
    out: Path,
    *,
    precision: str,
    profile: tuple[int, int, int],
    optimization_level: int = 3,
    workspace_mb: int = 1024,
    timing_cache: Path | None = None,
) -> dict[str, Any]:
    """Writes `model.engine` and `model.engine.json` into the folder `out`; returns what is worth stating of them.

    The network is strongly typed: each layer runs in the type that the ONNX gives it, so `precision` (fp32, fp16 or
    int8) is only checked against it. `profile` is the least, best and largest batch where the ONNX leaves it open.
    `timing_cache` is a folder; the file in it is this GPU's, driver's and version's own.

    Raises:
        MissingToolError: TensorRT or the GPU is not there.
        ConfigError: a setting is out of range, or the profile does not fit the ONNX.
        StepError: TensorRT refused the ONNX, or a layer; `details` name it.
        IntegrityError: the timing cache is another machine's, or damaged.
    """
    _check(precision, profile, optimization_level, workspace_mb)
    trt = installed()
    bound_to = binding(trt)
    builder = trt.builder()
    network = trt.network(builder)
    errors = trt.parse(network, onnx)
    if errors:
        raise StepError(
            f"TensorRT {trt.version} cannot read {onnx.name}: {errors[0]}",
            fix="replace the operator, or take a candidate that runs without TensorRT",
            details=errors[:DETAILS],
        )
    asked = trt.precisions(network)
    if precision not in asked:
        raise StepError(
            f"{onnx.name} holds nothing in {precision}: a strongly typed network would run it in {_listed(asked)}",
            fix="build from the ONNX that the step for this precision wrote",
        )
    config = trt.config(builder, optimization_level, workspace_mb)
    shapes = _profile(trt.inputs(network), profile)
    if shapes and not trt.add_profile(builder, config, shapes):
        raise StepError(f"TensorRT refused the profile {profile}", fix="correct it", details=trt.log.worst())
    cache = Cache(timing_cache, bound_to) if timing_cache else None
    reused = _give_cache(trt, config, cache)
    started = time.monotonic()
    plan = trt.build(builder, network, config)
    if plan is None:
        reasons = trt.log.worst()
        raise _failure(trt.version, onnx, reasons)
    seconds = time.monotonic() - started
    if cache:
        cache.write(trt.cache(config))
    (out / "model.engine").write_bytes(plan)
    engine = trt.load(plan)
    if engine is None:
        raise StepError("TensorRT cannot load the engine it has just built", fix="", details=trt.log.worst())
    layers = read_layers(trt.information(engine))
    facts = {
        "precision": precision,
        "profile": dict(zip(("min", "opt", "max"), profile, strict=True)) if shapes else None,
        "optimization_level": optimization_level,
        "workspace_mb": workspace_mb,
        "device_memory_mb": round(trt.device_memory(engine) / cuda.MB, 2),
        "layers_by_precision": dict(sorted(Counter(layer["precision"] for layer in layers).items())),
        "tensor_cores": on_tensor_cores(layer["tactic"] for layer in layers),
        "cuda": cuda.device()["cuda"],
    }
    bound.write(out / "model.engine", bound_to, {**facts, "layers": layers})
    timing = {"build_s": round(seconds, 1), "timing_cache": "reused" if reused else "new" if cache else "none"}
    return {**facts, **timing, "bound_to": bound_to, "layers": len(layers)}


def binding(trt: Versions) -> bound.Binding:
    """What an engine built here is bound to.

    Raises:
        ConfigError: CUDA's first GPU is not nvidia-smi's: what is said of the one would be measured on the other.
    """
    found = bound.here(tensorrt=trt.version)
    used = cuda.device()
    gpu.check_same(used["gpu"], used["compute_capability"])
    return found


def read_layers(text: str) -> list[dict[str, str]]:
    """The inspector's layers: `name`, `type`, `precision` (of the first output) and `tactic`, '' where not told.

    Raises:
        StepError: it is not the inspector's JSON.
    """
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise StepError("the engine inspector's answer cannot be read", fix="", details=[text[:200]]) from error
    return [_layer(entry) for entry in found]


def _layer(entry: Any) -> dict[str, str]:
    if not isinstance(entry, Mapping):  # names alone, where the engine was built without detail
        return {"name": str(entry), "type": "", "precision": "unknown", "tactic": ""}
    outputs = entry.get("Outputs") or [{}]
    first = outputs[0] if isinstance(outputs[0], Mapping) else {}
    kind = str(next((first[key] for key in KINDS if first.get(key)), ""))
    return {
        "name": str(entry.get("Name", "")),
        "type": str(entry.get("LayerType", "")),
        "precision": next((name for name, pattern in TYPES if re.search(pattern, kind, re.I)), "other"),
        "tactic": str(entry.get("TacticName", "")),
    }


class Cache:
    """TensorRT's notes of how fast each kernel is, in a file of one GPU, driver and version."""

    def __init__(self, folder: Path, bound_to: bound.Binding) -> None:
        self._bound_to = bound_to
        words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", bound_to[name]) for name in sorted(bound_to))
        self.path = folder / f"{words}.timing"

    def read(self) -> bytes:
        """What is in it; empty where there is none.

        Raises:
            IntegrityError: it is another machine's, or damaged.
        """
        try:
            head, _, data = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return b""
        try:
            record = json.loads(head)
            digest, bound_to = record["sha256"], record["bound_to"]
        except (ValueError, KeyError, TypeError):
            raise self.foreign("it has no heading") from None
        if bound_to != self._bound_to:
            raise self.foreign(f"it is of {bound_to}")
        if digest != hashlib.sha256(data).hexdigest():
            raise self.foreign("it is damaged")
        return data

    def write(self, data: bytes) -> None:
        """Replaces the file, in one move: builds may share the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {"bound_to": self._bound_to, "sha256": hashlib.sha256(data).hexdigest()}
        with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as stream:
            stream.write(json.dumps(record, sort_keys=True).encode() + b"\n" + data)
        os.replace(stream.name, self.path)  # noqa: PTH105 - of two names, neither a Path yet

    def foreign(self, why: str) -> IntegrityError:
        """The error for a cache that cannot be used."""
        return IntegrityError(f"the timing cache {self.path.name} is not this machine's: {why}", fix="delete the file")


def _give_cache(trt: Versions, config: Any, cache: Cache | None) -> bool:
    """Whether an earlier build's timings are used."""
    data = cache.read() if cache else b""
    if not trt.set_cache(config, data):
        if cache and data:
            raise cache.foreign("TensorRT refuses it")
        raise StepError("TensorRT refuses an empty timing cache", fix="", details=trt.log.worst())
    return bool(data)


def _profile(
    inputs: list[tuple[str, list[int]]], batches: tuple[int, int, int]
) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """The least, best and largest shape of each input whose batch is open; empty where none is."""
    found = {}
    for name, shape in inputs:
        if -1 in shape[1:]:
            raise ConfigError(f"the ONNX leaves more than the batch of {name!r} open: {shape}", fix="fix its size")
        if shape[:1] == [-1]:
            least, best, most = ([batch, *shape[1:]] for batch in batches)
            found[name] = (least, best, most)
    return found


def _check(precision: str, profile: tuple[int, int, int], level: int, workspace_mb: int) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}", fix=f"one of {', '.join(PRECISIONS)}")
    if not 1 <= profile[0] <= profile[1] <= profile[2]:
        raise ConfigError(f"the profile is {profile}", fix="give min_batch <= opt_batch <= max_batch, each at least 1")
    if level not in LEVELS:
        raise ConfigError(f"optimization_level is {level}", fix="give 0 to 5")
    if workspace_mb < 1:
        raise ConfigError(f"workspace_mb is {workspace_mb}", fix="give at least 1")


def _failure(version: str, onnx: Path, reasons: list[str]) -> StepError | MissingToolError:
    first = reasons[0] if reasons else "it gave no reason"
    if is_full(reasons):
        fix = "a smaller max_batch or workspace_mb, or end what else uses the GPU"
    else:
        fix = "replace the layer, or take a candidate that runs without TensorRT"
    return StepError(f"TensorRT {version} cannot build {onnx.name}: {first}", fix=fix, details=reasons[:DETAILS])


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(sorted(found)) or "nothing that computes"
