"""A finished version measured again, profiled, compared: what was built stays as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import First, Project, command, environment

from compiler.commands import compare
from compiler.observations import DEFAULT_PROTOCOL, append, store_of, version_bundle
from compiler.runtime.verify import read_manifest

SHORT = ["--rounds", "1", "--seconds", "0"]


@pytest.fixture(scope="module")
def version(first: First, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of the null model; tests must not change it."""
    project = Project(tmp_path_factory.mktemp("observed"))
    shutil.copytree(first.project.artifacts, project.artifacts, symlinks=True)
    return project.latest


def _digests(folder: Path) -> dict[str, Any]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.iterdir())}


def test_measuring_again_appends_a_dated_observation_and_leaves_the_version_as_it_is(version: Path) -> None:
    before = _digests(version)
    first = command("measure", version, *SHORT)
    second = command("measure", version, *SHORT)
    assert first.code == second.code == 0
    folders = [Path(done.out.strip().splitlines()[-1]) for done in (first, second)]
    assert folders[0] != folders[1] and all((f / "latencies.npz").exists() for f in folders)
    assert folders[0].parent == version.parent / ".observations" / version.name
    record = json.loads((folders[0] / "observation.json").read_text())
    assert record["digest"] == json.loads((version / "manifest.json").read_text())["digest"]
    assert set(record["candidates"]) == {"null_baseline", "null_int8"} or "null_fp32" in record["candidates"]
    assert _digests(version) == before
    assert "measured again" in command("show", version).out and command("verify", version).code == 0


def test_all_candidates_are_measured_again_on_request(version: Path) -> None:
    done = command("measure", version, *SHORT, "--all", "--json")
    assert set(json.loads(done.out)["candidates"]) == {"null_baseline", "null_fp32", "null_int8"}


def test_a_bundle_travels_and_its_result_comes_back(version: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    assert command("measure", version, *SHORT, "--write-bundle", target).code == 0
    there = {**environment(), "PYTHONPATH": ""}
    ran = subprocess.run(
        [sys.executable, "-m", "compiler.runtime.measure", ".", "out"], cwd=target, env=there, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    back = command("measure", version, "--add", target / "out")
    assert back.code == 0 and (Path(back.out.strip().splitlines()[-1]) / "observation.json").exists()


def test_a_result_of_another_model_is_refused(version: Path, tmp_path: Path) -> None:
    done = command("measure", version, *SHORT)
    out = tmp_path / "out"
    shutil.copytree(Path(done.out.strip().splitlines()[-1]), out)
    _, manifest = read_manifest(version)
    result = json.loads((out / "measurement.json").read_text())
    result["artifacts"][manifest["selected"]] = "0" * 64
    (out / "measurement.json").write_text(json.dumps(result))
    refused = command("measure", version, "--add", out)
    assert refused.code == 6 and "another model" in refused.err
    (out / "measurement.json").write_text("[" * 100_000)
    assert command("measure", version, "--add", out).code == 6
    assert command("measure", version, "--add", tmp_path / "nowhere").code == 2
    assert append  # what refuses is the function behind the verb


def test_an_artifact_from_elsewhere_is_measured_with_given_samples_and_without_the_baseline(
    version: Path, tmp_path: Path
) -> None:
    away = tmp_path / "model" / "target" / version.name
    shutil.copytree(version, away)
    assert store_of(*read_manifest(away)) is None
    lacking = command("measure", away, *SHORT)
    assert lacking.code == 2 and "--samples" in lacking.last_lines()[0]
    with version_bundle(version) as (bundle, manifest):
        shutil.copyfile(bundle / "samples.npy", tmp_path / "samples.npy")
    done = command("measure", away, *SHORT, "--samples", tmp_path / "samples.npy", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert list(record["candidates"]) == [manifest["selected"]] == [record["speedup_reference"]]


def test_a_manifest_from_elsewhere_cannot_name_code(version: Path, tmp_path: Path) -> None:
    away = tmp_path / "model" / "target" / version.name
    shutil.copytree(version, away)
    file = away / "manifest.json"
    file.chmod(0o644)
    manifest = json.loads(file.read_text())
    for row in manifest["candidates"]:
        row["runtime"] = "tests.runtimes.spinner"
    file.write_text(json.dumps(manifest))
    np.save(tmp_path / "samples.npy", np.zeros((2, 4, 4, 3), np.uint8))
    done = command("measure", away, *SHORT, "--samples", tmp_path / "samples.npy")
    assert done.code == 6 and "not one that artifacts may ask for" in done.err


def test_an_altered_version_is_not_measured(version: Path, tmp_path: Path) -> None:
    away = tmp_path / "model" / "target" / version.name
    shutil.copytree(version, away)
    (away / "labels.txt").chmod(0o644)
    (away / "labels.txt").write_text("other\n")
    assert command("measure", away, *SHORT).code == 6


@pytest.mark.parametrize(
    "wrong", [["--rounds", "0"], ["--seconds", "-1"], ["--threads", "0"], ["--sweep", "--max-batch", "0"]]
)
def test_wrong_numbers_are_refused(version: Path, wrong: list[str]) -> None:
    done = command("measure", version, *wrong)
    assert done.code == 2 and "error:" in done.err


def test_curves_are_written_beside_the_version(version: Path) -> None:
    done = command("measure", version, "--sweep", "--seconds", "0.01", "--max-batch", "2", "--threads", "1")
    assert done.code == 0, done.err
    curves = json.loads(Path(done.out.strip().splitlines()[-1]).read_text())["curves"]
    assert [p["batch"] for p in curves["null_baseline"]["points"] if p["streams"] == 1] == [1, 2]
    assert all(curve["largest_batch"]["batch"] == 2 for curve in curves.values())


def test_comparing_with_measure_races_both_in_the_same_rounds(
    version: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, brief in {"max_rounds": 6, "min_calls": 20, "min_seconds": 0.0}.items():  # `measure` may be told so
        monkeypatch.setitem(DEFAULT_PROTOCOL, name, brief)
    assert compare.run([str(version), str(version), "--measure", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out)["rows"] if row["name"] == "p50")
    assert row["verdict"] in ("same", "better", "worse") and "paired" in row["note"]


def test_throughput_picks_a_point_for_each_candidate_and_keeps_the_curves(built: Project) -> None:
    done = built.build("objective=throughput")
    assert done.code == 0, done.err
    manifest = done.manifest
    chosen = next(c for c in manifest["candidates"] if c["id"] == manifest["selected"])
    assert chosen["options"]["batch"] == chosen["latency_ms"]["batch"] > 1
    assert chosen["latency_ms"]["depth"] == "confirm" and chosen["latency_ms"]["rounds"] >= 1
    curves = json.loads((done.manifest_path.parent / "curves.json").read_text())["curves"]
    assert set(curves) == {"null_baseline", "null_fp32", "null_int8"}
    assert {p["status"] for p in curves["null_fp32"]["points"]} == {"ok"}
    assert "samples a second at batch" in done.out
    from compiler import runtime

    model = runtime.load(done.manifest_path.parent)
    shape = manifest["signature"]["inputs"][0]["shape"]
    images = np.zeros((3, shape[1], shape[2], 3), np.uint8)
    assert model.predict(images).shape[0] == 3


def test_a_stated_load_becomes_a_verdict(built: Project) -> None:
    load = ("budget.arrival_rate_per_s=200", "budget.load_p99_ms=1000")  # nine seconds for each candidate
    done = built.build("candidates=[null_int8]", *load)
    assert done.code == 0, done.err
    manifest = done.manifest
    figures = next(c for c in manifest["candidates"] if c["id"] == manifest["selected"])["load"]
    assert figures["rate_per_s"] == 200 and figures["n"] > 300 and figures["kept_up"]
    assert "load_p99_ms" in [v["metric"] for v in manifest["verdicts"]]
    half = built.build("budget.load_p99_ms=5")
    assert half.code == 2 and "belong together" in half.err


def test_three_candidates_are_screened_and_only_contenders_are_confirmed(built: Project) -> None:
    done = built.build("candidates=[null_fp32,null_int8,null_slow]")
    assert done.code == 0 and "screen" in done.executed
    assert done.executed.index("screen") < done.executed.index("benchmark")
    depths = {c["id"]: c["latency_ms"]["depth"] for c in done.manifest["candidates"]}
    assert depths["null_baseline"] == "confirm" == depths[done.manifest["selected"]]
    again = built.build("candidates=[null_fp32,null_int8,null_slow]")
    assert again.executed == [] and again.manifest_path == done.manifest_path


def test_out_of_memory_at_a_large_batch_ends_that_point_not_the_build(built: Project) -> None:
    hungry = [
        "objective=throughput", "budget.peak_memory_mb=300", "steps.sweep.max_batch=8",
        "candidate.null_fp32.runtime=tests.runtimes.spinner", "+candidate.null_fp32.options.mb=60",
        "+candidate.null_fp32.options.us=0",
    ]  # fmt: skip
    done = built.build(*hungry)
    assert done.code in (0, 3), done.err
    curve = json.loads((done.manifest_path.parent / "curves.json").read_text())["curves"]["null_fp32"]
    assert [p["status"] for p in curve["points"]][-1] == "out_of_memory"
    assert curve["largest_batch"]["exhausted"] and 2 <= curve["largest_batch"]["batch"] <= 4
    assert done.manifest["selected"] == "null_int8"


def test_a_model_of_one_batch_has_one_point_that_says_so(built: Project) -> None:
    done = built.build("objective=throughput", "candidate.null_fp32.steps.convert.fixed_batch=true")
    assert done.code == 0, done.err
    points = json.loads((done.manifest_path.parent / "curves.json").read_text())["curves"]["null_fp32"]["points"]
    assert [p["status"] for p in points] == ["ok", "refused"] and "runs at batch 1 only" in points[1]["reason"]
