"""What compiles for a GPU, as far as it can be tried on a CPU: the same code on the CPU, and TensorRT by a mock."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_gpu import T4, MockCudaRuntime, MockNvidiaSmi, install_cuda
from mock_tensorrt import MockTensorRT
from test_tensorrt_api import write_onnx

from compiler import lower_precision
from compiler.backends import aot_inductor, tensorrt, torch_tensorrt
from compiler.errors import ConfigError, IntegrityError, MissingToolError, StepError
from compiler.runtime import bound, gpu, packaged, torch_gpu
from compiler.runtime.session import open_model
from compiler.stage import CACHES


def write_program(path: Path, *, open_batch: bool = False) -> Any:
    """A small network as a `.pt2`; returns the module."""
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4),
    ).eval()  # fmt: skip
    dynamic = {"input": {0: torch.export.Dim("batch", max=64)}} if open_batch else None
    example = torch.randn(3 if open_batch else 1, 3, 8, 8)
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), path)
    return module


@pytest.mark.real
@pytest.mark.parametrize(("written_open", "batch"), [(False, 1), (False, 4), (True, 2), (True, None), (False, None)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_program_is_exported_again_in_lower_precision_behind_float32(
    tmp_path: Path, precision: str, written_open: bool, batch: int | None
) -> None:
    import torch

    module = write_program(tmp_path / "program.pt2", open_batch=written_open)
    program, facts = lower_precision.export(tmp_path / "program.pt2", precision, batch, "cpu")
    assert facts["batch"] == batch and facts["inputs"][0]["shape"][1:] == [3, 8, 8]
    assert facts["outputs"][0]["shape"] == [batch or 1, 4]
    dtypes = {p.dtype for p in program.state_dict.values() if p.is_floating_point()}
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}
    images = torch.randn(batch or 5, 3, 8, 8)
    with torch.inference_mode():
        found, wanted = program.module()(images), module(images)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=0.05 if precision == "bf16" else 1e-5)
    assert precision == "fp32" or not torch.equal(found, wanted)


@pytest.mark.real
def test_an_open_batch_is_open_within_its_range_only(tmp_path: Path) -> None:
    """torch-tensorrt takes an engine's profile from it: 4096 images at once would be built for, and not fit."""
    write_program(tmp_path / "program.pt2", open_batch=True)
    program, facts = lower_precision.export(tmp_path / "program.pt2", "fp32", None, "cpu", (2, 8))
    (limits,) = program.range_constraints.values()
    assert (int(limits.lower), int(limits.upper)) == (2, 8)
    assert facts["batch"] is None and facts["inputs"][0]["shape"] == [2, 3, 8, 8]


@pytest.mark.real
@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_bf16_is_refused_before_it_is_compiled_where_the_gpu_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool
) -> None:
    import torch

    monkeypatch.setattr(torch_gpu, "need_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    torch_gpu.need_precision("fp16")
    if not refused:
        torch_gpu.need_precision("bf16")
        return
    with pytest.raises(StepError, match=r"bf16 needs compute capability 8\.0, and the Tesla T4 has 7\.5"):
        aot_inductor.Compile(recipe="bf16").convert({"model": tmp_path}, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing was read or written"


@pytest.mark.real
@pytest.mark.parametrize(("device", "capability", "plain"), [("cuda", (7, 5), True), ("cuda", (8, 0), False),
                                                             ("cpu", (7, 5), False)])  # fmt: skip
def test_triton_makes_no_products_where_its_compiler_would_end_the_process(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], plain: bool
) -> None:
    import torch._inductor.config as known

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    found = aot_inductor._how(device, max_autotune=True)
    assert found.pop("max_autotune") is True
    assert set(found) == ({"max_autotune_gemm_backends", "max_autotune_conv_backends"} if plain else set())
    assert all(hasattr(known, name) and value == "ATEN" for name, value in found.items())


@pytest.mark.real
def test_pytorchs_first_gpu_must_be_the_one_that_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    MockNvidiaSmi(tmp_path / "bin", monkeypatch, [T4])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    torch_gpu.need_gpu()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    with pytest.raises(ConfigError, match="CUDA would use a NVIDIA H200, while nvidia-smi lists a Tesla T4 first"):
        torch_gpu.need_gpu()
    gpu.describe.cache_clear()


def test_the_candidates_ask_for_cuda_graphs_where_the_runtime_records_them() -> None:
    import yaml

    folder = Path(__file__).parents[1] / "conf/candidate"
    asked = {file.stem for file in folder.glob("*.yaml")
             if (yaml.safe_load(file.read_text()).get("options") or {}).get("cuda_graph") is True}  # fmt: skip
    assert asked == {
        "tensorrt_fp16", "tensorrt_int8", "tensorrt_int8_fp16", "cuda_fp16", "cuda_bf16", "onnxruntime_cuda_fp16",
        "onnxruntime_cuda_fp32",
    }  # fmt: skip


@pytest.mark.parametrize(("precision", "batch"), [("int4", 1), ("fp16", 0), ("fp16", 5000)])
def test_settings_that_mean_nothing_are_refused(precision: str, batch: int) -> None:
    with pytest.raises(ConfigError):
        lower_precision.check(precision, batch)


@pytest.mark.real
def test_a_package_compiled_ahead_of_time_runs_in_a_session(tmp_path: Path) -> None:
    """On the CPU: what differs on a GPU is the device's name."""
    import torch

    module = write_program(tmp_path / "program.pt2")
    package = tmp_path / "model.pt2"
    facts = aot_inductor.compile_package(tmp_path / "program.pt2", package, "bf16", 2, "cpu")
    call = torch._inductor.aoti_load_package(str(package), run_single_threaded=True)
    session = torch_gpu.TorchGpuSession(call, facts["inputs"], ["logits"], device="cpu")
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    first = session.run([images])[0]
    kept = first.copy()
    session.run([np.zeros_like(images)])
    assert np.array_equal(first, kept), "outputs belong to the caller"
    with torch.inference_mode():
        assert np.allclose(first, module(torch.from_numpy(images)).numpy(), atol=0.05)
    assert session.signature()["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [2, 4]}]
    with pytest.raises(ConfigError, match="opened at"):
        session.run([images[:1]])


@pytest.mark.real
def test_the_partition_counts_engines_and_names_what_stays_with_pytorch() -> None:
    """On a graph shaped as torch-tensorrt leaves it: engines and remainders as submodules, single operators between."""
    import torch

    class Remainder(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.relu(x)

    root = torch.nn.Module()
    root.add_module("_run_on_acc_0", torch.nn.Identity())
    root.add_module("_run_on_gpu_1", torch.fx.symbolic_trace(Remainder()))
    root.add_module("_run_on_acc_2", torch.nn.Identity())
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for name in ("_run_on_acc_0", "_run_on_gpu_1", "_run_on_acc_2"):
        x = graph.call_module(name, (x,))
    graph.output(graph.call_function(torch.ops.aten.topk.default, (x, 1)))
    found = torch_tensorrt.partition(torch.fx.GraphModule(root, graph), 20)
    assert found["engines"] == 2 and found["operators_in_tensorrt"] == 18
    assert list(found["operators_in_torch"].values()) == [1, 1]
    assert any("relu" in name for name in found["operators_in_torch"])
    assert "aten.topk.default" in found["operators_in_torch"]


# -- on a mock T4 ----------------------------------------------------------------------------------


@pytest.fixture(params=["10", "11"])
def mock_t4(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    smi = MockNvidiaSmi(tmp_path / "bin", monkeypatch, [T4])
    cuda = install_cuda(monkeypatch, MockCudaRuntime())
    monkeypatch.setitem(sys.modules, "tensorrt", MockTensorRT(request.param, cuda))
    yield smi
    gpu.describe.cache_clear()


@pytest.mark.parametrize("recipe", ["fp16", "int8"])
def test_the_engine_step_makes_a_model_that_is_checked_like_any_other(
    mock_t4: Any, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHES, str(tmp_path / "caches"))
    before, out, samples = tmp_path / "before", tmp_path / "out", tmp_path / "samples"
    for folder in (before, out, samples):
        folder.mkdir()
    write_onnx(before / "model.onnx", recipe)
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3)).astype(np.uint8)
    np.save(samples / "calibration.npy", images)
    known = {"preprocessing": {"mean": [127.5] * 3, "std": [64.0] * 3}, "trained": True, "labels": list("abcd")}
    sides = open_model("onnxruntime", before / "model.onnx", {}).signature()
    entry = {**sides["inputs"][0], "layout": "NCHW"}
    (before / "signature.json").write_text(json.dumps({**sides, **known, "inputs": [entry]}))
    from compiler.runtime.preprocess import encode

    values = encode(images, {**sides, **known, "inputs": [entry]})
    session = open_model("onnxruntime", before / "model.onnx", {"batch": 6})
    np.save(before / "probe.npy", session.run([values])[0])
    stage = tensorrt.Engine(recipe=recipe, max_batch=4)
    assert stage.on_gpu and stage.on_host and stage.precision() == recipe
    facts = stage.run({"model": before, "samples": samples}, out)
    assert [f.parent.name for f in (tmp_path / "caches").rglob("*") if f.is_file()] == ["tensorrt"]
    assert facts["dynamic_batch"] is True and facts["fidelity"]["max_abs_error"] == 0
    assert facts["bound_to"]["gpu"] == "Tesla T4" and facts["timing_cache"] == "new"
    assert sorted(p.name for p in out.iterdir()) == [
        "model.engine", "model.engine.json", "probe.npy", "signature.json",
    ]  # fmt: skip
    assert len(list((tmp_path / "caches/tensorrt").iterdir())) == 1
    (before / "model.onnx").unlink()
    with pytest.raises(StepError, match="wrote no model"):
        stage.convert({"model": before}, out)


def test_a_packaged_program_is_bound_and_whole_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = MockNvidiaSmi(tmp_path / "bin", monkeypatch, [T4])
    monkeypatch.setattr(torch_gpu, "need_gpu", lambda: None)
    monkeypatch.setattr(packaged, "versions", lambda *names: dict.fromkeys(names, "2.14.1"))
    program, loaded = tmp_path / "model.pt2", list[Path]()
    program.write_bytes(b"native code")
    entry = {"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}
    facts = {"batch": 1, "inputs": [entry], "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 4]}]}
    bound.write(program, bound.here(torch="2.14.1"), facts)

    def attempt(**options: Any) -> None:
        packaged.open_packaged(program, options, ("torch",), lambda path: loaded.append(path))

    with pytest.raises(ConfigError, match="at batch 1 only"):
        attempt(batch=2)
    bound.write(program, bound.here(torch="2.14.1"), {**facts, "batch": None, "range": [2, 4]})
    for batch in (None, 1, 5):
        with pytest.raises(ConfigError, match="batches 2 to 4"):
            attempt(batch=batch)
    bound.write(program, bound.here(torch="2.14.1"), facts)
    smi.set(driver_version="570.1")
    with pytest.raises(MissingToolError, match=r"bound to driver 580.*here is driver 570\.1"):
        attempt()
    smi.set(driver_version="580.95.05")
    program.write_bytes(b"other code")
    with pytest.raises(IntegrityError, match="is not the file"):
        attempt()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu.describe.cache_clear()
    program.write_bytes(b"native code")
    with pytest.raises(MissingToolError, match="no NVIDIA GPU"):
        attempt()
    gpu.describe.cache_clear()
    assert not loaded


# -- the real libraries, where they are ------------------------------------------------------------


def _on_a_gpu() -> bool:
    return gpu.describe()["gpu"] is not None


@pytest.mark.real
@pytest.mark.parametrize("runtime", ["aot_inductor", "torch_tensorrt", "pytorch_cuda"])
def test_without_a_gpu_pytorchs_runtimes_say_so(tmp_path: Path, runtime: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(MissingToolError, match="no NVIDIA GPU"):
        open_model(runtime, tmp_path / "model.pt2", {"architecture": "resnet18"})


@pytest.mark.real
@pytest.mark.skipif(not _on_a_gpu(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_package_runs_on_the_gpu_it_was_compiled_for(tmp_path: Path, precision: str, graph: bool) -> None:
    import torch

    module = write_program(tmp_path / "program.pt2")
    stage = aot_inductor.Compile(recipe=precision, batch=2, max_autotune=False)
    facts = stage.convert({"model": tmp_path}, tmp_path)
    assert facts["bound_to"]["gpu"] == gpu.describe()["gpu"]
    session: Any = open_model("aot_inductor", tmp_path / "model.pt2", {"cuda_graph": graph})
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(images)).numpy()
    assert np.allclose(session.run([images])[0], wanted, atol=0.05)
    assert min(session.device_times([images], 3)["compute_ms"]) > 0


@pytest.mark.real
@pytest.mark.skipif(
    not (_on_a_gpu() and importlib.util.find_spec("torch_tensorrt")),
    reason="no NVIDIA GPU here, or torch-tensorrt is not installed",
)
def test_a_program_with_engines_runs_on_the_gpu(tmp_path: Path) -> None:
    import torch

    module = write_program(tmp_path / "program.pt2")
    facts = torch_tensorrt.Compile(min_block_size=1).convert({"model": tmp_path}, tmp_path)
    assert facts["engines"] >= 1
    session = open_model("torch_tensorrt", tmp_path / "model.ep", {"cuda_graph": True})
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(images)).numpy()
    assert np.allclose(session.run([images])[0], wanted, atol=0.05)


@pytest.mark.real
@pytest.mark.skipif(
    not importlib.util.find_spec("torch_tensorrt"),
    reason="torch-tensorrt is not installed here: pip install '.[torch-tensorrt]'",
)
def test_torch_tensorrt_takes_the_arguments_that_we_give() -> None:
    """Read from its source, since it imports with TensorRT's libraries alone."""
    spec = importlib.util.find_spec("torch_tensorrt")
    assert spec and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0])

    def arguments(file: str, function: str) -> set[str]:
        tree = ast.parse((source / file).read_text())
        found = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)}

    ours = ast.parse(Path(torch_tensorrt.__file__).read_text())
    calls = {ast.unparse(n.func): {k.arg for k in n.keywords} for n in ast.walk(ours) if isinstance(n, ast.Call)}
    assert calls["torch_tensorrt.dynamo.compile"] <= arguments("dynamo/_compiler.py", "compile")
    assert calls["torch_tensorrt.save"] <= arguments("_compile.py", "save")
    partitioner = (source / "dynamo/partitioning/_adjacency_partitioner.py").read_text()
    assert torch_tensorrt.REST in partitioner
    assert torch_tensorrt.ENGINE in (source / "dynamo/_compiler.py").read_text()
