"""Hostile contents: every digest may be right, and all lies. Exit 2 or 6, no code run, memory bounded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import malice
import numpy as np
import pytest
from conftest import Done, First, command

from compiler import runtime
from compiler.commands import compare, measure, report, run, show, verify
from compiler.errors import CompilerError, ConfigError, IntegrityError
from compiler.foreign_json import parse_json, read_json
from compiler.observations import append
from compiler.runtime import bundle as bundles
from compiler.runtime.inert import describe_arrays, load_array, load_arrays
from compiler.runtime.verify import read_manifest

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def version(first: First, tmp_path: Path) -> Path:
    """A finished version as if it had been pulled: alone in a folder, no store beside it."""
    folder = next((first.project.artifacts / "nullmodel" / "nulltarget").glob("2*"))
    return Path(shutil.copytree(folder, tmp_path / "pulled"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    return tmp_path / "images.npy"


def _chosen(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in manifest["candidates"] if row["id"] == manifest["selected"])  # type: ignore[no-any-return]


def _rename(manifest: dict[str, Any], name: str) -> None:
    _chosen(manifest)["id"] = name
    manifest["selected"] = name


def _input(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["signature"]["inputs"][0]  # type: ignore[no-any-return]


LIES: dict[str, Change] = {
    "batch of a billion": lambda m: _chosen(m)["options"].update(batch=10**9),
    "batch that is a text": lambda m: _chosen(m)["options"].update(batch="8"),
    "batch that needs terabytes": lambda m: (
        _chosen(m)["options"].update(batch=4096), _input(m).update(shape=[1, 9**9]),
    ),
    "a billion threads": lambda m: _chosen(m)["options"].update(threads=10**9),
    "no threads": lambda m: _chosen(m)["options"].update(threads=0),
    "streams that are a text": lambda m: _chosen(m)["options"].update(streams="many"),
    "a billion streams": lambda m: _chosen(m)["options"].update(streams=10**9),
    "an option that names code": lambda m: _chosen(m)["options"].update(architecture="os:system"),
    "a runtime that is a module": lambda m: _chosen(m).update(runtime="antigravity.x"),
    "a runtime that unpickles": lambda m: _chosen(m).update(runtime="torch_export"),
    "another runtime's file": lambda m: _chosen(m).update(runtime="openvino"),
    "an id that leads out": lambda m: _rename(m, "../../escaped"),
    "an id that is a path": lambda m: _rename(m, "/tmp/escaped"),
    "an id that is a flag": lambda m: _rename(m, "--help"),
    "another candidate's id that leads out": lambda m: m["candidates"].append(_chosen(m) | {"id": "../escaped"}),
    "an endless shape": lambda m: _input(m).update(shape=[1, 10**9, 10**9, 3]),
    "a negative shape": lambda m: _input(m).update(shape=[1, -8, 8, 3]),
    "an empty shape": lambda m: _input(m).update(shape=[]),
    "a shape of texts": lambda m: _input(m).update(shape=["1", "8", "8", "3"]),
    "another shape than the model's": lambda m: _input(m).update(shape=[1, 16, 16, 3]),
    "another dtype than the model's": lambda m: _input(m).update(dtype="float64"),
    "a dtype of a gigabyte": lambda m: _input(m).update(dtype="V1000000000"),
    "a dtype that is a pickle": lambda m: _input(m).update(dtype="O"),
    "no inputs": lambda m: m["signature"].update(inputs=[]),
    "more outputs than the model's": lambda m: m["signature"]["outputs"].append(m["signature"]["outputs"][0]),
    "a mean of many numbers": lambda m: m["preprocessing"].update(mean=[[0.5] * 100] * 100),
    "a mean that is a text": lambda m: m["preprocessing"].update(mean=["a", "b", "c"]),
    "no deviation": lambda m: m["preprocessing"].update(std=[0, 0, 0]),
    "no preprocessing": lambda m: m.update(preprocessing={}),
    "labels that are none": lambda m: m.update(labels={"a": 1}),
    "a zero point that is none": lambda m: _input(m).update(scale=1.0, zero_point=[0]),
    "selected a list": lambda m: m.update(selected=[m["selected"]]),
    "a file that leads out": lambda m: m["files"][0].update(path="../../etc/passwd"),
    "a file of another kind": lambda m: m["files"][0].update(size_bytes="1"),
}  # fmt: skip


def _outcome(call: Callable[[], int]) -> int:
    """The exit code of a verb; anything but an error of ours fails the test."""
    try:
        return call()
    except CompilerError as error:
        return error.exit_code


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_manifest_is_refused_by_what_opens_and_measures_and_breaks_nothing_else(
    version: Path, images: Path, tmp_path: Path, lie: str
) -> None:
    malice.seal(version, LIES[lie])
    before = sorted(p for p in tmp_path.rglob("*") if "pulled" not in p.parts)
    with pytest.raises((ConfigError, IntegrityError)):
        runtime.load(version)
    bundle = ["--write-bundle", str(tmp_path / "bundle")]
    assert _outcome(lambda: run.run([str(version), "--input", str(images), "--output", str(tmp_path / "y.npy")])) in (
        2,
        6,
    )
    assert _outcome(lambda: measure.run([str(version), "--samples", str(images), *bundle])) in (0, 2, 6)
    assert _outcome(lambda: show.run([str(version)])) in (0, 6)
    assert _outcome(lambda: show.run([str(version), "--json"])) in (0, 6)
    assert _outcome(lambda: report.run([str(version), "--output", str(tmp_path / "bundle" / "r.html")])) in (0, 6)
    assert _outcome(lambda: compare.run([str(version), str(version)])) in (0, 2, 6)
    assert _outcome(lambda: verify.run([str(version)])) in (0, 6)
    shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
    assert sorted(p for p in tmp_path.rglob("*") if "pulled" not in p.parts) == before
    assert not Path("/tmp/escaped").exists()


def test_resizing_to_a_billion_pixels_is_refused(version: Path) -> None:
    malice.seal(version, lambda m: m["preprocessing"].update(resize=10**9, crop=10**9))
    with pytest.raises(IntegrityError, match="resize is 1000000000"):
        runtime.load(version)


def test_terminal_escapes_of_a_manifest_reach_no_terminal(version: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\n error: fine"

    def change(manifest: dict[str, Any]) -> None:
        manifest |= {"labels": [evil], "selected_because": evil, "model": evil}
        _chosen(manifest)["reason"] = evil
        _chosen(manifest)["latency_ms"] |= {"stable": False, "unstable_reasons": [evil]}

    malice.seal(version, change)
    (version / f"a{evil.replace('/', '')}").write_text("")
    for arguments in (["show", version], ["show", version, "--json"], ["compare", version, version, "--json"],
                      ["verify", version], ["report", version, "--output", tmp_path / "r.html"]):  # fmt: skip
        done = command(*arguments)
        assert done.code in (0, 2, 6) and "Traceback" not in done.err, arguments
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.out + done.err), arguments


JSON_BOMBS = {
    "nested": b"[" * 200_000, "objects": b'{"a":' * 200_000, "digits": b'{"schema_version": ' + b"9" * 100_000 + b"}",
    "nan": b'{"schema_version": NaN}', "text": b"\xff\xfe", "empty": b"", "list": b"[]", "null": b"null",
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_json_that_is_no_manifest_and_no_bundle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_bytes(JSON_BOMBS[name])
    (tmp_path / "bundle.json").write_bytes(JSON_BOMBS[name])
    for read in (read_manifest, bundles.read):
        with pytest.raises(IntegrityError):
            read(tmp_path)


@pytest.mark.parametrize(
    "text", [b'{"a": 1, "a": 2}', b'{"a": 1e999}', b'{"a": -Infinity}', b'{"a": NaN}', b"[" * 10**6]
)
def test_json_that_two_readers_could_understand_differently_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"twice|large|number|deeply"):
        parse_json(text)


def test_json_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.json").open("wb") as stream:
        stream.truncate(1 << 40)  # no blocks on the disk
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "m.json")
    (tmp_path / "m.json").rename(tmp_path / "manifest.json")
    with pytest.raises(IntegrityError, match="larger than"):
        read_manifest(tmp_path)


def test_arrays_come_back_as_they_were_saved(tmp_path: Path) -> None:
    values = {"a/0": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.float32(2.5), "c": np.zeros((0, 3), bool)}
    np.savez_compressed(tmp_path / "a.npz", **values)  # type: ignore[arg-type]
    found = load_arrays(tmp_path / "a.npz")
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in values.items()
    )
    assert describe_arrays(tmp_path / "a.npz")["a/0"] == ((2, 3), "int64")
    np.save(tmp_path / "f.npy", np.asfortranarray(values["a/0"]))
    assert np.array_equal(load_array(tmp_path / "f.npy"), values["a/0"])


def test_arrays_that_are_pickles_bombs_or_none_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    huge = malice.header((10**6, 10**6))
    single = {
        "pickle": malice.pickled(canary), "huge": huge, "negative": malice.header((-1, 4), body=bytes(16)),
        "overflow": malice.header((2**40, 2**40)), "short": malice.header((4,), body=b"abc"),
        "long": malice.header((1,), body=bytes(400)), "text": malice.header((1,), "<U4", bytes(16)),
        "void": malice.header((1,), "|V4", bytes(4)), "none": b"hello", "empty": b"",
        "deep": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
    }  # fmt: skip
    for name, content in single.items():
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(ValueError):
            load_array(tmp_path / "x.npy")
        (tmp_path / "x.npz").write_bytes(malice.archive(weight=content))
        with pytest.raises(ValueError):
            load_arrays(tmp_path / "x.npz")
        with pytest.raises(ValueError):
            describe_arrays(tmp_path / "x.npz")
        assert not canary.exists(), name
    damaged = bytearray(malice.archive(weight=malice.header((64,), body=bytes(256))))
    damaged[60] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(damaged)
    with pytest.raises(ValueError):
        load_arrays(tmp_path / "x.npz")


def test_the_pickle_that_is_refused_would_have_run(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(malice.pickled(tmp_path / "canary"))
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert (tmp_path / "canary").exists()


def test_gigabytes_of_zeros_in_a_model_and_in_given_samples_stay_packed(
    version: Path, images: Path, tmp_path: Path
) -> None:
    content = malice.bomb()
    assert len(content) < 8 << 20
    malice.write(version, "model.npz", content)
    malice.seal(version)
    (tmp_path / "bomb.npy").write_bytes(malice.header((10**6, 10**6), "|u1"))
    good = tmp_path / "y.npy"
    runs: list[list[object]] = [
        ["run", version, "--input", images, "--output", good],
        ["measure", version, "--samples", tmp_path / "bomb.npy"],
        ["run", version, "--input", tmp_path / "bomb.npy", "--output", good],
    ]
    for arguments in runs:
        done = command(*arguments, preexec_fn=malice.limited)
        _refused(done)
    assert not good.exists()


def _refused(done: Done) -> None:
    assert done.code in (2, 6), (done.code, done.err[-2000:])
    assert "Traceback" not in done.err and done.last_lines()[1].startswith("error: ")


def test_a_measurement_from_a_device_is_data(version: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    _, manifest = read_manifest(version)
    shutil.copyfile(version / "latencies.npz", out / "latencies.npz")
    result = json.loads((version / "measurement.json").read_text())
    good = json.dumps(result)
    (out / "measurement.json").write_text(good)
    assert append(version, manifest, out).is_dir()
    first = next(iter(result["candidates"].values()))

    def refused(text: str | None = None) -> None:
        (out / "measurement.json").write_text(text or json.dumps(result))
        with pytest.raises(IntegrityError):
            append(version, manifest, out)

    for figures in ({"p50": 1e400}, {"p50": True}, {"p95": "1"}, {"ci95": [1]}, {"ci95": None}, {"stable": 1},
                    {"unstable_reasons": [1]}):  # fmt: skip
        kept = dict(first["latency_ms"])
        first["latency_ms"] |= figures
        refused()
        first["latency_ms"] = kept
    refused(good.replace('"speedup_reference"', '"candidates": {}, "speedup_reference"'))
    refused(good.replace(manifest["selected"], "../escaped"))
    (out / "measurement.json").write_text(good)
    for content in (malice.pickled(tmp_path / "canary"), malice.archive(a=malice.pickled(tmp_path / "canary")),
                    malice.archive(a=malice.header((4,), "<f4", bytes(16)))):  # fmt: skip
        malice.write(out, "latencies.npz", content)
        refused(good)
    secret = tmp_path / "secret"
    secret.write_bytes((version / "latencies.npz").read_bytes())
    (out / "latencies.npz").unlink()
    (out / "latencies.npz").symlink_to(secret)
    with pytest.raises(IntegrityError, match="is a link"):
        append(version, manifest, out)
    assert not (tmp_path / "canary").exists()


def test_a_bundle_from_elsewhere_runs_no_code_but_ours(version: Path, images: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    assert measure.run([str(version), "--samples", str(images), "--write-bundle", str(target)]) == 0
    from compiler.runtime.measure import main

    spec = json.loads((target / "bundle.json").read_text())
    (tmp_path / "evilmodule.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\ndef open(*a): raise OSError\n")

    def refused(**change: Any) -> None:
        altered = json.loads(json.dumps(spec))
        altered["candidates"][0] |= change
        (target / "bundle.json").write_text(json.dumps(altered))
        assert main([str(target), str(tmp_path / "out")]) == 6

    refused(runtime="evilmodule.x")
    refused(runtime="torch_export")
    refused(runtime="pytorch", options={"architecture": "evilmodule:open"})
    refused(id="../escaped")
    refused(file="../../etc/passwd")
    refused(file="bundle.json")
    shutil.move(target / "samples.npy", tmp_path / "samples.npy")
    (target / "samples.npy").symlink_to(tmp_path / "samples.npy")
    refused()
    assert not (tmp_path / "canary").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_onnx_data_outside_the_version_is_not_read(version: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(range(64)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "folder" / "model.onnx").write_bytes(malice.onnx_model(location))
    from compiler.runtime.onnxruntime import open as open_onnx

    with pytest.raises(Exception, match=r"(?i)external|path|memory"):  # the library itself, whoever calls it
        open_onnx(tmp_path / "folder" / "model.onnx", {})
    malice.disguise(version, "onnxruntime", {"model.onnx": malice.onnx_model(location)})
    with pytest.raises(ConfigError, match="cannot open"):
        runtime.load(version)


def test_onnx_data_that_the_manifest_does_not_name_is_not_read(version: Path) -> None:
    data = np.eye(4, dtype=np.float32).tobytes()
    malice.disguise(version, "onnxruntime", {"model.onnx": malice.onnx_model("w.data"), "w.data": data})
    assert np.array_equal(runtime.load(version).run([np.ones((1, 4), np.float32)])[0], np.ones((1, 4)))
    malice.seal(version, lambda m: m["files"].remove(next(f for f in m["files"] if f["path"] == "w.data")))
    with pytest.raises(IntegrityError, match=r"w\.data is not named"):
        runtime.load(version)


def test_models_that_are_damaged_inside_are_errors_of_ours(version: Path, tmp_path: Path) -> None:
    openvino = malice.openvino_model(tmp_path)
    xml, weights = openvino["model.xml"], openvino["model.bin"]
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    onnx, tflite = malice.onnx_model(None), malice.tflite_model()
    whole: list[tuple[str, dict[str, bytes], dict[str, Any]]] = [
        ("openvino", openvino, precision), ("onnxruntime", {"model.onnx": onnx}, {}),
        ("tflite", {"model.tflite": tflite}, {}),
    ]  # fmt: skip
    damaged: list[tuple[str, dict[str, bytes]]] = [
        ("openvino", {"model.xml": xml, "model.bin": weights[:3]}),
        ("openvino", {"model.xml": xml}),
        *(
            ("openvino", {"model.xml": xml.replace(old, new), "model.bin": weights})
            for old, new in (
                (b'offset="0"', b'offset="99999999999"'), (b'shape="1, 4" offset', b'shape="99999, 99999" offset'),
                (b'version="opset1"', b'version="mine"'), (b"<net ", b'<!DOCTYPE n [<!ENTITY a "b">]><net '),
            )
        ),
        ("openvino", {"model.xml": onnx, "model.bin": weights}),
        ("openvino", {"model.xml": b"<net>" * 100_000}),
        ("onnxruntime", {"model.onnx": onnx[:40]}),
        ("onnxruntime", {"model.onnx": b"ORTM" * 20}),
        ("onnxruntime", {"model.onnx": tflite}),
        ("tflite", {"model.tflite": tflite[:-40]}),
        ("tflite", {"model.tflite": b"\0\0\0\x7fTFL3" + bytes(64)}),
        ("tflite", {"model.tflite": onnx}),
        ("null", {"model.npz": b"PK"}),
    ]  # fmt: skip
    x = np.ones((1, 4), np.float32)
    for number, (name, files, options) in enumerate(whole):
        folder = Path(shutil.copytree(version, tmp_path / f"whole{number}"))
        assert runtime.load(malice.disguise(folder, name, files, options)).run([x])[0].shape == (1, 4), name
    for number, (name, files) in enumerate(damaged):
        folder = Path(shutil.copytree(version, tmp_path / f"damaged{number}"))
        malice.disguise(folder, name, files, precision if name == "openvino" else {})
        with pytest.raises((ConfigError, IntegrityError)):
            runtime.load(folder).run([x])


def test_an_answer_of_another_size_than_the_question_is_refused(version: Path) -> None:
    model = runtime.load(version)

    class Lying:
        def run(self, _inputs: Any) -> list[Any]:
            return [np.float32(1.0)]

    model._sessions = [Lying()]  # type: ignore[list-item]
    with pytest.raises(IntegrityError, match="another batch"):
        model.predict(np.zeros((1, 8, 8, 3), np.uint8))
