"""GPUs by a mock nvidia-smi and mock runtimes: what is said of them, how they are measured, when nothing counts."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from mock_gpu import T4, MockCudaRuntime, MockNvidiaSmi, install_cuda

from compiler import bundle as bundles
from compiler.errors import ConfigError, MissingToolError, OutOfMemory, StepError
from compiler.runtime import gpu, host, rounds, sweep
from compiler.runtime.device import DeviceSession, on_tensor_cores
from compiler.runtime.measure import measure, on_gpu
from compiler.runtime.session import open_model
from compiler.runtime.visitor import Visitor

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 2, 2, 3], "layout": "NHWC"}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 4]}],
    "preprocessing": {"mean": [0.0] * 3, "std": [1.0] * 3},
}
QUICK = {"seed": 0, "threads": 1, "rounds": 2, "max_rounds": 2, "min_calls": 20, "min_seconds": 0.0}
MOCK, SPINNER = "tests.runtimes.mock_gpu_runtime", "tests.runtimes.spinner"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    yield MockNvidiaSmi(tmp_path / "bin", monkeypatch, [T4])
    gpu.describe.cache_clear()


@pytest.fixture
def make_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def make(**candidates: tuple[str, dict[str, Any]]) -> Path:
        folder, file = tmp_path / "bundle", tmp_path / "model.bin"
        folder.mkdir()
        file.write_bytes(b"model")
        entries = [
            bundles.Entry(name, runtime, [file], "model.bin", options, SIGNATURE)
            for name, (runtime, options) in candidates.items()
        ]
        wanted = {"objective": "latency", "latency_p95_ms": None}
        bundles.write(folder, entries, np.zeros((4, 2, 2, 3), np.uint8), QUICK, next(iter(candidates)), wanted)
        (tmp_path / "out").mkdir()
        return folder

    return make


# -- what nvidia-smi says --------------------------------------------------------------------------


def test_the_gpu_is_described_and_part_of_the_fingerprint(smi: MockNvidiaSmi) -> None:
    found = {"gpu": "Tesla T4", "driver": "580.95.05", "gpu_compute_capability": "7.5", "gpu_memory_mb": 15360}
    assert gpu.describe() == found
    assert found.items() <= host.describe().items()
    before = host.describe()["fingerprint"]
    smi.set(driver_version="570.1")
    assert host.describe()["fingerprint"] != before


@pytest.mark.parametrize(
    "said", [b"\xff\xfe, 1, 7.5, 2", b"a" * 200_000, b"[N/A], [N/A], [N/A], [N/A]", b", , , ", b"\0"]
)
def test_rubbish_of_the_driver_is_no_gpu_and_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    (tmp_path / "said").write_bytes(said)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n# MOCK\ncat '{tmp_path}/said'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpu.describe.cache_clear()
    found = gpu.describe()["gpu"]
    gpu.describe.cache_clear()
    assert found == ("\ufffd\ufffd" if said[:1] == b"\xff" else None)
    assert gpu.throttling() == () and gpu.free_mb() is None


@pytest.mark.parametrize("visible", ["", " ", "-1", "-1,0", ",0"])
def test_what_cuda_may_not_see_is_no_gpu(smi: MockNvidiaSmi, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu.describe.cache_clear()
    assert gpu.describe()["gpu"] is None


@pytest.mark.parametrize(
    ("model", "capability", "fits"),
    [("T4", "7.5", True), ("^Tesla T4$", None, True), ("T4", "8.6", False), ("A10", "7.5", False), (None, "7.5", True)],
)
def test_a_target_is_its_gpu_and_compute_capability(
    smi: MockNvidiaSmi, model: str | None, capability: str | None, fits: bool
) -> None:
    here = host.describe()
    cpu = here["cpu_model"] if model is None else None
    cpu = None if cpu is None else cpu.replace("(", ".").replace(")", ".").replace("+", ".")
    assert host.is_target(here, here["arch"], [], 1, 1, cpu, False, model, capability) is fits


def test_another_gpu_is_never_the_target(smi: MockNvidiaSmi) -> None:
    smi.set(name="NVIDIA A10", compute_cap="8.6")
    here = host.describe()
    assert not host.is_target(here, here["arch"], [], 1, 1, None, False, "T4", "7.5")
    assert not host.is_target({**here, "gpu": None}, here["arch"], [], 1, 1, None, False, "T4", None)


@pytest.mark.parametrize(("visible", "name"), [("1", "NVIDIA A10"), ("1,0", "NVIDIA A10"), ("0", "Tesla T4")])
def test_the_first_visible_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, name: str) -> None:
    MockNvidiaSmi(tmp_path / "bin", monkeypatch, [T4, {**T4, "name": "NVIDIA A10", "compute_cap": "8.6"}])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu.describe.cache_clear()
    assert gpu.describe()["gpu"] == name
    gpu.describe.cache_clear()


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_no_visible_gpu_is_none(smi: MockNvidiaSmi, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu.describe.cache_clear()
    assert gpu.describe() == {"gpu": None, "driver": None} and gpu.throttling() == () and gpu.state() == {}
    assert gpu.free_mb() is None


def test_what_lacks_is_named_with_the_line_that_installs_it(
    smi: MockNvidiaSmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"tensorrt", "numpy"}
    monkeypatch.setattr(gpu, "_installed", installed.__contains__)
    assert [name for name, _ in gpu.lacking("tensorrt")] == ["cuda-bindings"]
    assert gpu.lacking("tensorrt")[0][1] == "pip install 'target-model-compiler[tensorrt]'"
    assert [name for name, _ in gpu.lacking("onnxruntime_cuda")] == ["onnxruntime-gpu", "cuda-bindings"]
    assert gpu.lacking("null") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    gpu.describe.cache_clear()
    assert gpu.lacking("tensorrt")[0][0] == "an NVIDIA GPU with its driver"


@pytest.mark.parametrize("prefix", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_heat_and_power_brake_are_throttling_in_old_and_new_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    told = {name.replace("clocks_event_reasons", prefix): value for name, value in T4.items()}
    smi = MockNvidiaSmi(tmp_path / "bin", monkeypatch, [told])
    assert gpu.throttling() == (), "the power limit is no reason"
    smi.set(**{f"{prefix}_sw_thermal_slowdown": "Active", f"{prefix}_hw_power_brake_slowdown": "Active"})
    assert gpu.throttling() == ("sw_thermal_slowdown", "hw_power_brake_slowdown")


def test_state_and_memory_are_read_and_what_is_not_told_is_left_out(smi: MockNvidiaSmi) -> None:
    assert gpu.state() == {"utilization": 87.0, "gpu_mhz": 1590.0, "temperature_c": 61.0}
    smi.set(utilization_gpu="[N/A]")
    assert gpu.state() == {"gpu_mhz": 1590.0, "temperature_c": 61.0}
    assert gpu.free_mb() == 14734.0 and gpu.process_mb(42) is None
    smi.apps = [{"pid": 42, "used_memory": 212}, {"pid": 7, "used_memory": 100}]
    smi.save()
    assert gpu.process_mb(42) == 212.0 and gpu.process_mb(43) is None


# -- Tensor Cores ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "ran"),
    [
        (["turing_fp16_s1688cudnn_fp16_128x64_ldg8_relu_f2f_exp_medium_nhwc_tn_v1"], True),
        (["sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize64x32x64_stage5_warpsize2x2x1_"
          "g1_tensor16x8x16"], True),
        (["turing_h1688gemm_128x64_ldg8_stages_32x1_nn"], True),
        (["void cutlass::Kernel2<cutlass_75_tensorop_f16_s1688gemm_f16_128x64_32x2_nn_align8>"], True),
        (["trt_turing_interleaved_imma_convolution_int8_nt_v1"], True),
        (["sm80_xmma_fprop_implicit_gemm_indexed_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize64x64x8_simt_v1"], False),
        (["volta_sgemm_128x64_nn", "void at::native::elementwise_kernel<4>"], False),
        (["volta_scudnn_128x64_relu_xregs_large_nn_v1", "__myl_FcAdd_myl0_1"], None),
        (["triton_poi_fused_add_0"], None),
        (["void gemmASM_kernel", "volta_sgemm_128x64_nn"], False),
        (["turing_s1688gemm_fp16_128x64_ldg8_f2f_tn"], True),
        ([""], None),
    ],
)  # fmt: skip
def test_kernels_names_tell_whether_tensor_cores_ran(names: list[str], ran: bool | None) -> None:
    assert on_tensor_cores(names) is ran


# -- measuring -------------------------------------------------------------------------------------


def test_a_gpus_figures_are_apart_and_a_cpus_are_as_before(
    make_bundle: Any, tmp_path: Path, smi: MockNvidiaSmi
) -> None:
    bundle = make_bundle(cpu=(SPINNER, {"us": 200}), device=(MOCK, {"us": 100, "cores": True}))
    result = measure(bundle, tmp_path / "out")
    assert "gpu" not in result["candidates"]["cpu"]
    found = result["candidates"]["device"]["gpu"]
    assert (found["copy_in_ms"], found["compute_ms"], found["copy_out_ms"]) == (0.25, 2.0, 0.125)
    assert (found["utilization"], found["gpu_mhz"], found["temperature_c"]) == (87.0, 1590.0, 61.0)
    assert found["tensor_cores"] is True and found["throttling"] == [] and found["memory_mb"] is None
    assert all("device" not in facts for seen in result["facts"] for facts in seen.values())
    assert all("gpu_memory_mb" not in seen["cpu"] for seen in result["facts"])


def test_without_nvidia_smi_what_it_would_tell_is_not_known(make_bundle: Any, tmp_path: Path) -> None:
    result = measure(make_bundle(device=(MOCK, {})), tmp_path / "out")
    found = result["candidates"]["device"]["gpu"]
    assert found["utilization"] is None and found["tensor_cores"] is None and found["compute_ms"] == 2.0


def test_bursts_of_a_throttled_gpu_are_void(make_bundle: Any, tmp_path: Path, smi: MockNvidiaSmi) -> None:
    bundle = make_bundle(cpu=(SPINNER, {}), device=(MOCK, {}))
    smi.set(clocks_event_reasons_sw_thermal_slowdown="Active")
    for name, void in (("device", True), ("cpu", False)):
        with Visitor(bundle, name, 1) as visitor:
            visitor.ready()
            visitor.ask("open")
            assert visitor.ask("burst", calls=3, seconds=0.0)["void"] is void
    with pytest.raises(StepError, match="slowed itself down"):
        measure(bundle, tmp_path / "out")


def test_a_process_memory_of_the_gpu_is_told_by_the_driver(make_bundle: Any, smi: MockNvidiaSmi) -> None:
    with Visitor(make_bundle(device=(MOCK, {})), "device", 1) as visitor:
        visitor.ready()
        visitor.ask("open")
        smi.apps = [{"pid": visitor._process.pid, "used_memory": 321}]
        smi.save()
        assert visitor.ask("memory")["gpu_memory_mb"] == 321.0


def test_rounds_that_disagree_about_tensor_cores_do_not_know() -> None:
    one: dict[str, Any] = {
        "copy_in_ms": [1.0], "compute_ms": [2.0], "copy_out_ms": [3.0], "samples": [], "tensor_cores": True,
        "throttling": ["hw_thermal_slowdown"], "gpu_memory_mb": 5.0,
    }  # fmt: skip
    found = on_gpu([one, {**one, "tensor_cores": False, "gpu_memory_mb": 7.0, "throttling": []}])
    assert (
        found["tensor_cores"] is None and found["memory_mb"] == 7.0 and found["throttling"] == ["hw_thermal_slowdown"]
    )


@pytest.mark.parametrize(
    "line",
    [
        "compiler.errors.OutOfMemory: cudaMalloc failed: cudaErrorMemoryAllocation (out of memory)",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException: CUDA failure 2: out of memory ; GPU=0",
    ],
)
def test_a_full_gpu_is_out_of_memory_to_who_asks(make_bundle: Any, line: str) -> None:
    with Visitor(make_bundle(device=(SPINNER, {"fail": line})), "device", 1) as visitor:
        visitor.ready()
        with pytest.raises(OutOfMemory):
            visitor.ask("open")


def test_candidates_that_do_not_fit_on_the_gpu_together_are_measured_alone(
    make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: MockNvidiaSmi
) -> None:
    monkeypatch.setattr(rounds, "ON_GPU", frozenset({MOCK}))
    full = {"crowded": str(tmp_path / "was-full")}
    result = measure(make_bundle(device=(MOCK, full), cpu=(SPINNER, {})), tmp_path / "out")
    assert (tmp_path / "was-full").exists() and not result["failed"]
    assert result["candidates"]["device"]["gpu"]["compute_ms"] == 2.0


def test_a_sweep_ends_where_the_gpus_memory_does(
    make_bundle: Any, monkeypatch: pytest.MonkeyPatch, smi: MockNvidiaSmi
) -> None:
    monkeypatch.setattr(sweep, "ON_GPU", frozenset({MOCK}))
    bundle = make_bundle(device=(MOCK, {"us": 1, "gpu_mb": 100, "gpu_free_mb": 650}), cpu=(SPINNER, {"us": 1}))
    protocol = {
        "max_batch": 16, "seconds": 0.02, "memory_limit_mb": 3000, "latency_p95_ms": None,
        "threads": [1], "streams": [1],
    }  # fmt: skip
    curves = sweep.sweep(bundle, protocol)["curves"]
    assert curves["device"]["gpu_memory_limit_mb"] == round(0.8 * 14734, 1)
    assert [p["status"] for p in curves["device"]["points"]][-1] == "out_of_memory"
    assert curves["device"]["largest_batch"] == {"batch": 6, "threads": 1, "exhausted": True}
    assert "gpu_memory_limit_mb" not in curves["cpu"] and curves["cpu"]["points"][-1]["status"] == "ok"


def test_a_point_above_the_share_of_the_gpus_memory_is_out_of_memory(
    make_bundle: Any, monkeypatch: pytest.MonkeyPatch, smi: MockNvidiaSmi
) -> None:
    bundle = make_bundle(device=(MOCK, {}))
    place = {"batch": 1, "threads": 1, "streams": 1}

    def work(visitor: Visitor) -> dict[str, Any]:
        smi.apps = [{"pid": visitor._process.pid, "used_memory": 500}]
        smi.save()
        return {}

    quiet = sweep._visit(bundle, "device", place, sweep.Limit(600.0, of_gpu=True), work)
    assert quiet["status"] == "ok" and quiet["gpu_memory_mb"] == 500
    full = sweep._visit(bundle, "device", place, sweep.Limit(400.0, of_gpu=True), work)
    assert full["status"] == "out_of_memory" and "500 MB of the GPU" in full["reason"]


# -- ONNX Runtime's CUDA provider ------------------------------------------------------------------


class MockCudaOnnxruntime(types.ModuleType):
    """ONNX Runtime with a mock CUDA provider: its CPU provider, given the mock GPU's memory."""

    def __init__(self, available: bool = True, loads: bool = True) -> None:
        super().__init__("onnxruntime")
        import onnxruntime

        self._real, self._available, self.loads = onnxruntime, available, loads
        self.preloaded, self.how = False, dict[str, str]()
        self.left, self.refused = set[str](), ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"] * self._available + ["CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded = True

    def InferenceSession(self, path: str, options: Any, providers: Any) -> Any:
        ((name, self.how),) = providers
        assert name == "CUDAExecutionProvider"
        if self.refused:
            raise RuntimeError(self.refused)
        session = self._real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = ["CUDAExecutionProvider", "CPUExecutionProvider"] if self.loads else ["CPUExecutionProvider"]
        return MockCudaInference(session, found, self.left)


class MockCudaInference:
    def __init__(self, session: Any, providers: list[str], left: set[str]) -> None:
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self._left = left
        self.get_providers = lambda: providers
        self._session = session

    def get_provider_graph_assignment_info(self) -> Any:
        """The library's own answer, which wants its session option; all but `left` is taken as the GPU's."""
        for part in self._session.get_provider_graph_assignment_info():
            for node in part.get_nodes():
                name = part.ep_name if node.op_type in self._left else "CUDAExecutionProvider"
                yield types.SimpleNamespace(ep_name=name, get_nodes=lambda node=node: [node])

    def io_binding(self) -> Any:
        inner = self._session.io_binding()

        def bound(function: Any) -> Any:
            def bind(name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
                assert device == "cuda" and number == 0
                function(name, "cpu", 0, kind, shape, address)

            return bind

        return types.SimpleNamespace(
            bind_input=bound(inner.bind_input), bind_output=bound(inner.bind_output), inner=inner
        )

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._session.run_with_iobinding(binding.inner, options)


@pytest.mark.parametrize("graph", [False, True])
def test_onnxruntime_on_a_gpu_uses_its_cuda_provider_and_our_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    from test_tensorrt_api import write_onnx

    onnx = write_onnx(tmp_path / "model.onnx", "fp32")
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    wanted = open_model("onnxruntime", onnx, {"batch": 3})
    expected = wanted.run([images])[0]
    install_cuda(monkeypatch, MockCudaRuntime())
    mock = MockCudaOnnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", mock)
    session: Any = open_model("onnxruntime_cuda", onnx, {"batch": 3, "cuda_graph": graph})
    assert np.array_equal(session.run([images])[0], expected) and session.signature() == wanted.signature()
    assert mock.preloaded and mock.how["use_tf32"] == "0" and mock.how["enable_cuda_graph"] == str(int(graph))
    assert len(session.device_times([images], 3)["compute_ms"]) == 3
    with pytest.raises(ConfigError, match="opened at"):
        session.run([images[:1]])
    fixed = write_onnx(tmp_path / "fixed.onnx", "fp32", batch=1)
    with pytest.raises(ConfigError, match="at batch 1 only"):
        open_model("onnxruntime_cuda", fixed, {"batch": 2})


@pytest.mark.parametrize(("available", "what"), [(False, "has no CUDA provider"), (True, "does not load here")])
def test_onnxruntime_never_falls_back_to_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: bool, what: str
) -> None:
    from test_tensorrt_api import write_onnx

    onnx = write_onnx(tmp_path / "model.onnx", "fp32")
    install_cuda(monkeypatch, MockCudaRuntime())
    monkeypatch.setitem(sys.modules, "onnxruntime", MockCudaOnnxruntime(available, loads=False))
    with pytest.raises(MissingToolError, match=what):
        open_model("onnxruntime_cuda", onnx, {})


def test_operators_that_onnxruntime_leaves_to_the_cpu_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of providers holds the CPU's always; without this a part of the network would run there unseen."""
    from test_tensorrt_api import write_onnx

    onnx = write_onnx(tmp_path / "model.onnx", "fp32")
    install_cuda(monkeypatch, MockCudaRuntime())
    mock = MockCudaOnnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", mock)
    mock.left = {"Conv", "FusedConv", "Reshape"}
    with pytest.raises(StepError, match=r"does not take every operator of model\.onnx: Conv would run on the CPU"):
        open_model("onnxruntime_cuda", onnx, {})
    mock.left = {"Reshape"}
    open_model("onnxruntime_cuda", onnx, {})


def test_a_model_that_cannot_be_recorded_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_tensorrt_api import write_onnx

    onnx = write_onnx(tmp_path / "model.onnx", "fp32")
    install_cuda(monkeypatch, MockCudaRuntime())
    mock = MockCudaOnnxruntime()
    mock.refused = "This session cannot use the graph capture feature as requested by the user"
    monkeypatch.setitem(sys.modules, "onnxruntime", mock)
    with pytest.raises(ConfigError, match=r"cannot record model\.onnx as a CUDA graph") as caught:
        open_model("onnxruntime_cuda", onnx, {"cuda_graph": True})
    assert "cuda_graph to false" in caught.value.fix


def test_onnxruntimes_gpu_must_be_the_one_that_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: MockNvidiaSmi
) -> None:
    install_cuda(monkeypatch, MockCudaRuntime(name="Tesla P4"))
    monkeypatch.setitem(sys.modules, "onnxruntime", MockCudaOnnxruntime())
    with pytest.raises(ConfigError, match="CUDA would use a Tesla P4, while nvidia-smi lists a Tesla T4 first"):
        open_model("onnxruntime_cuda", tmp_path / "model.onnx", {})


def test_each_stream_is_opened_and_run_by_one_thread_of_its_own(
    make_bundle: Any, tmp_path: Path, smi: MockNvidiaSmi
) -> None:
    """ONNX Runtime records a CUDA graph in the thread that runs it: another thread would record it anew, timed."""
    told = tmp_path / "threads"
    with Visitor(make_bundle(device=(MOCK, {"us": 10, "threads_file": str(told)})), "device", 1) as visitor:
        visitor.ready()
        visitor.ask("open")
    told.unlink()
    options = {"streams": 3, "threads_file": str(told)}
    with Visitor(tmp_path / "bundle", "device", 1, None, options) as visitor:
        visitor.ready()
        visitor.ask("open")
        for _ in range(3):
            assert len(visitor.ask("burst", calls=5, seconds=0.0)["times"]) == 15
    by_session: dict[str, set[str]] = {}
    for line in told.read_text().splitlines():
        session, thread = line.split()
        by_session.setdefault(session, set()).add(thread)
    assert len(by_session) == 3
    assert all(len(threads) == 1 for threads in by_session.values()), by_session
    assert len(set.union(*by_session.values())) == 3


@pytest.mark.parametrize(
    "last",
    [
        "torch.AcceleratorError: CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the manual\n"
        "CUDA kernel errors might be asynchronously reported\nCompile with `TORCH_USE_CUDA_DSA`.\n",
        "CUDA out of memory. Tried to allocate 2.00 GiB.\nrun_func_ API call failed at model_container_runner.cpp",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_pytorch_says_after_it_ran_out_of_memory_does_not_hide_it(make_bundle: Any, last: str) -> None:
    with Visitor(make_bundle(device=(SPINNER, {"fail": last})), "device", 1) as visitor:
        visitor.ready()
        with pytest.raises(OutOfMemory):
            visitor.ask("open")


def test_the_source_lines_of_a_trace_are_no_reason(make_bundle: Any) -> None:
    with Visitor(make_bundle(device=(SPINNER, {"fail": "broken\n  raise MemoryError"})), "device", 1) as visitor:
        visitor.ready()
        with pytest.raises(StepError, match="failed with exit code") as caught:
            visitor.ask("open")
    assert not isinstance(caught.value, OutOfMemory)


def test_times_on_the_gpu_begin_after_the_hosts_own_copies() -> None:
    """Else `copy_in_ms` would hold the time in which the host fills pinned memory."""
    order: list[str] = []

    class MockSession(DeviceSession):
        def _stage(self, inputs: Any) -> None:
            order.append("stage")

        def _copy_in(self) -> None:
            order.append("in")

        def _compute(self) -> None:
            order.append("compute")

        def _copy_out(self) -> None:
            order.append("out")

        def _outputs(self) -> list[Any]:
            order.append("wait")
            return []

        def _mark(self) -> int:
            order.append("|")
            return len(order)

        def _between(self, before: int, after: int) -> float:
            return float(after - before)

    session = MockSession()
    assert session.device_times([], 1) == {"copy_in_ms": [2.0], "compute_ms": [2.0], "copy_out_ms": [2.0]}
    assert " ".join(order) == "stage | in | compute | out | wait"
    order.clear()
    session.run([])
    assert " ".join(order) == "stage in compute out wait"


def test_the_result_stays_json(make_bundle: Any, tmp_path: Path, smi: MockNvidiaSmi) -> None:
    measure(make_bundle(device=(MOCK, {})), tmp_path / "out")
    assert json.loads((tmp_path / "out/measurement.json").read_text())["candidates"]["device"]["gpu"]["compute_ms"] == 2
