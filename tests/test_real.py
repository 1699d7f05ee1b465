"""Real builds of small models with the real converters and runtimes, on the targets that ship."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bases
import batches
import jsonschema
import numpy as np
import onnx
import pytest
from conftest import QUICK, ROOT, Done, command, environment

from compiler import qdq
from compiler.runtime import gpu

pytestmark = pytest.mark.real

CANDIDATES = {
    "rpi4": ["tflite_fp32", "tflite_fp16", "tflite_dynamic_int8", "tflite_int8"],
    "xeon": [
        "openvino_fp32",
        "openvino_bf16",
        "openvino_int8",
        "onnxruntime_fp32",
        "onnxruntime_int8",
        "openvino_qdq_int8",
    ],
}


BASELINE = {"rpi4": "baseline=tflite_fp32", "xeon": "baseline=onnxruntime_fp32"}
"""Where one candidate's artifact is looked at: PyTorch would take longer to open and to warm up than all the rest."""
BLOCK = re.compile(r"^`([\w./]+)`:\n```\w+\n(.*?)^```$", re.S | re.M)
"""A file that a page shows."""


class Builds:
    """Builds in one store, each made once however many tests look at it."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self._done: dict[tuple[str, ...], Done] = {}

    def __call__(self, *overrides: str, cwd: Path | None = None) -> Done:
        if overrides not in self._done:
            self._done[overrides] = command(*QUICK, *overrides, f"artifacts_dir={self.artifacts}", cwd=cwd)
        done = self._done[overrides]
        assert done.code == 0, done.err
        return done


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("real") / "öäü, with a comma" / "artifacts")


def _row(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = next(c for c in manifest["candidates"] if c["id"] == name)
    return row


def _object(builds: Builds, manifest: dict[str, Any], step: str) -> Path:
    key = next(s["key"] for s in manifest["steps"] if s["name"] == step)
    action = json.loads((builds.artifacts / ".store/actions" / key[:2] / f"{key}.json").read_text())
    return builds.artifacts / ".store/objects" / action["object"][:2] / action["object"]


def _independent(folder: Path) -> float:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/independent_check.py", folder],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


T4 = ["tensorrt_fp16", "tensorrt_int8", "tensorrt_int8_fp16", "cuda_fp16", "onnxruntime_cuda_fp32", "onnxruntime_fp32"]


def test_default_model_for_t4_is_prepared_here_and_finished_with_numpy_and_a_runtime(
    builds: Builds, schema: dict[str, Any], tmp_path: Path
) -> None:
    if gpu.describe()["gpu"] is not None:
        pytest.skip("this host has an NVIDIA GPU: its builds for t4 are not deferred")
    done = builds("target=t4", f"candidates=[{','.join(T4)}]")
    jsonschema.validate(done.manifest, schema)
    assert done.manifest["status"] == "deferred" and done.manifest["selected"] is None
    for name in ("tensorrt_fp16", "tensorrt_int8", "tensorrt_int8_fp16"):
        prepared = _row(done.manifest, name)["prepared"]
        assert abs(prepared["accuracy"]["drop"]) <= 1.0 and prepared["accuracy"]["n"] == 400, name
    steps = done.manifest_path.parent / "steps"
    model = onnx.load(str(steps / "tensorrt_int8.quantize/model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert qdq.violations(model) == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n# MOCK\necho Tesla T4, 550.54.15, 7.5, 15360\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    listed = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    program = command("finish", done.manifest_path.parent, "--candidates", "cuda_fp16", env=listed)
    assert program.code == 6 and "the PyTorch program for cuda_fp16 can hold code" in program.err
    python = bases.environment(tmp_path, ["onnxruntime"])
    carried = shutil.copytree(done.manifest_path.parent, tmp_path / "carried")
    there = bases.call(python, "finish", carried, "--candidates", "onnxruntime_fp32", cwd=tmp_path)
    assert there.code == 0, there.err
    manifest = there.manifest_in(tmp_path)
    jsonschema.validate(manifest, schema)
    row = _row(manifest, "onnxruntime_fp32")
    assert manifest["selected"] == "onnxruntime_fp32" and row["latency_ms"]["on"] == "finishing-host"
    assert abs(row["accuracy"]["drop"]) <= 1.0 and row["accuracy"]["on"] == "finishing-host"
    assert _row(manifest, "pytorch_cuda_fp32")["accuracy"]["on"] == "build-host"
    assert {n for n in manifest["environment"]["packages"] if n.startswith(("torch", "onnx"))} == {"onnxruntime"}


@pytest.mark.parametrize("target", ["rpi4", "xeon"])
def test_default_model_builds_for_a_target_that_this_is_not(
    builds: Builds, schema: dict[str, Any], target: str
) -> None:
    done = builds(f"target={target}", "evaluate=all")
    manifest = done.manifest
    jsonschema.validate(manifest, schema)
    assert manifest["status"] == "provisional"
    assert [c["id"] for c in manifest["candidates"]] == ["pytorch_fp32", *CANDIDATES[target]]
    assert all(c["latency_ms"] and c["accuracy"] for c in manifest["candidates"])
    assert _row(manifest, "pytorch_fp32")["accuracy"]["value"] >= 98.5
    latency = next(v for v in manifest["verdicts"] if v["metric"] == "latency_p95_ms")
    assert latency["result"] == "unproven" and "a proxy" in latency["reason"]
    assert "Demo weights" in done.out and "Latency is a proxy" in done.out


@pytest.mark.parametrize("target", ["rpi4", "xeon"])
def test_every_int8_stays_within_one_point_and_every_conversion_was_compared(builds: Builds, target: str) -> None:
    manifest = builds(f"target={target}", "evaluate=all").manifest
    for row in manifest["candidates"]:
        assert row["accuracy"]["drop"] <= 1.0, row["id"]
        if row["steps"]:
            assert row["fidelity"]["n"] == 64 and row["fidelity"]["centred_cosine"] > 0.95, row["id"]


def test_host_builds_to_a_proven_pass(builds: Builds, schema: dict[str, Any]) -> None:
    # six rounds: fewer cannot prove that the selected candidate is faster than the baseline
    manifest = builds("target=host", "steps.benchmark.rounds=6", "steps.benchmark.min_calls=20").manifest
    jsonschema.validate(manifest, schema)
    assert manifest["status"] == "pass"
    assert manifest["measured_on"][0]["kind"] == "native"


def test_second_target_reuses_export_fuse_and_calibrate(builds: Builds) -> None:
    builds("target=rpi4", "evaluate=all")
    steps = {s["name"]: s["status"] for s in builds("target=xeon", "evaluate=all").manifest["steps"]}
    assert {steps[name] for name in ("samples", "export", "fuse", "calibrate")} == {"reused"}


@pytest.mark.parametrize(
    ("target", "candidate"),
    [
        ("rpi4", "tflite_int8"),
        ("rpi4", "tflite_fp16"),
        ("xeon", "openvino_int8"),
        ("xeon", "openvino_bf16"),
        ("xeon", "onnxruntime_int8"),
    ],
)
def test_a_script_of_nobodys_gets_the_manifests_accuracy(builds: Builds, target: str, candidate: str) -> None:
    builds(f"target={target}", "evaluate=all")
    done = builds(f"target={target}", "evaluate=all", f"candidates=[{candidate}]", BASELINE[target])
    assert done.manifest["selected"] == candidate
    assert _independent(done.manifest_path.parent) == pytest.approx(_row(done.manifest, candidate)["accuracy"]["value"])


@pytest.mark.parametrize(
    "overrides",
    [
        ("quantizer=ai_edge_quantizer", "io=int8"),
        ("quantizer=tensorflow", "io=int8"),
        ("quantizer=ai_edge_quantizer", "io=float32"),
    ],
)
def test_either_quantizer_makes_an_int8_file_with_the_boundary_asked_for(
    builds: Builds, overrides: tuple[str, str]
) -> None:
    changes = [f"candidate.tflite_int8.steps.quantize.{o}" for o in overrides]
    builds("target=rpi4", "evaluate=all")
    done = builds("target=rpi4", "candidates=[tflite_int8]", BASELINE["rpi4"], *changes)
    manifest = done.manifest
    entry = manifest["signature"]["inputs"][0]
    wanted = overrides[1].partition("=")[2]
    assert (entry["dtype"], entry["layout"], entry["shape"]) == (wanted, "NHWC", [1, 96, 96, 3])
    assert ("scale" in entry) == (wanted == "int8")
    assert _independent(done.manifest_path.parent) == pytest.approx(_row(manifest, "tflite_int8")["accuracy"]["value"])
    assert "convert" not in " ".join(done.executed)


def test_precision_hint_is_recorded_and_both_float_precisions_share_one_ir(builds: Builds) -> None:
    manifest = builds("target=xeon", "evaluate=all").manifest
    fp32, bf16 = _row(manifest, "openvino_fp32"), _row(manifest, "openvino_bf16")
    assert fp32["steps"] == bf16["steps"]
    assert (fp32["options"]["INFERENCE_PRECISION_HINT"], bf16["options"]["INFERENCE_PRECISION_HINT"]) == ("f32", "bf16")


def test_fuse_removes_batch_norms_and_says_how_many_nodes_went(builds: Builds) -> None:
    manifest = builds("target=rpi4", "evaluate=all").manifest
    folder = _object(builds, manifest, "fuse")
    nodes, facts = json.loads((folder / "nodes.json").read_text()), json.loads((folder / "facts.json").read_text())
    assert nodes["program"]["before"]["aten.batch_norm.default"] == 34
    assert "aten.batch_norm.default" not in nodes["program"]["after"]
    assert "BatchNormalization" not in nodes["onnx"]["after"]
    assert facts["onnx_nodes_after"] < facts["onnx_nodes_before"]
    assert facts["fidelity"]["max_abs_error"] < 1e-3 and facts["onnx_fidelity"]["max_abs_error"] < 1e-3


def test_no_payload_names_a_folder_of_this_machine(builds: Builds) -> None:
    manifest = builds("target=rpi4", "evaluate=all").manifest
    needles = [str(ROOT).encode(), str(builds.artifacts).encode(), b"site-packages", b"/home/", b"/root/"]
    for step in manifest["steps"]:
        for file in _object(builds, manifest, step["name"]).iterdir():
            assert not any(needle in file.read_bytes() for needle in needles), (step["name"], file.name)


def test_onnx_is_of_the_opset_asked_for_and_quantized_per_channel(builds: Builds) -> None:
    import onnx

    manifest = builds("target=xeon", "evaluate=all").manifest
    assert onnx.load(str(_object(builds, manifest, "export") / "model.onnx")).opset_import[0].version >= 18
    quantized = onnx.load(str(_object(builds, manifest, "onnxruntime_int8.quantize") / "model.onnx"))
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in quantized.graph.initializer}
    weights = [
        n
        for n in quantized.graph.node
        if n.op_type == "DequantizeLinear" and arrays.get(n.input[0], np.zeros(0)).ndim == 4
    ]
    assert len(weights) == 52
    for node in weights:
        weight, scale = arrays[node.input[0]], arrays[node.input[1]]
        assert weight.dtype == np.int8 and scale.shape == (weight.shape[0],)


def test_runtime_runs_a_built_artifact_on_images(builds: Builds, tmp_path: Path) -> None:
    folder = builds("target=rpi4", "evaluate=all").manifest_path.parent
    np.save(tmp_path / "x.npy", np.zeros((3, 96, 96, 3), np.uint8))
    done = command("run", folder, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert done.code == 0 and np.load(tmp_path / "y.npy").shape == (3, 10)
    np.save(tmp_path / "bad.npy", np.zeros((3, 50, 50, 3), np.uint8))
    bad = command("run", folder, "--input", tmp_path / "bad.npy", "--output", tmp_path / "y.npy")
    assert bad.code == 2 and "(n, 96, 96, 3)" in bad.last_lines()[0]


@pytest.mark.parametrize(
    ("form", "target", "step"),
    [
        ("fuse", "rpi4", "fuse"),
        ("onnxruntime_int8", "xeon", "onnxruntime_int8.quantize"),
        ("openvino_fp32", "xeon", "openvino_fp32.convert"),
        ("tflite_fp32", "rpi4", "tflite_fp32.convert"),
        ("tflite_int8", "rpi4", "tflite_int8.quantize"),
    ],
)
def test_the_default_model_is_answered_alike_in_a_batch_and_alone(
    builds: Builds, form: str, target: str, step: str
) -> None:
    manifest = builds(f"target={target}", "evaluate=all").manifest
    batches.check(_object(builds, manifest, "samples"), batches.FORMS[form], _object(builds, manifest, step))


def test_adding_a_backend_builds_what_it_describes(builds: Builds, tmp_path: Path) -> None:
    text = (ROOT / "docs/adding-a-backend.md").read_text()
    files = BLOCK.findall(text)
    assert [name for name, _ in files] == [
        "private/half_runtime.py",
        "private/half_backend.py",
        "conf/candidate/half_fp16.yaml",
    ]
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "private/__init__.py").write_text("")
    lines = [line for line in text.splitlines() if line.startswith("python -m compiler ")]
    assert len(lines) == 2
    store = builds("target=xeon", "evaluate=all").manifest_path.parents[3] / ".store"  # the steps before are there
    shutil.copytree(store, tmp_path / "artifacts/.store", copy_function=os.link)
    for line in lines:
        done = command(*shlex.split(line)[3:], *QUICK, cwd=tmp_path)
        assert done.code == 0, done.err
    assert not {"samples", "export", "fuse"} & set(done.executed) and "half_fp16.shrink" in done.executed
    row = _row(done.manifest_in(tmp_path), "half_fp16")
    assert row["latency_ms"] and row["fidelity"]["centred_cosine"] > 0.999
    backend = tmp_path / "private/half_backend.py"
    backend.write_text(backend.read_text().replace("float16 storage", "half storage"))
    again = command(*shlex.split(lines[0])[3:], "--json", *QUICK, cwd=tmp_path)
    states = {row["name"]: row for row in json.loads(again.out)["steps"]}
    assert states["half_fp16.shrink"]["why"] == "source of private/half_backend.py changed"
    assert states["fuse"]["state"] == "hit"


def test_users_own_network_builds_and_one_without_weights_gets_no_accuracy(builds: Builds) -> None:
    own = ["model=torchvision", "model.name=small", "model.architecture=networks:small"]
    manifest = builds("target=xeon", *own, cwd=ROOT / "tests").manifest
    assert manifest["weights"]["trained"] is False
    assert all(c["accuracy"] is None for c in manifest["candidates"])


def test_pool_with_padding_is_quantized_to_int8(builds: Builds) -> None:
    own = ["model=torchvision", "model.name=small", "model.architecture=networks:small"]
    manifest = builds("target=rpi4", *own, "candidates=[tflite_int8]", cwd=ROOT / "tests").manifest
    assert manifest["selected"] == "tflite_int8"
    facts = json.loads((_object(builds, manifest, "tflite_int8.convert") / "facts.json").read_text())
    assert facts["pools_padded_with_zero"] == 1 and facts["fidelity"]["max_abs_error"] < 1e-5


def test_operator_that_a_converter_cannot_take_is_named(builds: Builds) -> None:
    odd = ["model=torchvision", "model.name=odd", "model.architecture=networks:odd"]
    done = builds("target=rpi4", *odd, "candidates=[tflite_fp32,onnxruntime_fp32]", cwd=ROOT / "tests")
    row = _row(done.manifest, "tflite_fp32")
    assert row["status"] == "failed" and "linalg_det" in row["reason"]
    assert done.manifest["selected"] == "onnxruntime_fp32"


def test_class_count_that_does_not_match_is_refused(tmp_path: Path, builds: Builds) -> None:
    from PIL import Image

    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (100, 100), (i * 50, 0, 0)).save(tmp_path / "data" / name / f"{i}.png")
    data = ["data=imagefolder", f"data.root={tmp_path / 'data'}", "data.resize=96", "data.crop=96"]
    splits = ["data.splits.calibration=4", "data.splits.selection=4"]
    done = command("target=rpi4", *data, *splits, f"artifacts_dir={builds.artifacts}")
    assert done.code == 2 and "the network has 10 classes, the data has 3" in done.last_lines()[1]


def test_weights_trained_on_other_samples_claim_no_accuracy(builds: Builds) -> None:
    manifest = builds("target=xeon", "data.split_seed=7", "candidates=[onnxruntime_fp32]").manifest
    assert "another split" in manifest["weights"]["claim"]
    assert all(c["accuracy"] is None for c in manifest["candidates"])


def test_wheel_brings_its_configuration_and_works_from_any_folder(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    wheel = next((tmp_path / "dist").glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    clean = {k: v for k, v in environment().items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-m", "compiler", "plan", "target=rpi4", "--json"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/compiler/conf/target/rpi4.yaml").is_file()
    assert (tmp_path / "site/compiler/zoo/mobilenetv3_digits.safetensors").is_file()
    assert "samples" in done.stdout


@pytest.mark.parametrize("target, candidates", [("rpi4", ""), ("xeon", "candidates=[openvino_fp32]")])
def test_what_was_built_is_published_and_runs_the_same_where_there_is_numpy_and_its_library_alone(
    builds: Builds, tmp_path: Path, target: str, candidates: str
) -> None:
    import bases
    from registry_server import Server

    from compiler import runtime
    from compiler.runtime.names import distributions_of

    done = builds(f"target={target}", "evaluate=all") if not candidates else builds(f"target={target}", candidates)
    folder = done.manifest_path.parent
    selected = _row(done.manifest, done.manifest["selected"])
    assert selected["runtime"] == {"rpi4": "tflite", "xeon": "openvino"}[target]
    python = bases.environment(tmp_path, distributions_of(selected["runtime"]))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8))
    with Server(tmp_path / "server", auth=True) as server:
        server.docker_config(tmp_path / ".docker")
        env = {**environment(), "HOME": str(tmp_path)}
        published = command("publish", folder, server.reference("models/real"), env=env)
        assert published.code == 0, published.err
        pulled = bases.call(python, "pull", published.out.strip(), "pulled", cwd=tmp_path)
        assert pulled.code == 0, pulled.err
    assert bases.call(python, "verify", "pulled", cwd=tmp_path).code == 0
    ran = bases.call(python, "run", "pulled", "--input", "x.npy", "--output", "y.npy", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert np.array_equal(np.load(tmp_path / "y.npy"), runtime.load(folder).predict(np.load(tmp_path / "x.npy")))
