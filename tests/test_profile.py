"""Profiles: what really ran, in each runtime; the common form, the sentence and the verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Project, command

from compiler.commands.profile import profile_bundle
from compiler.errors import ConfigError, IntegrityError
from compiler.profilers import NoProfileError, inside, profiler_of, report
from compiler.profilers.onnxruntime import read_events as onnxruntime_events
from compiler.profilers.openvino import _precision as openvino_precision
from compiler.profilers.pytorch import read_onednn
from compiler.profilers.tflite import read_events as tflite_events

SIZE = 224
MANIFEST = {"model": "m", "target": "t", "version": "v", "digest": "d"}
PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def _signature(layout: str = "NCHW", size: int = SIZE, classes: int = 10) -> dict[str, Any]:
    shape = [1, 3, size, size] if layout == "NCHW" else [1, size, size, 3]
    return {
        "inputs": [{"name": "input", "dtype": "float32", "layout": layout, "shape": shape}],
        "outputs": [{"name": "logits", "dtype": "float32", "layout": "NC", "shape": [1, classes]}],
        "preprocessing": PREPROCESSING,
    }


def _write(folder: Path, entries: list[dict[str, Any]], baseline: str, size: int = SIZE) -> Path:
    np.save(folder / "samples.npy", np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8))
    spec = {"schema_version": 1, "protocol": {"threads": 2}, "baseline": baseline, "candidates": entries}
    (folder / "bundle.json").write_text(json.dumps(spec))
    return folder


def _linear(folder: Path, name: str, runtime: str = "null", **options: Any) -> dict[str, Any]:
    weight = np.random.default_rng(1).standard_normal((192, 4)).astype(np.float32)
    np.savez(folder / f"{name}.npz", weight=weight, scale=np.float32(1), shape=np.array([3, 8, 8]))
    return {
        "id": name, "runtime": runtime, "file": f"{name}.npz", "options": options,
        "signature": _signature("NCHW", 8, 4),
    }  # fmt: skip


def _record(operators: list[dict[str, Any]], call: float, encode: float = 0.1, network: float = 0.8) -> dict[str, Any]:
    filled = [{"kernel": None, "where": None, "precision": None, **op} for op in operators]
    return {
        "id": "a", "runtime": "x", "options": {}, "reason": None, "profiled_calls": 3,
        "plain": {"median_ms": 1.0, "calls": 50, "warmup_calls": 20},
        "prediction": {
            "encode_ms": encode, "network_ms": network, "decode_ms": 0.1, "total_ms": encode + network + 0.1,
        },
        "profiled": {
            "profiler": "p", "call_ms": call, "operators": filled, "facts": {}, "notes": [], "files": [],
        },
    }  # fmt: skip


def test_operators_are_added_up_by_type_and_by_kernel() -> None:
    row = report.candidate(
        _record(
            [
                {"name": "a", "type": "Conv", "ms": 0.5, "kernel": "k1", "precision": "i8"},
                {"name": "b", "type": "Conv", "ms": 0.25, "kernel": "k2", "precision": "i8"},
                {"name": "c", "type": "Add", "ms": 0.25, "kernel": "k1", "precision": "i8"},
            ],
            1.5,
        ),
        "artifact",
    )
    assert [(g["type"], g["count"], g["share"], g["kernels"]) for g in row["by_type"]] == [
        ("Conv", 2, 0.75, ["k1", "k2"]),
        ("Add", 1, 0.25, ["k1"]),
    ]
    assert {g["kernel"]: (g["count"], g["ms"]) for g in row["by_kernel"]} == {"k1": (2, 0.75), "k2": (1, 0.25)}
    assert row["profiler"]["outside_operators_ms"] == 0.5 and row["profiler"]["overhead"] == 1.5
    assert sum(row["prediction"][f"{part}_share"] for part in ("encode", "network", "decode")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("encode", "network", "said"),
    [
        (0.1, 9.0, "the network is 98% of a prediction, so a faster network still pays"),
        (0.58, 0.32, "pre-processing takes 58% of a prediction: the network is not the bottleneck"),
        (0.3, 0.6, "the network is 60% of a prediction and pre-processing 30%: both count"),
    ],
)
def test_the_sentence_says_whether_the_network_is_the_bottleneck(encode: float, network: float, said: str) -> None:
    record = _record([{"name": "a", "type": "Conv", "ms": 1.0, "kernel": "k"}], 1.0, encode, network)
    assert report.sentence(report.candidate(record, "artifact")) == (
        f"100% of the operators' time of a is in 1 Conv operator run by k; {said}."
    )


@pytest.mark.parametrize(
    ("call", "said"), [(0.5, "this host was busy"), (1.5, "here by 1.50 times"), (9.0, "makes the shares rough")]
)
def test_a_disturbed_or_costly_profile_says_so(call: float, said: str) -> None:
    row = report.candidate(_record([{"name": "a", "type": "Conv", "ms": 0.4}], call), "artifact")
    assert said in " | ".join(row["profiler"]["notes"])


def test_time_in_no_operator_is_said() -> None:
    record = _record([{"name": "a", "type": "Conv", "ms": 1.0}], 2.0)
    assert "(50% of the profiled call is in no operator)" in report.sentence(report.candidate(record, "artifact"))


def test_names_from_a_file_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    row = report.candidate(_record([{"name": "\x1b[2J[red]evil", "type": "Conv", "ms": 1.0}], 1.0), "artifact")
    report.print_profile({**MANIFEST, "candidates": [row], "left_out": {}, "sentence": "S."})
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out and "?[2J[red]evil" in out


def test_onednn_log_is_counted() -> None:
    log = (
        "onednn_verbose,v1,info,oneDNN v3\n"
        "onednn_verbose,v1,primitive,info,template:operation,engine,primitive,implementation\n"
        "onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx2,forward,x,0.1\n"
        * 2
        + "onednn_verbose,primitive,exec,cpu,reorder,jit:uni,undef,0.1\n"
    )
    assert read_onednn(log) == [
        {"primitive": "convolution", "implementation": "brg_conv_fwd:avx2", "count": 2},
        {"primitive": "reorder", "implementation": "jit:uni", "count": 1},
    ]


def test_onnxruntime_leaves_the_first_run_out() -> None:
    def run(at: int, us: int) -> list[dict[str, Any]]:
        arguments = {"op_name": "Conv", "provider": "CPU", "node_index": "0", "input_type_shape": [{"uint8": [1]}]}
        node = {"cat": "Node", "name": "c_kernel_time", "ts": at + 1, "dur": us, "args": arguments}
        return [{"cat": "Session", "name": "model_run", "ts": at, "dur": us + 2}, node]

    operators, providers = onnxruntime_events(run(0, 9000) + run(10000, 100) + run(20000, 300), 2, {"c": "com.x"})
    assert [(op.name, op.type, op.ms, op.precision) for op in operators] == [("c", "com.x.Conv", 0.2, "uint8")]
    assert providers == {"CPU": 1}


def test_tflite_operators_need_the_same_order_in_every_call() -> None:
    call = [("Invoke", 1, 9), ("Fully Connected (NC, QS8, QC8W) GEMM", 8, 3), ("HARD_SWISH", 2, 5), ("Other", 32, 1)]
    operators = tflite_events(call * 2, 2)
    assert [(op.type, op.where, op.precision, op.ms) for op in operators] == [
        ("Fully Connected", "XNNPACK", "QS8/QC8W", 0.003),
        ("HARD_SWISH", "interpreter", None, 0.005),
    ]
    assert [op.kernel for op in operators] == [call[1][0], "built-in HARD_SWISH"]
    with pytest.raises(NoProfileError, match="from call to call"):
        tflite_events(call + call[:2], 2)
    with pytest.raises(NoProfileError, match="0 operators"):
        tflite_events(call[:1], 1)


def test_openvino_precision_is_read_from_the_kernel() -> None:
    kernels = ("brgconv_avx512_1x1_I8", "jit_uni_f32", "ref_any", "unknown_bf16", "")
    assert [openvino_precision(k) for k in kernels] == ["i8", "f32", None, "bf16", None]


@pytest.mark.parametrize("runtime", ["torch_export", "reference", "private.runtime", "report", "one", "../x"])
def test_a_runtime_without_a_profiler_is_said(runtime: str) -> None:
    with pytest.raises(NoProfileError):
        profiler_of(runtime)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_a_bundle_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="names the file"):
        inside(tmp_path, name)


def test_profile_lies_beside_the_version_and_holds_before_and_after(tmp_path: Path) -> None:
    bundle = _write(tmp_path, [_linear(tmp_path, "before"), _linear(tmp_path, "after", threads=1)], "before", 8)
    file, profile = profile_bundle(bundle, {**MANIFEST, "selected": "after"}, tmp_path / ".observations/v", 5)
    assert file.parent.parent == tmp_path / ".observations/v" and file.name == "profile.json"
    assert json.loads(file.read_text()) == profile
    assert [(row["id"], row["role"]) for row in profile["candidates"]] == [
        ("before", "baseline"),
        ("after", "artifact"),
    ]
    assert profile["candidates"][1]["options"]["threads"] == 1
    for row in profile["candidates"]:
        assert row["by_type"][0]["type"] == "MatMul" and row["by_type"][0]["share"] == pytest.approx(1)
        assert row["plain"]["calls"] == 50 and row["plain"]["warmup_calls"] == 20
    assert [p.name for p in file.parent.parent.iterdir()] == [file.parent.name]
    second, _ = profile_bundle(bundle, {**MANIFEST, "selected": "after"}, tmp_path / ".observations/v", 5)
    assert second != file and file.exists()


def test_a_baseline_that_is_gone_is_said(tmp_path: Path) -> None:
    bundle = _write(tmp_path, [_linear(tmp_path, "after")], "before", 8)
    _, profile = profile_bundle(bundle, {**MANIFEST, "selected": "after"}, tmp_path / "o", 5)
    assert profile["baseline"] is None and "build again" in profile["left_out"]["before"]


def test_a_private_runtime_is_timed_and_said_to_have_no_profiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/linear.py").write_text("from compiler.runtime.null import open\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    bundle = _write(tmp_path, [_linear(tmp_path, "after", "mine.linear")], "after", 8)
    with pytest.raises(IntegrityError, match=r"mine\.linear"):
        profile_bundle(bundle, {**MANIFEST, "selected": "after"}, tmp_path / "o", 5)
    assert list((tmp_path / "o").iterdir()) == []
    _, profile = profile_bundle(bundle, {**MANIFEST, "selected": "after"}, tmp_path / "o", 5, ("mine.linear",))
    row = profile["candidates"][0]
    assert row["profiler"]["name"] is None and "runtime of your own" in row["profiler"]["reason"]
    assert row["plain"]["median_ms"] > 0 and row["operators"] == []
    assert "is not known" in profile["sentence"] and "of a prediction" in profile["sentence"]
    report.print_profile(profile)


def test_a_candidate_that_cannot_be_opened_keeps_its_error(tmp_path: Path) -> None:
    bundle = _write(tmp_path, [_linear(tmp_path, "before"), _linear(tmp_path, "after", "openvino")], "before", 8)
    with pytest.raises(ConfigError, match="INFERENCE_PRECISION_HINT"):
        profile_bundle(bundle, {**MANIFEST, "selected": "after"}, tmp_path / "o", 5)
    _, profile = profile_bundle(bundle, {**MANIFEST, "selected": "before"}, tmp_path / "o", 5)
    assert profile["selected"] == "before"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nowhere"], "no manifest.json"), ([ROOT], "no manifest.json"), (["nowhere", "--calls", "0"], "--calls is 0")],
)
def test_bad_usage_of_the_verb(arguments: list[str], said: str) -> None:
    done = command("profile", *arguments)
    assert done.code == 2 and said in done.last_lines()[1]


def test_the_package_imports_no_library_before_it_is_used() -> None:
    script = (
        "import importlib, sys\n"
        "for n in ('report', 'one', 'null', 'onnxruntime', 'openvino', 'pytorch', 'tflite'):\n"
        "    importlib.import_module('compiler.profilers.' + n)\n"
        "importlib.import_module('compiler.commands.profile')\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "numpy", "rich", "hydra"}
    assert not heavy & {name.partition(".")[0] for name in done.stdout.split()}


def test_the_verb_profiles_a_built_version(built: Project) -> None:
    version = built.latest
    before = sorted(p.name for p in version.iterdir())
    done = command("profile", version, "--calls", "5")
    assert done.code == 0, done.err
    file = Path(done.out.strip().splitlines()[-1])
    assert file.parent.parent == version.resolve().parent / ".observations" / version.name
    assert [row["role"] for row in json.loads(file.read_text())["candidates"]] == ["baseline", "artifact"]
    assert done.out.strip().splitlines()[-2] == json.loads(file.read_text())["sentence"]
    assert sorted(p.name for p in version.iterdir()) == before and command("verify", version).code == 0
    printed = json.loads(command("profile", version, "--calls", "5", "--json").out)
    assert printed["digest"] == json.loads((version / "manifest.json").read_text())["digest"]
    (version / "model.npz").write_bytes(b"other")
    assert command("profile", version).code == 6


# what really ran, in real models


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small network in every runtime's format; the ONNX file in int8 too."""
    import litert_torch
    import networks
    import onnx
    import openvino
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from compiler.runtime.pytorch import save

    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    module = networks.Small(10).eval()
    sample = torch.rand(1, 3, SIZE, SIZE)
    save(module, [1, 3, SIZE, SIZE], 10, folder / "net.safetensors")
    torch.onnx.export(module, (sample,), str(folder / "net.onnx"), dynamo=True, external_data=False, verbose=False)
    litert_torch.convert(module, (sample,)).export(str(folder / "net.tflite"))
    openvino.save_model(
        openvino.convert_model(str(folder / "net.onnx")), str(folder / "net.xml"), compress_to_fp16=False
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            name = onnx.load(str(folder / "net.onnx")).graph.input[0].name
            self._rest = iter(
                [{name: np.random.default_rng(i).random((1, 3, SIZE, SIZE), np.float32)} for i in range(4)]
            )

        def get_next(self) -> Any:
            return next(self._rest, None)

    quantize_static(
        str(folder / "net.onnx"), str(folder / "int8.onnx"), Reader(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    openvino.save_model(
        openvino.convert_model(str(folder / "int8.onnx")), str(folder / "int8.xml"), compress_to_fp16=False
    )
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    rows = [
        ("torch", "pytorch", "net.safetensors", {"architecture": "networks:Small"}),
        ("onnx", "onnxruntime", "net.onnx", {}),
        ("onnx_int8", "onnxruntime", "int8.onnx", {}),
        ("tflite", "tflite", "net.tflite", {}),
        ("openvino", "openvino", "net.xml", hint),
        ("openvino_int8", "openvino", "int8.xml", hint),
    ]
    entries = [
        {"id": name, "runtime": runtime, "file": file, "options": options, "signature": _signature()}
        for name, runtime, file, options in rows
    ]
    return _write(folder, entries, "torch")


@pytest.fixture(scope="module")
def profiles(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Profiles of the bundle's candidates by name, each made once: (row of the profile, its folder)."""
    done: dict[str, tuple[dict[str, Any], Path]] = {}
    out = tmp_path_factory.mktemp("observations")

    def get(name: str) -> tuple[dict[str, Any], Path]:
        if name not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{ROOT}")
                spec = json.loads((bundle / "bundle.json").read_text()) | {"baseline": name}
                (bundle / "bundle.json").write_text(json.dumps(spec))
                file, profile = profile_bundle(bundle, {**MANIFEST, "selected": name}, out, 20, ("networks",))
            done[name] = (profile["candidates"][0], file.parent)
        return done[name]

    return get


NAMES = ("torch", "onnx", "onnx_int8", "tflite", "openvino", "openvino_int8")


@pytest.mark.real
@pytest.mark.alone
@pytest.mark.parametrize("name", NAMES)
def test_operators_account_for_the_profiled_call(profiles: Any, name: str) -> None:
    row, folder = profiles(name)
    assert row["profiler"]["reason"] is None
    total = sum(op["ms"] for op in row["operators"])
    assert total == pytest.approx(sum(group["ms"] for group in row["by_type"]))
    assert 0.2 * row["profiler"]["call_ms"] < total <= 1.05 * row["profiler"]["call_ms"]
    assert sum(op["share"] for op in row["operators"]) == pytest.approx(1)
    assert "Conv" in row["by_type"][0]["type"].title() or any("conv" in g["type"].lower() for g in row["by_type"])
    assert all((folder / file).stat().st_size > 0 for file in row["files"])
    parts = row["prediction"]
    assert parts["total_ms"] == pytest.approx(parts["encode_ms"] + parts["network_ms"] + parts["decode_ms"])
    assert min(parts["encode_ms"], parts["network_ms"], parts["decode_ms"]) > 0


@pytest.mark.real
def test_pytorch_names_modules_kernels_and_onednns_implementations(profiles: Any) -> None:
    row, folder = profiles("torch")
    convolutions = [op for op in row["operators"] if op["type"] == "aten::conv2d"]
    assert {op["name"] for op in convolutions} == {"features.0", "features.4"}
    assert {op["kernel"] for op in convolutions} <= {
        "aten::mkldnn_convolution", "aten::_slow_conv2d_forward", "aten::thnn_conv2d",
    }  # fmt: skip
    logged = [p for p in row["profiler"]["facts"].get("onednn", []) if p["primitive"] == "convolution"]
    assert sum(p["count"] for p in logged) == sum(op["kernel"] == "aten::mkldnn_convolution" for op in convolutions)
    trace = json.loads((folder / "profile-torch.trace.json").read_text())
    assert any("module: features.0" in str(event.get("name")) for event in trace["traceEvents"])


@pytest.mark.real
def test_onnxruntime_shows_fused_and_quantized_nodes(profiles: Any) -> None:
    types = {group["type"] for group in profiles("onnx")[0]["by_type"]}
    assert any(name.endswith("Conv") for name in types) and "BatchNormalization" not in types
    assert not any("Relu" in name for name in types), "the activations are part of the convolutions"
    row, folder = profiles("onnx_int8")
    convolutions = [op for op in row["operators"] if op["type"].endswith("QLinearConv")]
    assert len(convolutions) == 2 and {op["precision"] for op in convolutions} == {"uint8"}
    assert row["profiler"]["facts"]["providers"] == {"CPUExecutionProvider": len(row["operators"])}
    assert (folder / "profile-onnx_int8.onnxruntime.json").exists()


@pytest.mark.real
def test_openvino_shows_kernels_and_their_precision(profiles: Any) -> None:
    def convolutions(name: str) -> list[dict[str, Any]]:
        return [op for op in profiles(name)[0]["operators"] if op["type"] == "Convolution"]

    assert len(convolutions("openvino")) == len(convolutions("openvino_int8")) == 2
    assert {op["precision"] for op in convolutions("openvino")} <= {"f32", "fp32"}
    assert {op["precision"] for op in convolutions("openvino_int8")} <= {"i8", "u8"}
    assert all(op["kernel"] for op in convolutions("openvino"))
    assert profiles("openvino")[0]["profiler"]["facts"]["settings"]["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.real
def test_tflite_shows_what_xnnpack_ran_and_computes_the_same(profiles: Any) -> None:
    row, _ = profiles("tflite")
    facts = row["profiler"]["facts"]
    assert facts["largest_difference_from_session"] < 1e-5
    assert facts["nodes_of_the_file"]["CONV_2D"] == 2 and facts["delegated_parts"] >= 1
    kernels = {entry["kernel"]: entry for entry in row["by_kernel"]}
    assert any(name.startswith("Convolution (NHWC, F32)") for name in kernels)
    assert all(entry["where"] == "XNNPACK" for name, entry in kernels.items() if "built-in" not in name)
    assert facts["operators_in_xnnpack"] + facts["operators_outside_xnnpack"] == len(row["operators"])


@pytest.mark.real
@pytest.mark.parametrize("name", ["torch", "tflite"])
def test_another_batch_is_profiled_as_the_session_runs_it(bundle: Path, tmp_path: Path, name: str) -> None:
    spec = json.loads((bundle / "bundle.json").read_text())
    entry = next(c for c in spec["candidates"] if c["id"] == name)
    (tmp_path / entry["file"]).write_bytes((bundle / entry["file"]).read_bytes())
    _write(tmp_path, [entry | {"options": {**entry["options"], "batch": 2}}], name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{ROOT}")
        _, profile = profile_bundle(tmp_path, {**MANIFEST, "selected": name}, tmp_path / "o", 5, None)
    row = profile["candidates"][0]
    print(row["profiler"])
    assert row["profiler"]["reason"] is None and row["operators"]
    assert row["profiler"]["facts"].get("largest_difference_from_session", 0.0) < 1e-5


@pytest.mark.real
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_open_batch_is_fixed_before_it_is_profiled(tmp_path: Path, runtime: str) -> None:
    import networks
    import torch

    sample = torch.rand(2, 3, SIZE, SIZE)
    torch.onnx.export(
        networks.Small(10).eval(), (sample,), str(tmp_path / "net.onnx"), dynamo=True, external_data=False,
        verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    options = {"batch": 3} | ({"INFERENCE_PRECISION_HINT": "f32"} if runtime == "openvino" else {})
    file = "net.onnx"
    if runtime == "openvino":
        import openvino

        file = "net.xml"
        openvino.save_model(openvino.convert_model(str(tmp_path / "net.onnx")), str(tmp_path / file))
    entry = {"id": "x", "runtime": runtime, "file": file, "options": options, "signature": _signature()}
    _, profile = profile_bundle(_write(tmp_path, [entry], "x"), {**MANIFEST, "selected": "x"}, tmp_path / "o", 5, None)
    types = {group["type"] for group in profile["candidates"][0]["by_type"]}
    assert "Shape" not in types and "ShapeOf" not in types
    assert any("Conv" in name for name in types)
