"""TensorRT 10 and 11 through a mock that knows the names of each, and the real library where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_gpu import T4, MockCudaRuntime, MockNvidiaSmi, install_cuda
from mock_tensorrt import API, MockTensorRT
from tensorrt_names import describe

from compiler.errors import ConfigError, IntegrityError, MissingToolError, OutOfMemory, StepError
from compiler.runtime import bound, cuda, gpu
from compiler.runtime.session import open_model
from compiler.runtime.tensorrt_engine import Cache, build, read_layers
from compiler.runtime.tensorrt_versions import Versions
from compiler.runtime.visitor import NO_MEMORY

VERSIONS = ["10", "11"]
PROFILE = (1, 2, 4)

ABSENT = "TensorRT is not installed here: pip install '.[tensorrt]'"


class Machine:
    """The mocks of one test: a T4 with one TensorRT."""

    def __init__(self, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.smi = MockNvidiaSmi(folder / "bin", monkeypatch, [T4])
        self.cuda = install_cuda(monkeypatch, MockCudaRuntime())
        self.trt = MockTensorRT(version, self.cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    yield Machine(request.param, tmp_path, monkeypatch)
    gpu.describe.cache_clear()


@pytest.fixture
def onnx_file(tmp_path: Path) -> Any:
    """A function that writes a small network: Conv, GlobalAveragePool and Flatten, in fp32, fp16 or int8."""
    return lambda precision="fp16", **how: write_onnx(tmp_path / f"{precision}.onnx", precision, **how)


def write_onnx(path: Path, precision: str, batch: Any = "batch", extra: str = "") -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes, constants = [], []
    if precision == "int8":
        constants = [
            numpy_helper.from_array(np.float32(0.02), "scale"), numpy_helper.from_array(np.int8(0), "zero"),
            numpy_helper.from_array(np.round(weight * 20).clip(-127, 127).astype(np.int8), "w8"),
            numpy_helper.from_array(np.full(4, 0.05, np.float32), "wscale"),
            numpy_helper.from_array(np.zeros(4, np.int8), "wzero"),
        ]  # fmt: skip
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"], "dequantize"),
            helper.make_node("DequantizeLinear", ["w8", "wscale", "wzero"], ["w"], "weights", axis=0),
        ]
    elif precision == "fp16":
        constants = [numpy_helper.from_array(weight.astype(np.float16), "w")]
        nodes = [helper.make_node("Cast", ["x"], ["a"], "half", to=TensorProto.FLOAT16)]
    else:
        constants = [numpy_helper.from_array(weight, "w")]
        nodes = [helper.make_node("Identity", ["x"], ["a"], "same")]
    nodes.append(helper.make_node("Conv", ["a", "w"], ["c"], "conv", pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"))
    last = "p"
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", ["p"], ["f"], "float", to=TensorProto.FLOAT))
        last = "f"
    nodes.append(helper.make_node("Flatten", [last], ["logits"], "flatten"))
    if extra:
        nodes.append(helper.make_node(extra, ["logits"], ["places"], "odd"))
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])], constants,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def made(onnx: Path, out: Path, **how: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return build(onnx, out, **{"precision": "fp16", "profile": PROFILE, **how})


# -- the list of names -----------------------------------------------------------------------------


def test_the_mock_refuses_names_and_arguments_of_the_other_version() -> None:
    ten, eleven = (MockTensorRT(v, MockCudaRuntime()) for v in VERSIONS)
    assert {"FP16", "INT8"} <= set(ten.BuilderFlag.__members__)
    for enum, name in (("BuilderFlag", "FP16"), ("BuilderFlag", "INT8")):
        with pytest.raises(AttributeError):
            getattr(getattr(eleven, enum), name)
    assert "int8_calibrator" in API["10"]["classes"]["IBuilderConfig"]
    config = eleven.Builder(None).create_builder_config()
    for name in ("int8_calibrator", "set_calibration_profile"):
        with pytest.raises(AttributeError):
            getattr(config, name)
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(TypeError):
        config.set_timing_cache(config.create_timing_cache(b""))
    with pytest.raises(AttributeError):
        ten.Builder(None).build_engine(None)


def test_what_we_use_beyond_the_mock_is_in_both_lists() -> None:
    """`device_memory_size` is the one name that only 10 has and we still know."""
    ten, eleven = API["10"]["classes"], API["11"]["classes"]
    assert "device_memory_size" in ten["ICudaEngine"] and "device_memory_size" not in eleven["ICudaEngine"]
    assert "device_memory_size_v2" in ten["ICudaEngine"] and "device_memory_size_v2" in eleven["ICudaEngine"]
    assert "execute_v2" in ten["IExecutionContext"] and "execute_async_v2" not in ten["IExecutionContext"]


@pytest.mark.parametrize("version", ["9.3.0", "12.0.1"])
def test_other_versions_are_refused_by_name(version: str) -> None:
    module = MockTensorRT("10", MockCudaRuntime())
    module.__version__ = version
    with pytest.raises(MissingToolError, match=version):
        Versions(module)


# -- engines by the mock ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp32"])
@pytest.mark.parametrize("graph", [False, True])
def test_an_engine_is_built_loaded_and_run(
    machine: Machine, onnx_file: Any, tmp_path: Path, precision: str, graph: bool
) -> None:
    onnx = onnx_file(precision)
    facts = made(onnx, tmp_path / "out", precision=precision, optimization_level=4, workspace_mb=256)
    assert facts["tensor_cores"] is (precision != "fp32") and facts["layers_by_precision"][precision] >= 1
    assert facts["bound_to"] == {
        "gpu": "Tesla T4", "compute_capability": "7.5", "driver": "580.95.05", "tensorrt": machine.trt.__version__,
    }  # fmt: skip
    strong = 1 << int(machine.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert machine.trt._flags == [strong if machine.trt.__version__.startswith("10") else 0]
    record = json.loads((tmp_path / "out/model.engine.json").read_text())
    assert {"conv", "flatten"} <= {layer["name"] for layer in record["layers"]}
    assert record["cuda"] == "13.5" and record["profile"] == {"min": 1, "opt": 2, "max": 4}
    engine = tmp_path / "out/model.engine"
    reference = open_model("onnxruntime", onnx, {"batch": 3})
    session: Any = open_model("tensorrt", engine, {"batch": 3, "cuda_graph": graph, "threads": 1})
    assert session.signature() == reference.signature() and session.tensor_cores() is (precision != "fp32")
    random = np.random.default_rng(1)
    for _ in range(2):
        images = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
        (found,) = session.run([images])
        assert np.array_equal(found, reference.run([images])[0])
    times = session.device_times([images], 5)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys(
        ("copy_in_ms", "compute_ms", "copy_out_ms"), 5
    )
    assert all(value >= 0 for values in times.values() for value in values)
    assert bool(machine.cuda.launched) is graph
    del session
    assert not machine.cuda.blocks, "memory of a session that is gone is given back"


def test_batches_outside_the_profile_and_wrong_inputs_are_refused_like_elsewhere(
    machine: Machine, onnx_file: Any, tmp_path: Path
) -> None:
    made(onnx_file(), tmp_path / "out")
    engine = tmp_path / "out/model.engine"
    with pytest.raises(ConfigError, match="batches 1 to 4, not at 5"):
        open_model("tensorrt", engine, {"batch": 5})
    session = open_model("tensorrt", engine, {})
    assert session.signature()["inputs"][0]["shape"] == [1, 3, 8, 8]
    with pytest.raises(ConfigError, match="opened at"):
        session.run([np.zeros((2, 3, 8, 8), np.float32)])
    with pytest.raises(ConfigError, match="float64"):
        session.run([np.zeros((1, 3, 8, 8), np.float64)])
    made(onnx_file("fp32", batch=2), tmp_path / "fixed", precision="fp32")
    with pytest.raises(ConfigError, match="at batch 2 only"):
        open_model("tensorrt", tmp_path / "fixed/model.engine", {"batch": 3})


def test_precision_that_the_onnx_does_not_hold_is_refused(machine: Machine, onnx_file: Any, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"holds nothing in int8.*fp16"):
        made(onnx_file("fp16"), tmp_path / "out", precision="int8")


def test_operators_that_tensorrt_refuses_are_named(machine: Machine, onnx_file: Any, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="NonZero 'odd': NonZero has no place"):
        made(onnx_file("fp16", extra="NonZero"), tmp_path / "out")
    assert not (tmp_path / "out/model.engine").exists()


def test_a_build_that_runs_out_of_memory_says_so(machine: Machine, onnx_file: Any, tmp_path: Path) -> None:
    machine.trt._full = True
    with pytest.raises(StepError, match="OutOfMemory") as caught:
        made(onnx_file(), tmp_path / "out")
    assert "max_batch" in caught.value.fix


@pytest.mark.parametrize(
    ("how", "what"),
    [({"profile": (2, 1, 4)}, "profile"), ({"optimization_level": 6}, "optimization_level"),
     ({"workspace_mb": 0}, "workspace_mb"), ({"precision": "fp8"}, "precision")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(
    machine: Machine, onnx_file: Any, tmp_path: Path, how: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        made(onnx_file(), tmp_path / "out", **how)


def test_the_timing_cache_is_this_machines_or_refused(machine: Machine, onnx_file: Any, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    assert made(onnx_file(), tmp_path / "a", timing_cache=caches)["timing_cache"] == "new"
    (file,) = caches.iterdir()
    for word in ("Tesla_T4", "7.5", "580.95.05", machine.trt.__version__):
        assert word in file.name
    assert made(onnx_file(), tmp_path / "b", timing_cache=caches)["timing_cache"] == "reused"
    head, _, data = file.read_bytes().partition(b"\n")
    file.write_bytes(head + b"\n" + data + b"x")
    with pytest.raises(IntegrityError, match="damaged"):
        made(onnx_file(), tmp_path / "c", timing_cache=caches)
    other = {**json.loads(head)["bound_to"], "driver": "535.1"}
    Cache(caches, other).write(data)
    Cache(caches, other).path.replace(file)
    with pytest.raises(IntegrityError, match=r"it is of .*535\.1"):
        made(onnx_file(), tmp_path / "d", timing_cache=caches)
    Cache(caches, json.loads(head)["bound_to"]).write(b"not what TensorRT wrote")
    with pytest.raises(IntegrityError, match="TensorRT refuses it"):
        made(onnx_file(), tmp_path / "e", timing_cache=caches)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("name", "Tesla P4", "GPU"), ("driver_version", "570.1", "driver"), ("compute_cap", "8.6", "compute capability")],
)
def test_an_engine_of_another_gpu_or_driver_is_refused_before_it_is_read(
    machine: Machine, onnx_file: Any, tmp_path: Path, field: str, value: str, shown: str
) -> None:
    made(onnx_file(), tmp_path / "out")
    loaded = len(machine.trt._loaded)
    machine.smi.set(**{field: value})
    with pytest.raises(MissingToolError, match=f"bound to {shown} .*here is {shown} {value}"):
        open_model("tensorrt", tmp_path / "out/model.engine", {})
    assert len(machine.trt._loaded) == loaded


def test_an_engine_of_another_tensorrt_or_a_changed_one_is_refused_before_it_is_read(
    machine: Machine, onnx_file: Any, tmp_path: Path
) -> None:
    made(onnx_file(), tmp_path / "out")
    engine = tmp_path / "out/model.engine"
    loaded = len(machine.trt._loaded)
    before, machine.trt.__version__ = machine.trt.__version__, "10.1.0"
    with pytest.raises(MissingToolError, match=rf"TensorRT {before}; here is TensorRT 10\.1\.0"):
        open_model("tensorrt", engine, {})
    machine.trt.__version__ = before
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="is not the file"):
        open_model("tensorrt", engine, {})
    bound.sidecar(engine).unlink()
    with pytest.raises(IntegrityError, match="missing or damaged"):
        open_model("tensorrt", engine, {})
    assert len(machine.trt._loaded) == loaded


def test_cudas_first_gpu_must_be_the_one_that_is_described(machine: Machine, onnx_file: Any, tmp_path: Path) -> None:
    machine.cuda.device_name = "Tesla P4"
    with pytest.raises(ConfigError, match="CUDA would use a Tesla P4"):
        made(onnx_file(), tmp_path / "out")


def test_a_full_gpu_is_recognised(machine: Machine) -> None:
    machine.cuda.free = 4096
    with pytest.raises(OutOfMemory, match="cudaErrorMemoryAllocation") as caught:
        cuda.Buffer([4097], np.uint8)
    assert any(word in f"{type(caught.value).__name__}: {caught.value.what}" for word in NO_MEMORY)
    with pytest.raises(StepError, match="cudaErrorInvalidValue"):
        cuda.call("cudaMemcpyAsync", 1, 2, 3, machine.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, 0)


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", True),
        ("Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", True),
        ("Error Code 3: API Usage Error", False),
    ],
)
def test_a_context_that_does_not_fit_is_out_of_memory_to_a_sweep(
    machine: Machine, onnx_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, full: bool
) -> None:
    """TensorRT returns no context, and only its log says why."""
    made(onnx_file(), tmp_path / "out")

    def none(trt: Any, *_: Any) -> list[str]:
        trt.log.lines.append((1, said))
        return ["no execution context"]

    monkeypatch.setattr(Versions, "context", none)
    with pytest.raises(StepError, match="TensorRT refuses no execution context") as caught:
        open_model("tensorrt", tmp_path / "out/model.engine", {"batch": 4})
    assert isinstance(caught.value, OutOfMemory) is full


@pytest.mark.parametrize(
    ("output", "precision"),
    [
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Half"}, "fp16"),
        ({"Format": "Channel major INT8 format", "DataType": "Int8"}, "int8"),
        ({"Format": "Row major linear", "DataType": "BFloat16"}, "bf16"),
        ({"Format": "Row major linear FP32 format (kLINEAR)"}, "fp32"),
        ({}, "other"),
    ],
)
def test_a_layers_type_is_read_as_10_and_as_11_write_it(output: dict[str, str], precision: str) -> None:
    text = json.dumps({"Layers": [{"Name": "conv", "Outputs": [{"Name": "y", **output}]}]})
    assert read_layers(text)[0]["precision"] == precision


def test_the_inspectors_answer_without_detail_is_names_alone() -> None:
    assert read_layers('{"Layers": ["conv + relu"]}') == [
        {"name": "conv + relu", "type": "", "precision": "unknown", "tactic": ""}
    ]
    with pytest.raises(StepError):
        read_layers("no JSON")


# -- the real libraries, where they are ------------------------------------------------------------


def _lacking(*modules: str) -> str:
    """What lacks here to run real tests, '' if nothing does."""
    absent = [name for name in modules if not importlib.util.find_spec(name.partition(".")[0])]
    if absent:
        return f"not installed here: {', '.join(absent)}; pip install '.[tensorrt]'"
    if "tensorrt" in modules:
        try:
            importlib.import_module("tensorrt")
        except Exception as error:
            return f"TensorRT cannot be imported here: {error}"
    return "" if gpu.describe()["gpu"] else "no NVIDIA GPU here"


@pytest.mark.real
@pytest.mark.skipif(not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_bindings"))), reason=ABSENT)
def test_the_list_of_names_is_the_installed_versions() -> None:
    """What the list says of a class or an argument is true of the library; newer names in it are no matter."""
    try:
        found = describe(importlib.import_module("tensorrt_bindings"))
    except ImportError as error:
        pytest.skip(f"TensorRT's libraries cannot be loaded here: {error}")
    wanted = API[found["version"].partition(".")[0]]
    for name, members in wanted["classes"].items():
        for member, signatures in members.items():
            assert found["classes"][name].get(member) == signatures, f"{name}.{member}"
    for name, members in wanted["enums"].items():
        assert set(members) <= set(found["enums"][name]), name


@pytest.mark.real
@pytest.mark.skipif(not importlib.util.find_spec("cuda"), reason="cuda-bindings is not installed here")
def test_the_mock_of_cuda_takes_the_real_arguments() -> None:
    """By the first line of the real functions' docstrings."""
    import inspect

    from cuda.bindings import runtime

    for name in (n for n in dir(MockCudaRuntime) if n.startswith("cuda") and n[4].isupper()):
        mock = getattr(MockCudaRuntime, name)
        if not inspect.isfunction(mock):
            continue
        said = getattr(runtime, name).__doc__.splitlines()[0].partition("(")[2].partition(")")[0]
        assert len([p for p in said.split(",") if p.strip()]) == len(inspect.signature(mock).parameters) - 1, name


@pytest.mark.real
@pytest.mark.skipif(
    not importlib.util.find_spec("cuda") or gpu.describe()["gpu"] is not None,
    reason="cuda-bindings is not installed here, or there is a GPU",
)
def test_without_a_driver_cudas_own_error_is_named() -> None:
    with pytest.raises(StepError, match="cudaMalloc failed: cudaError"):
        cuda.Buffer([1], np.float32)


@pytest.mark.real
@pytest.mark.skipif(bool(_lacking("tensorrt", "cuda")), reason=_lacking("tensorrt", "cuda"))
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_real_engine_computes_what_the_onnx_computes(tmp_path: Path, onnx_file: Any, precision: str) -> None:
    onnx = onnx_file(precision)
    facts = made(onnx, tmp_path / "out", precision=precision)
    assert facts["bound_to"]["gpu"] == gpu.describe()["gpu"]
    session: Any = open_model("tensorrt", tmp_path / "out/model.engine", {"batch": 3, "cuda_graph": True})
    images = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    wanted = open_model("onnxruntime", onnx, {"batch": 3}).run([images])[0]
    assert np.allclose(session.run([images])[0], wanted, atol=0.05)
    assert min(session.device_times([images], 3)["compute_ms"]) > 0
