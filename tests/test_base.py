"""What ships to devices: our wheel with numpy and one library runs and verifies; the rest says what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import bases
import malice
import numpy as np
import pytest
from conftest import ROOT, First, command

from compiler import runtime
from compiler.errors import ConfigError

X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def version(first: First, tmp_path: Path) -> Path:
    """A finished version of the null model, as if it had been pulled."""
    folder = next((first.project.artifacts / "nullmodel" / "nulltarget").glob("2*"))
    return Path(shutil.copytree(folder, tmp_path / "pulled"))


@pytest.mark.real
@pytest.mark.parametrize("runtime_name, distribution", [("tflite", "ai-edge-litert"), ("openvino", "openvino")])
def test_an_environment_with_numpy_and_one_library_verifies_and_runs(
    version: Path, tmp_path: Path, runtime_name: str, distribution: str
) -> None:
    python = bases.environment(tmp_path, [distribution])
    if runtime_name == "tflite":
        malice.disguise(version, "tflite", {"model.tflite": malice.tflite_model()})
    else:
        files = malice.openvino_model(tmp_path)
        malice.disguise(version, "openvino", files, {"INFERENCE_PRECISION_HINT": "f32"})
    np.save(tmp_path / "x.npy", X)
    assert bases.call(python, "verify", version, cwd=tmp_path).code == 0
    done = bases.call(python, "run", version, "--input", "x.npy", "--output", "y.npy", cwd=tmp_path)
    assert done.code == 0, done.err
    there = np.load(tmp_path / "y.npy")
    assert np.array_equal(there, X + (1 if runtime_name == "tflite" else np.arange(4, dtype=np.float32)))
    assert np.array_equal(there, runtime.load(version).run_batch(X)[0])


@pytest.mark.real
def test_numpy_alone_runs_verifies_helps_and_names_what_lacks(version: Path, tmp_path: Path) -> None:
    from compiler.__main__ import VERBS

    python = bases.environment(tmp_path, [])
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.uint8))
    done = bases.call(python, "run", version, "--input", "x.npy", "--output", "y.npy", cwd=tmp_path)
    assert done.code == 0 and np.load(tmp_path / "y.npy").shape == (2, 4), done.err
    assert bases.call(python, "--help", cwd=tmp_path).code == 0
    assert "did you mean 'verify'" in bases.call(python, "verfy", version, cwd=tmp_path).err
    for verb in VERBS:
        helped = bases.call(python, verb, "--help", cwd=tmp_path)
        assert helped.code == 0 or "[build]" in helped.last_lines()[0], (verb, helped.err)
    samples = ["--samples", "x.npy"]
    for arguments in (["target=rpi4"], ["plan", "target=rpi4"], ["doctor"],
                      ["compare", version, version], ["publish", version, "file:there"],
                      ["report", version, "--output", "r.html"],
                      ["measure", version, *samples], ["profile", version, *samples]):  # fmt: skip
        lacking = bases.call(python, *arguments, cwd=tmp_path)
        assert lacking.code == 4 and "pip install 'target-model-compiler[build]'" in lacking.last_lines()[0], (
            lacking.err
        )
    shown = bases.call(python, "show", version, cwd=tmp_path)
    assert shown.code == 0 and "Status: provisional" in shown.out and "null_" in shown.out, shown.err
    again = bases.call(python, "rebuild", version, cwd=tmp_path)
    assert again.code == 0 and "3 of 3 portable files" in again.out, again.err
    malice.disguise(version, "tflite", {"model.tflite": malice.tflite_model()})
    lacking = bases.call(python, "run", version, "--input", "x.npy", "--output", "y.npy", cwd=tmp_path)
    assert lacking.code == 4 and "pip install 'target-model-compiler[tflite]'" in lacking.last_lines()[0]


def test_images_and_tensors_are_told_apart_by_dtype_or_by_the_flag(version: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    model = runtime.load(version)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "tensor.npy", images.astype(np.float32))
    out = tmp_path / "y.npy"

    def ran(name: str, *flags: str) -> Any:
        done = command("run", version, "--input", tmp_path / name, "--output", out, *flags)
        return np.load(out) if done.code == 0 else done

    assert np.array_equal(ran("images.npy"), model.predict(images))
    assert np.array_equal(ran("images.npy", "--images", "--batch", "4"), runtime.load(version, batch=4).predict(images))
    assert np.array_equal(ran("tensor.npy", "--raw"), model.run_batch(images.astype(np.float32))[0])
    wrong = ran("images.npy", "--raw")
    assert wrong.code == 2 and "is uint8" in wrong.last_lines()[1] and "float32 of shape" in wrong.last_lines()[0]
    wrong = ran("tensor.npy", "--images")
    assert wrong.code == 2 and "holds no images" in wrong.last_lines()[1]
    wrong = ran("tensor.npy", "--raw", "--images")
    assert wrong.code == 2 and "not allowed with" in wrong.err
    assert ran("tensor.npy", "--batch", "0").code == 2


def test_not_a_number_goes_through(version: Path) -> None:
    values = np.full((1, 8, 8, 3), np.nan, np.float32)
    assert np.isnan(runtime.load(version).run_batch(values)[0]).all()


@pytest.mark.real
def test_a_model_of_several_inputs_takes_an_archive_of_them_by_name(version: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b", "sum", "file")]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["file"])]
    graph = helper.make_graph(nodes, "g", value[:2], value[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    malice.disguise(version, "onnxruntime", {"model.onnx": model.SerializeToString()}, {"batch": 2})
    tensor = {"dtype": "float32", "shape": [1, 4], "layout": "NC"}
    signature = {
        k: [tensor | {"name": n} for n in names] for k, names in (("inputs", "ab"), ("outputs", ("sum", "file")))
    }
    malice.seal(version, lambda m: m.update(signature=signature))
    given, out = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(given, a=X, b=2 * X)
    assert command("run", version, "--input", given, "--output", out).code == 0
    with np.load(out) as found:
        assert np.array_equal(found["sum"], 3 * X) and np.array_equal(found["file"], -X)
    for arrays, said in (({"a": X}, "name them a, b"), ({"a": X, "b": X[:2]}, "the same for every input"),
                         ({"a": X, "b": X.astype(np.float64)}, "float32 of shape")):  # fmt: skip
        np.savez(given, **arrays)  # type: ignore[arg-type]
        done = command("run", version, "--input", given, "--output", out)
        assert done.code == 2 and said in done.last_lines()[0], done.err
    with pytest.raises(ConfigError, match="1 inputs were given"):
        runtime.load(version).run_batch(X)


PI4 = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n" + (
    "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
)


@pytest.mark.soak
def test_an_emulated_raspberry_pi_runs_the_artifact_with_the_same_answers(version: Path, tmp_path: Path) -> None:
    """ARM64_ROOT: an arm64 Python of Debian, unpacked (`dpkg -x`); its `site`: aarch64 numpy and ai-edge-litert."""
    root, emulator = os.environ.get("ARM64_ROOT", ""), shutil.which("qemu-aarch64-static")
    if not root or emulator is None or os.getuid() != 0:
        pytest.skip("needs root (a mount namespace), qemu-user-static, and ARM64_ROOT with an arm64 Python")
    malice.disguise(version, "tflite", {"model.tflite": malice.tflite_model()})
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "cpuinfo").write_text(PI4 * 4)
    python = next((Path(root) / "usr/bin").glob("python3.??"))
    line = (
        'mount --bind "$1" /proc/cpuinfo && shift && exec "$@"', "sh", tmp_path / "cpuinfo", emulator, "-L", root,
        python, "-m", "compiler", "run", version, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy",
    )  # fmt: skip
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", *map(str, line)], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "QEMU_CPU": "cortex-a72", "PYTHONPATH": f"{ROOT}:{Path(root) / 'site'}",
             "PYTHONHOME": f"{root}/usr"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), runtime.load(version).run_batch(X)[0])
