"""Builds that lack a GPU end deferred, and `finish` completes them where it is; the GPU and its tools are mocks."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bases
import jsonschema
import malice
import numpy as np
import processes
import pytest
from conftest import ROOT, Done, Project, command, environment

SMI = """#!/bin/sh
# MOCK of nvidia-smi: answers as the driver of a T4 does.
case "$*" in
*name,driver_version,compute_cap,memory.total*) echo "{name}, 550.54.15, 7.5, 15360" ;;
*) exit 1 ;;
esac
"""
ENGINE = "candidates=[null_fp32,null_engine]"


@dataclass
class Deferred:
    """A deferred version, which no test may change."""

    done: Done
    folder: Path
    manifest: dict[str, Any]


def _project(folder: Path) -> Project:
    project = Project(folder)
    project.base[2] = "target=gputarget"
    return project


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Deferred:
    """Two candidates, one of which runs on a GPU only."""
    done = _project(tmp_path_factory.mktemp("prepared")).build()
    assert done.code == 0, done.err
    return Deferred(done, done.manifest_path.parent, done.manifest)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Deferred:
    """A candidate whose last step needs a GPU, by a backend of the test's own."""
    done = _project(tmp_path_factory.mktemp("engine")).build(ENGINE, "executor.environment=[PATH]", env=_environment())
    assert done.code == 0, done.err
    return Deferred(done, done.manifest_path.parent, done.manifest)


@pytest.fixture
def t4(tmp_path: Path) -> dict[str, str]:
    """The environment of a host whose driver lists a T4."""
    return _with_gpu(tmp_path, "Tesla T4")


def _environment(**extra: str) -> dict[str, str]:
    found = environment()
    return {**found, "PYTHONPATH": os.pathsep.join([found["PYTHONPATH"], str(ROOT / "tests")]), **extra}


def _with_gpu(folder: Path, name: str) -> dict[str, str]:
    (folder / "bin").mkdir(exist_ok=True)
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(SMI.format(name=name))
    tool.chmod(0o755)
    return _environment(PATH=f"{folder / 'bin'}:{os.environ['PATH']}")


def test_a_build_that_lacks_a_gpu_ends_deferred_and_says_what_lacks(prepared: Deferred, schema: dict[str, Any]) -> None:
    jsonschema.validate(prepared.manifest, schema)
    assert prepared.manifest["status"] == "deferred" and prepared.manifest["selected"] is None
    rows = {row["id"]: row for row in prepared.manifest["candidates"]}
    assert {row["status"] for row in rows.values()} == {"deferred"}
    assert "an NVIDIA GPU with its driver, onnxruntime-gpu" in rows["null_cuda"]["reason"]
    assert all(verdict["result"] == "unproven" for verdict in prepared.manifest["verdicts"])
    assert "Finish it where that is: python -m compiler finish" in prepared.done.out
    assert not (prepared.folder.parent / "latest").exists()
    assert "benchmark" not in prepared.done.executed


def test_no_latency_and_no_proxy_is_claimed_before_it_is_measured(prepared: Deferred) -> None:
    assert all(row["latency_ms"] is None and row["speedup"] is None for row in prepared.manifest["candidates"])
    assert "proxy" not in prepared.done.out


def test_the_accuracy_of_the_baseline_and_of_what_was_quantized_is_known_early(engine: Deferred) -> None:
    rows = {row["id"]: row for row in engine.manifest["candidates"]}
    assert rows["null_baseline"]["accuracy"]["value"] == 100.0
    early = rows["null_engine"]["prepared"]
    assert early["step"] == "null_engine.quantize" and early["accuracy"]["value"] == 100.0
    assert early["accuracy"]["on"] == engine.manifest["measured_on"][0]["id"]
    assert rows["null_engine"]["accuracy"] is None and "100.00 (as ONNX)" in engine.done.out


def test_defer_false_refuses_before_any_step_and_says_what_lacks(tmp_path: Path) -> None:
    done = _project(tmp_path).build("defer=false")
    assert done.code == 4 and not done.executed, done.err
    assert "this host lacks an NVIDIA GPU with its driver, onnxruntime-gpu" in done.last_lines()[1]
    assert "defer=true" in done.last_lines()[0] and "(for null_cuda)" in done.err


def test_a_second_build_finds_the_deferred_version(prepared: Deferred) -> None:
    again = _project(prepared.folder.parents[3]).build()
    assert again.code == 0 and again.manifest == prepared.manifest and not again.executed, again.err
    assert "Nothing to do" in again.out


def test_strict_does_not_take_a_deferred_build_for_a_proof(tmp_path: Path) -> None:
    assert _project(tmp_path).build("strict=true").code == 3


def test_plan_says_which_steps_are_left(prepared: Deferred) -> None:
    rows = _project(prepared.folder.parents[3]).plan()
    assert rows["benchmark"]["state"] == "deferred" and "NVIDIA GPU" in rows["benchmark"]["why"]
    assert rows["null_fp32.convert"]["state"] == "hit" and rows["package"]["state"] == "pending"


def test_doctor_names_what_lacks_and_how_to_install_it() -> None:
    done = command("doctor", "target=t4")
    assert done.code == 0, done.err
    for what in ("an NVIDIA GPU with its driver", "tensorrt", "torch-tensorrt", "onnxruntime-gpu"):
        assert any(line.startswith(f"LACK  t4: {what}: ") for line in done.out.splitlines()), what
    assert "pip install 'target-model-compiler[tensorrt]'" in done.out and "end deferred" in done.out
    assert command("doctor", "target=t4", "defer=false").code == 4


def test_finish_where_the_gpu_is_makes_the_engine_measures_and_proves_it(
    engine: Deferred, t4: dict[str, str], tmp_path: Path, schema: dict[str, Any]
) -> None:
    done = command("finish", engine.folder, "--own-code", "--artifacts-dir", tmp_path / "there", env=t4, cwd=tmp_path)
    assert done.code == 0, done.err
    manifest = done.manifest
    jsonschema.validate(manifest, schema)
    assert manifest["finished_from"] == {"version": engine.manifest["version"], "digest": engine.manifest["digest"]}
    rows = {row["id"]: row for row in manifest["candidates"]}
    assert rows["null_engine"]["bound_to"] == {"gpu": "Tesla T4", "compute_capability": "7.5"}
    assert rows["null_engine"]["latency_ms"]["on"] == "finishing-host"
    assert rows["null_baseline"]["accuracy"]["on"] == "build-host"
    assert [(h["id"], h["is_target"], h["gpu"]) for h in manifest["measured_on"]] == [
        ("finishing-host", True, "Tesla T4"), ("build-host", False, None)
    ]  # fmt: skip
    assert manifest["status"] in ("pass", "provisional") and manifest["selected"] is not None
    assert not {"samples", "export", "null_engine.quantize"} & set(done.executed)
    assert "null_engine.engine" in done.executed
    assert {s["name"]: s["status"] for s in manifest["steps"]}["export"] == "reused"
    assert (tmp_path / "there/nullmodel/gputarget/latest").is_symlink()
    assert manifest["environment"]["prepared_in"] == engine.manifest["environment"]
    again = command("finish", engine.folder, "--own-code", "--artifacts-dir", tmp_path / "there", env=t4, cwd=tmp_path)
    assert again.code == 0 and not again.executed and again.manifest_path == done.manifest_path, again.err


def test_an_engine_is_refused_beside_another_gpu_than_it_is_bound_to(
    engine: Deferred, t4: dict[str, str], tmp_path: Path
) -> None:
    wanted = ["--candidates", "null_engine", "--own-code", "--artifacts-dir", tmp_path / "there"]
    done = command("finish", engine.folder, *wanted, env=t4)
    assert done.code == 0 and done.manifest["selected"] == "null_engine", done.err
    assert not {f["path"]: f["portable"] for f in done.manifest["files"]}["model.npz"]
    version = done.manifest_path.parent
    here = command("verify", version, env=t4)
    assert here.code == 0 and "engine: bound to GPU Tesla T4, compute capability 7.5, as this host has" in here.out
    nowhere = command("verify", version)
    assert nowhere.code == 0 and "this host has no NVIDIA GPU and cannot run it" in nowhere.out
    rebuilt = command("rebuild", version, "--own-code", env=_environment())
    assert rebuilt.code == 4 and "lacks an NVIDIA GPU" in rebuilt.last_lines()[1], rebuilt.err
    other = command("verify", version, env=_with_gpu(tmp_path, "NVIDIA L4"))
    assert other.code == 4 and "null_engine is bound to GPU Tesla T4; here is GPU NVIDIA L4" in other.last_lines()[1]


def test_figures_of_another_gpu_are_a_proxy_attributed_to_it(engine: Deferred, tmp_path: Path) -> None:
    other = _with_gpu(tmp_path, "NVIDIA L4")
    done = command("finish", engine.folder, "--own-code", "--artifacts-dir", tmp_path / "there", env=other)
    assert done.code == 0 and done.manifest["status"] == "provisional", done.err
    host = done.manifest["measured_on"][0]
    assert (host["kind"], host["gpu"]) == ("proxy", "NVIDIA L4")
    assert "measured on NVIDIA L4 (compute capability 7.5, driver 550.54.15) beside" in done.out


def test_code_that_is_not_ours_runs_only_if_the_user_says_so(engine: Deferred, t4: dict[str, str]) -> None:
    done = command("finish", engine.folder, env=t4)
    assert done.code == 6 and "mockgpu.backend" in done.err and "--own-code" in done.last_lines()[0]


def test_finish_without_the_gpu_refuses_and_names_what_can_be_finished(prepared: Deferred) -> None:
    done = command("finish", prepared.folder)
    assert done.code == 4 and "this host lacks an NVIDIA GPU with its driver" in done.last_lines()[1]
    assert "--candidates null_fp32" in done.last_lines()[0]
    done = command("finish", prepared.folder, "--candidates", "null_cuda")
    assert done.code == 4, done.err
    done = command("finish", prepared.folder, "--candidates", "null_fq32")
    assert done.code == 2 and "did you mean 'null_fp32'" in done.err
    assert command("finish", prepared.folder, "--candidates", "null_fp32", "--partial").code == 2


def test_partial_leaves_the_rest_deferred(prepared: Deferred, tmp_path: Path, schema: dict[str, Any]) -> None:
    done = command("finish", prepared.folder / "manifest.json", "--partial", "--artifacts-dir", tmp_path / "there")
    assert done.code == 0, done.err
    jsonschema.validate(done.manifest, schema)
    status = {row["id"]: row["status"] for row in done.manifest["candidates"]}
    assert done.manifest["status"] == "deferred" and done.manifest["selected"] == "null_fp32"
    assert status["null_cuda"] == "deferred" and "Deferred: null_cuda: needs" in done.out
    assert f"Finish the rest where that is, from {prepared.manifest['version']}." in done.out
    again = command("finish", done.manifest_path.parent)
    assert again.code == 2 and prepared.manifest["version"] in again.last_lines()[0], again.err


def test_a_finished_version_is_profiled_with_the_samples_that_it_came_with(prepared: Deferred, tmp_path: Path) -> None:
    arguments = ["--candidates", "null_fp32", "--artifacts-dir", tmp_path / "there"]
    done = command("finish", prepared.folder, *arguments)
    assert done.code == 0, done.err
    again = command("profile", done.manifest_path.parent)  # like `measure`, and quicker
    assert again.code == 0 and "null_baseline" in again.out, again.err


def test_the_version_that_is_finished_is_the_one_that_the_manifest_names(prepared: Deferred, tmp_path: Path) -> None:
    other = Path(shutil.copytree(prepared.folder, tmp_path / "other"))
    malice.seal(other, lambda m: m.update(version=f"20200101T000000Z-{m['version'][-8:]}"))
    arguments = ["--candidates", "null_fp32", "--artifacts-dir", tmp_path / "there"]
    for folder, version in (
        (prepared.folder, prepared.manifest["version"]),
        (other, f"20200101T000000Z-{prepared.manifest['version'][-8:]}"),
    ):
        done = command("finish", folder, *arguments)
        assert done.code == 0 and done.manifest["finished_from"]["version"] == version, done.err


def test_a_key_that_stayed_where_the_build_was_prepared_keeps_nobody_from_finishing(
    prepared: Deferred, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(prepared.folder, tmp_path / "carried"))
    signing = {"key": str(tmp_path / "gone.pem"), "certificates": []}
    malice.seal(target, lambda m: m["config"].update(publish=True, registry="file:/nowhere", signing=signing))
    done = command("finish", target, "--candidates", "null_fp32", "--artifacts-dir", tmp_path / "there")
    assert done.code == 0, done.err


@pytest.mark.real
def test_numpy_alone_finishes_candidates_that_need_no_more(
    prepared: Deferred, tmp_path: Path, schema: dict[str, Any]
) -> None:
    python = bases.environment(tmp_path, [])
    there = shutil.copytree(prepared.folder, tmp_path / "carried")
    done = bases.call(python, "finish", there, "--candidates", "null_fp32", cwd=tmp_path)
    assert done.code == 0, done.err
    manifest = done.manifest_in(tmp_path)
    jsonschema.validate(manifest, schema)
    assert manifest["selected"] == "null_fp32" and manifest["status"] == "provisional"
    assert "null_fp32" in done.out and "Status: provisional" in done.out
    assert done.manifest_path.is_relative_to("artifacts/nullmodel/gputarget")
    assert "torch" not in manifest["environment"]["packages"]


def test_a_candidate_that_failed_while_it_was_prepared_is_named(prepared: Deferred, tmp_path: Path) -> None:
    target = Path(shutil.copytree(prepared.folder, tmp_path / "failed"))

    def fail(manifest: dict[str, Any]) -> None:
        for row in manifest["candidates"]:
            if row["id"] == "null_fp32":
                row.update(status="failed", reason="it broke")

    malice.seal(target, fail)
    done = command("finish", target, "--candidates", "null_fp32")
    assert done.code == 2 and "null_fp32 failed where the build was prepared: it broke" in done.err


def test_a_finished_version_is_not_finished_again(first: Any) -> None:
    folder = next((first.project.artifacts / "nullmodel" / "nulltarget").glob("2*"))
    done = command("finish", folder)
    assert done.code == 2 and "has nothing to finish" in done.last_lines()[1]


@pytest.mark.parametrize("verb", ["show", "verify", "report"])
def test_verbs_that_read_a_manifest_take_a_deferred_one(prepared: Deferred, verb: str) -> None:
    done = command(verb, prepared.folder)
    assert done.code == 0 and "Traceback" not in done.err, done.err


@pytest.mark.parametrize("verb", ["run", "measure", "profile", "rebuild", "compare"])
def test_verbs_that_need_an_artifact_say_that_there_is_none_yet(prepared: Deferred, verb: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 3), np.uint8))
    arguments = {
        "run": ["--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"], "compare": [prepared.folder],
    }.get(verb, [])  # fmt: skip
    done = command(verb, prepared.folder, *arguments)
    assert done.code == 2 and "finish" in done.last_lines()[0], done.err


def test_a_deferred_version_travels_through_a_registry_and_is_never_latest(prepared: Deferred, tmp_path: Path) -> None:
    home = f"file:{tmp_path / 'registry'}"
    sent = command("publish", prepared.folder, home)
    assert sent.code == 0, sent.err
    reference = f"{home}:{prepared.manifest['version']}"
    pulled = command("pull", reference, tmp_path / "here")
    assert pulled.code == 0, pulled.err
    assert command("pull", f"{home}:latest", tmp_path / "no").code == 2
    env = _environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    done = command(
        "finish", reference, "--candidates", "null_fp32", "--artifacts-dir", tmp_path / "there", env=env, cwd=tmp_path
    )
    assert done.code == 0 and done.manifest["finished_from"]["digest"] == prepared.manifest["digest"], done.err


def test_an_altered_file_is_found_before_anything_is_read(prepared: Deferred, tmp_path: Path) -> None:
    target = Path(shutil.copytree(prepared.folder, tmp_path / "spoiled"))
    file = target / "steps/null_fp32.convert/model.npz"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = command("finish", target, "--partial")
    assert done.code == 6 and "model.npz" in done.last_lines()[1]


def _more_steps(taker: str) -> Callable[[dict[str, Any]], Any]:
    """A step of the pipeline that reads a file of this host, and one that every build has to take it."""

    def lie(manifest: dict[str, Any]) -> None:
        steps, found = manifest["config"]["steps"], {}
        for name, spec in steps.items():
            if name == "screen":
                found["more"] = {
                    "stage": "null.export",
                    "weights": str(ROOT / "compiler/zoo/mobilenetv3_digits.safetensors"),
                }
            found[name] = {**(spec or {}), "inputs": {"more": "more"}} if name == taker else spec
        manifest["config"]["steps"] = found

    return lie


FACTS = "steps/null_fp32.convert/facts.json"
LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no configuration": lambda m: m.update(config={}),
    "a configuration of text": lambda m: m["config"].update(target="t4"),
    "a stage that reads files": lambda m: m["config"]["candidate"]["null_fp32"]["steps"].update(
        extra={"stage": "null.samples", "source": "/etc/passwd"}
    ),
    "steps that were never made": lambda m: m["config"]["candidate"]["null_fp32"].update(after="screen"),
    "code of its own": lambda m: m["config"]["candidate"]["null_fp32"].update(runtime="canary.runtime"),
    "a stage of its own": lambda m: m["config"]["steps"]["select"].update(stage="canary.select"),
    "a toolchain": lambda m: m["config"].update(toolchains={"x": {"python": "/bin/sh"}}),
    "steps of text": lambda m: m.update(steps=["export"]),
    "a step without outputs": lambda m: m["steps"][0].pop("outputs"),
    "a step of no seconds": lambda m: m["steps"][0].update(seconds="soon"),
    "candidates of text": lambda m: m.update(candidates=["null_fp32"]),
    "no host": lambda m: m.update(measured_on=[]),
    "a host of text": lambda m: m.update(measured_on=["build-host"]),
    "inputs of text": lambda m: m.update(inputs="none"),
    "no environment": lambda m: m.update(environment=[]),
    "a name that leads elsewhere": lambda m: m["config"]["model"].update(name="../../x"),
    "a step that reads files, for the benchmark": _more_steps("benchmark"),
    "a step that reads files, for the selection": _more_steps("select"),
    "a step that reads files, for the package": _more_steps("package"),
    "a benchmark that reads files": lambda m: m["config"]["steps"]["benchmark"].update(
        stage="null.export", weights="/etc/hosts"
    ),
    "a step of endless seconds": lambda m: m["steps"][0].update(seconds="inf"),
    "a step whose key is none": lambda m: m["steps"][0].update(key="0"),
    "a host that measured": lambda m: m["measured_on"][0].update(is_target=True, kind="native"),
    "a host that tells nothing": lambda m: m["measured_on"][0].pop("cpu_model"),
    "an environment of its own": lambda m: m["environment"].update(python=3),
    "inputs with more": lambda m: m.update(inputs={"x.y": {"path": "a", "sha256": "b", "more": 1}}),
    "a target that leads elsewhere": lambda m: m["config"]["target"].update(name=".."),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_runs_nothing_and_is_no_bug(prepared: Deferred, tmp_path: Path, lie: str) -> None:
    target = Path(shutil.copytree(prepared.folder, tmp_path / "spoiled"))
    malice.seal(target, LIES[lie])
    done = command("finish", target, "--candidates", "null_fp32", "--artifacts-dir", tmp_path / "there")
    assert done.code in (2, 6), (done.code, done.err)
    assert "Traceback" not in done.err and not list((tmp_path / "there").glob("*/*/2*"))


UNREAD = (FACTS, "steps/evaluate.report.null_baseline/facts.json")
SPOILED = {
    FACTS: (b"[]", b"{}", b'{"fidelity": 3}', b"{" * 100_000),
    "steps/samples/facts.json": (b"[]", b'"x"', b'{"splits": {}, "value": NaN}'),
    "steps/samples/report.npy": (
        b"",
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    ),
    "steps/export/signature.json": (b"[]", b"{}", b'{"trained": true, "claim": 3, "demo": 1}'),
    "steps/null_fp32.convert/signature.json": (b"{}", b'{"inputs": [], "outputs": []}'),
    "steps/null_fp32.convert/model.npz": (b"PK", b""),
    "steps/evaluate.report.null_baseline/facts.json": (b"[]", b'{"value": "high"}'),
    "steps/evaluate.report.null_baseline/predictions.npz": (b"", b"PK"),
}


@pytest.mark.parametrize("name, content", [(n, c) for n, several in SPOILED.items() for c in several])
def test_a_prepared_result_that_lies_with_right_digests_is_no_bug(
    prepared: Deferred, tmp_path: Path, name: str, content: bytes
) -> None:
    target = Path(shutil.copytree(prepared.folder, tmp_path / "spoiled"))
    malice.write(target, name, content)
    malice.seal(target)
    done = command("finish", target, "--candidates", "null_fp32", "--artifacts-dir", tmp_path / "there")
    assert done.code in (2, 5, 6) or (done.code == 0 and name in UNREAD), (done.code, done.err)
    assert "internal error" not in done.err, done.err


def test_an_interrupted_finish_keeps_what_was_done_and_goes_on(prepared: Deferred, tmp_path: Path) -> None:
    there = tmp_path / "there"
    arguments = ["finish", prepared.folder, "--candidates", "null_fp32", "--artifacts-dir", there]
    process = processes.start(SimpleNamespace(base=arguments))  # type: ignore[arg-type]
    processes.wait_for(process, "benchmark: running")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not list(there.glob("*/*/2*"))
    done = command(*arguments)
    assert done.code == 0, done.err
