"""rebuild: a version is what its manifest says it was made from, or the command says what differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, QUICK, ROOT, First, Project, command, environment

from compiler.canonical import file_digest
from compiler.config import revive
from compiler.errors import ConfigError
from compiler.plan import make_plan
from compiler.runtime.verify import files_digest


def _altered(version: Path, change: Any) -> None:
    """Changes a finished version's manifest as somebody would who keeps it consistent with itself."""
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    change(version, manifest)
    manifest["digest"] = files_digest(manifest["files"])
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))


def test_portable_files_are_rebuilt_from_the_manifest_alone_in_an_empty_store(built: Project) -> None:
    made = built.build("candidate.null_int8.steps.quantize.bits=6", "candidates=[null_int8]")
    shutil.rmtree(built.artifacts / ".store")
    elsewhere = built.artifacts.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(made.manifest_path.parent, elsewhere / "version")
    done = command("rebuild", elsewhere / "version", "--json", cwd=elsewhere)
    assert done.code == 0, done.err
    compared = json.loads(done.out)
    portable = {f["path"]: f["sha256"] for f in made.manifest["files"] if f["portable"]}
    assert {row["path"]: row["found"] for row in compared} == portable
    assert {"model.npz", "signature.json", "labels.txt"} <= set(portable)
    assert not {"measurement.json", "latencies.npz"} & set(portable)
    assert "benchmark: running" not in done.err and [p.name for p in elsewhere.iterdir()] == ["version"]


def test_artifact_that_was_not_made_so_is_found_although_its_manifest_agrees_with_it(built: Project) -> None:
    version = built.latest

    def swap(folder: Path, manifest: dict[str, Any]) -> None:
        labels = folder / "labels.txt"
        labels.chmod(0o644)
        labels.write_text("something\nelse\n")
        entry = next(f for f in manifest["files"] if f["path"] == "labels.txt")
        entry |= {"sha256": file_digest(labels), "size_bytes": labels.stat().st_size}

    _altered(version, swap)
    assert command("verify", version).code == 0
    done = command("rebuild", version)
    assert done.code == 6 and "labels.txt differs" in done.last_lines()[1]


def test_input_that_is_no_longer_what_was_built_from_is_named(project: Project, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    version = project.build(f"model.weights={weights}").manifest_path.parent
    weights.write_bytes(b"two")
    done = command("rebuild", version)
    assert done.code == 6 and str(weights) in done.last_lines()[1]


def test_manifest_from_elsewhere_runs_no_code_of_its_own_choice(built: Project, tmp_path: Path) -> None:
    version = built.latest
    shutil.rmtree(built.artifacts / ".store")
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    for change in (
        lambda _, m: m["config"]["candidate"]["null_fp32"].update(backend="evil.x"),
        lambda _, m: m["config"]["steps"]["samples"].update(stage="evil.samples"),
        lambda _, m: m["config"]["model"].update(architecture="evil:f"),
        lambda _, m: m["config"]["data"].update(metric="evil:f"),
        lambda _, m: m["config"]["candidate"]["null_fp32"].update(steps={"evil.sub": {}}),
        lambda _, m: m["config"]["steps"]["export"].update(architecture="evil.sub:f"),
        lambda _, m: m["config"]["steps"]["evaluate"].update(metric="evil:f"),
        lambda _, m: m["config"]["candidate"]["null_fp32"]["options"].update(deep={"x": ["evil:f"]}),
        lambda _, m: m["config"]["candidate"]["null_fp32"]["steps"].update(x={"stage": "evil.stage"}),
        lambda _, m: m["config"].update(toolchains={"t": {"python": str(tmp_path / "evil.py")}}),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(version, copy)
        _altered(copy, change)
        done = subprocess.run(
            [sys.executable, "-m", "compiler", "rebuild", str(copy)], cwd=tmp_path, capture_output=True, text=True,
            env={**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}, check=False,
        )  # fmt: skip
        assert done.returncode == 6 and "--own-code" in done.stderr, done.stderr
        assert not canary.exists()
        shutil.rmtree(copy)


def test_manifest_that_calls_nothing_portable_proves_nothing(built: Project) -> None:
    version = built.latest

    def swap(folder: Path, manifest: dict[str, Any]) -> None:
        model = folder / "model.npz"
        model.chmod(0o644)
        model.write_bytes(model.read_bytes() + b"more")
        for entry in manifest["files"]:
            entry["portable"] = False
            if entry["path"] == "model.npz":
                entry |= {"sha256": file_digest(model), "size_bytes": model.stat().st_size}

    _altered(version, swap)
    done = command("rebuild", version)
    assert done.code == 6 and "model.npz differs" in done.last_lines()[1]


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []}, {"inputs": {"export.weights": 5}}, {"environment": {}}, {"environment": {"packages": []}},
        {"config": {}}, {"config": {"steps": {"samples": "x"}}}, {"selected": None},
    ],
)  # fmt: skip
def test_manifest_of_another_shape_is_an_error_and_no_bug(first: First, tmp_path: Path, change: dict[str, Any]) -> None:
    version = tmp_path / "version"
    shutil.copytree(first.project.artifacts / "nullmodel/nulltarget/latest", version)
    if change.get("config"):
        change = {"config": {**json.loads((version / "manifest.json").read_text())["config"], **change["config"]}}
    _altered(version, lambda _, m: m.update(change))
    done = command("rebuild", version)
    assert done.code in (2, 6) and "internal error" not in done.err and "Traceback" not in done.err, done.err


def test_manifest_that_keeps_an_input_to_itself_is_refused(project: Project, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    version = project.build(f"model.weights={weights}").manifest_path.parent
    _altered(version, lambda _, m: m["inputs"].clear())
    done = command("rebuild", version)
    assert done.code == 6 and str(weights) in done.last_lines()[1]


def test_recorded_configuration_is_inert(built: Project) -> None:
    config = json.loads((built.latest / "manifest.json").read_text())["config"]
    config["data"]["root"] = config["candidate"]["null_int8"]["options"]["x"] = "${oc.env:HOME}"
    config["steps"]["export"]["scale"] = "${seed}"
    revived = revive(config)
    assert revived.data.root == revived.candidate["null_int8"].options["x"] == "${oc.env:HOME}"
    with pytest.raises(ConfigError, match=r"scale is '\$\{seed\}', and must be a number"):
        make_plan(revived)


def _surroundings(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Ways in which another place may differ: each is tried alone against the first."""
    home = str(tmp_path / f"home-{MARK}")
    own = {"HOME": home, "XDG_CACHE_HOME": home, "USER": f"user-{MARK}", "LOGNAME": f"user-{MARK}"}
    found: dict[str, dict[str, Any]] = {
        "here": {},
        "again": {},
        "hash seed": {"env": {"PYTHONHASHSEED": "4711"}},
        "folder": {"folder": "another folder/öäü, with a much longer name/artifacts"},
        "home and user name": {"env": own},
        "time zone": {"env": {"TZ": "Asia/Kathmandu"}},
        "locale": {"env": {"LANG": "tr_TR.UTF-8", "LC_ALL": "C"}},
        "one CPU": {"cores": {min(os.sched_getaffinity(0))}},
    }
    found |= {name: {"inside": inside} for name, inside in NAMESPACES.items() if _possible(inside)}
    return found


MARK = "7f3a9c2e"
"""Part of names that must not be found in any payload."""
NAMESPACES = {
    "user": ["unshare", "-U", "--map-user=1234", "--map-group=1234"],
    "host name": ["unshare", "-u", "sh", "-c", f'hostname host-{MARK} && exec "$@"', "sh"],
}


def _possible(inside: list[str]) -> bool:
    try:
        return subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def matrix(tmp_path: Path, jobs: list[list[str]]) -> dict[str, dict[str, list[str]]]:
    """Surroundings -> step -> digests of its files, by name, of the same builds in each."""
    outputs: dict[str, dict[str, list[str]]] = {}
    for name, given in _surroundings(tmp_path).items():
        folder = tmp_path / given.get("folder", name)
        folder.mkdir(parents=True)
        cores = given.get("cores", os.sched_getaffinity(0))
        outputs[name] = {}
        for job in jobs:
            done = subprocess.run(
                [*given.get("inside", []), sys.executable, "-m", "compiler", *job, f"artifacts_dir={folder}", "--json"],
                cwd=folder, env={**environment(), **given.get("env", {})}, capture_output=True, text=True, check=False,
                preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
            )  # fmt: skip
            assert done.returncode == 0, (name, done.stderr[-2000:])
            outputs[name] |= {s["name"]: s["outputs"] for s in json.loads(done.stdout)["steps"]}
        assert not _told(folder, [str(tmp_path), str(ROOT), MARK]), name
    return outputs


def _told(folder: Path, secrets: list[str]) -> list[tuple[str, str]]:
    """(file, text): a build path or host name in a stored payload."""
    found = []
    for path in sorted((folder / ".store" / "objects").rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        found += [(path.name, text) for text in secrets if text.encode() in data]
    return found


def differing(outputs: dict[str, dict[str, list[str]]], steps: list[str]) -> list[tuple[str, str]]:
    """(surroundings, step) where a step's bytes differ from those of the first surroundings."""
    first = outputs["here"]
    return [(name, step) for name, found in outputs.items() for step in steps if found[step] != first[step]]


def test_portable_steps_of_the_null_backend_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    outputs = matrix(tmp_path, [["--config-dir", str(CONF), "target=nulltarget", "model=nullmodel", "evaluate=all"]])
    steps = [s for s in outputs["here"] if s not in ("benchmark", "screen", "select", "package")]
    assert len(steps) >= 8 and len(outputs) >= 8
    assert differing(outputs, steps) == []


PORTABLE = {
    "rpi4": ["samples", "export", "fuse", "calibrate", "tflite_fp32.convert", "tflite_fp16.quantize",
             "tflite_dynamic_int8.quantize", "tflite_int8.quantize"],
    "xeon": ["openvino_fp32.convert", "openvino_int8.quantize", "onnxruntime_int8.quantize"],
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_portable_steps_of_rpi4_and_xeon_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    """Real converters; prints the table that docs/reliability.md shows."""
    outputs = matrix(tmp_path, [[f"target={t}", "model=mobilenetv3", "evaluate=all", *QUICK] for t in PORTABLE])
    steps = [s for s in outputs["here"] if s not in ("benchmark", "screen", "select", "package")]
    assert set(steps) >= {name for names in PORTABLE.values() for name in names}
    wrong = differing(outputs, steps)
    print("| step | " + " | ".join(outputs) + " |")
    for step in steps:
        print(f"| {step} | " + " | ".join("differs" if (n, step) in wrong else "same" for n in outputs) + " |")
    assert wrong == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_versions_are_rebuilt_in_a_fresh_clone(tmp_path: Path) -> None:
    """100 % of the files declared portable have the recorded digests, with real converters."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for target in ("rpi4", "xeon"):
        built = command(f"target={target}", "model=mobilenetv3", f"artifacts_dir={tmp_path / 'a'}", *QUICK)
        assert built.code == 0, built.err
        done = subprocess.run(
            [sys.executable, "-m", "compiler", "rebuild", str(built.manifest_path.parent), "--json"],
            cwd=clone, env={**environment(), "PYTHONPATH": str(clone)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert all(row["same"] for row in json.loads(done.stdout))
