"""A build of the null backend: what is built, what is reused, what a person and a script get to see."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jsonschema
import pytest
from conftest import First, Project, command

PREFIX = ["samples", "export"]


def test_build_ends_with_the_path_of_a_valid_manifest(first: First, schema: dict[str, object]) -> None:
    done = first.done
    assert done.code == 0, done.err
    jsonschema.validate(done.manifest, schema)
    # one round cannot tell whether the candidate is faster than the baseline
    assert done.manifest["status"] == "provisional"
    assert [v["metric"] for v in done.manifest["verdicts"] if v["result"] == "unproven"] == ["speedup"]
    assert done.manifest_path.parent.name == done.manifest["version"]
    assert {c["id"] for c in done.manifest["candidates"]} == {"null_baseline", "null_fp32", "null_int8"}


def test_json_output_is_the_manifest_and_nothing_else(project: Project, schema: dict[str, object]) -> None:
    done = project.build("--json")
    jsonschema.validate(json.loads(done.out), schema)


def test_second_build_runs_no_step_and_writes_no_version(first: First, built: Project) -> None:
    second = built.build()
    assert second.code == 0
    assert second.executed == []
    assert second.manifest_path == built.latest / "manifest.json" and second.manifest == first.manifest
    assert len(list(built.latest.parent.glob("2*"))) == 1
    assert "Nothing to do" in second.out


def test_changed_quantizer_runs_only_what_is_downstream(built: Project) -> None:
    done = built.build("candidate.null_int8.steps.quantize.bits=6")
    ran = done.executed
    assert "null_int8.quantize" in ran and "benchmark" in ran
    assert not {"samples", "export", "null_fp32.convert"} & set(ran)
    assert "null_int8.quantize: running (field bits from 8 to 6)" in done.err


def test_going_back_to_an_earlier_configuration_reuses_its_version(built: Project) -> None:
    first = built.latest / "manifest.json"
    second = built.build("budget.accuracy_drop=2")
    assert second.manifest_path != first
    third = built.build()
    assert third.executed == [] and third.manifest_path == first
    assert built.latest == second.manifest_path.parent.resolve()  # the newest, whatever was asked for since


def test_candidates_share_equal_steps(project: Project) -> None:
    rows = project.plan()
    assert rows["null_fp32.convert"]["also"] == ["null_int8.convert"]
    assert "null_int8.convert" not in rows


def test_two_targets_share_the_prefix(built: Project, tmp_path: Path) -> None:
    own = tmp_path / "conf"
    shutil.copytree(Path(built.base[1]), own)  # type: ignore[arg-type]
    text = (
        (own / "target/nulltarget.yaml")
        .read_text()
        .replace("name: nulltarget", "name: other")
        .replace("threads: 1", "threads: 2")
    )
    (own / "target/other.yaml").write_text(text)
    done = command("--config-dir", own, "target=other", "model=nullmodel", f"artifacts_dir={built.artifacts}")
    assert done.code == 0, done.err
    assert not {"samples", "export", "null_fp32.convert", "null_int8.quantize"} & set(done.executed)


def test_multirun_builds_every_job_and_ends_with_the_most_severe_code(built: Project) -> None:
    done = built.build("--multirun", "seed=0,1", "budget.size_mb=null,0.000001")
    assert done.code == 3
    assert len(list((built.artifacts / "nullmodel/nulltarget").glob("2*/manifest.json"))) == 4


def test_plan_says_hit_miss_pending_and_on_demand_and_runs_nothing(built: Project, tmp_path: Path) -> None:
    empty = Project(tmp_path / "empty")
    before = empty.plan()
    assert before["samples"]["state"] == "miss" and before["samples"]["why"] == "first run"
    assert before["export"] == {**before["export"], "state": "pending", "why": "after samples", "key": None}
    assert before["evaluate.report.null_int8"]["state"] == "on demand"
    assert not empty.artifacts.exists()
    after = built.plan()
    assert after["export"]["state"] == "hit"
    assert after["select"]["state"] == "pending"


def test_accuracy_is_evaluated_from_the_fastest_until_one_meets_the_budget(project: Project) -> None:
    delays = [
        "candidate.null_int8.runtime=tests.runtimes.delayed", "+candidate.null_int8.options.us=1000",
        "candidate.null_slow.runtime=tests.runtimes.delayed", "+candidate.null_slow.options.us=3000",
    ]  # fmt: skip
    done = project.build("candidates=[null_fp32,null_slow,null_int8]", *delays)
    ran = [name for name in done.executed if name.startswith("evaluate.selection.")]
    assert len(ran) == 2  # the baseline and the fastest
    skipped = [c for c in done.manifest["candidates"] if c["status"] == "skipped"]
    assert len(skipped) == 2 and all(c["accuracy"] is None for c in skipped)


def test_evaluate_all_gives_every_candidate_its_accuracy(built: Project) -> None:
    done = built.build("evaluate=all")
    assert all(c["accuracy"]["split"] == "report" for c in done.manifest["candidates"])


def test_untrained_network_gets_no_accuracy_and_a_sentence(project: Project) -> None:
    done = project.build("steps.export.trained=false")
    assert done.code == 0
    manifest = done.manifest
    assert manifest["status"] == "provisional"
    assert all(c["accuracy"] is None for c in manifest["candidates"])
    assert "no accuracy is claimed" in manifest["weights"]["claim"] and "no accuracy is claimed" in done.out
    assert {v["metric"]: v["result"] for v in manifest["verdicts"]}["accuracy_drop"] == "unproven"


def test_budget_that_nothing_meets_names_the_nearest_candidate_and_keeps_latest(built: Project) -> None:
    good = built.latest
    done = built.build("budget.size_mb=0.000001")
    fix, cause = done.last_lines()
    assert done.code == 3
    assert "the budget is not met" in cause and "nearest candidate: null_" in cause
    assert "the artifact is at" in fix
    assert built.latest == good


def test_figures_from_a_host_that_is_not_the_target_stay_unproven(built: Project) -> None:
    foreign = ["target.match.cpu_model=NoSuchProcessor", "target.match.this_host=false", "budget.latency_p95_ms=1000"]
    done = built.build(*foreign)
    assert done.code == 0
    manifest = done.manifest
    verdict = next(v for v in manifest["verdicts"] if v["metric"] == "latency_p95_ms")
    assert manifest["status"] == "provisional" and verdict["result"] == "unproven"
    assert "proxy" in verdict["reason"] and "Latency is a proxy" in done.out
    assert manifest["measured_on"][0]["kind"] == "proxy"
    assert built.build(*foreign, "strict=true").code == 3


def test_artifact_is_verified_and_run_from_the_command_line(first: First, tmp_path: Path) -> None:
    import numpy as np

    folder = first.project.latest
    assert command("verify", folder).code == 0
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    done = command("run", folder, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert done.code == 0, done.err
    assert np.load(tmp_path / "y.npy").shape == (3, 4)


@pytest.mark.parametrize("damage", ["alter", "remove", "add", "link", "manifest"])
def test_verify_names_what_does_not_match(built: Project, damage: str) -> None:
    folder = built.latest
    model = folder / "model.npz"
    model.chmod(0o644)
    if damage == "alter":
        data = bytearray(model.read_bytes())
        data[40] ^= 1
        model.write_bytes(data)
    elif damage == "remove":
        model.unlink()
    elif damage == "add":
        (folder / "extra.bin").write_bytes(b"x")
    elif damage == "link":
        target = model.rename(folder.parent / "elsewhere.npz")
        model.symlink_to(target)
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][0]["sha256"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
    done = command("verify", folder)
    named = {"add": "extra.bin", "manifest": "digest"}.get(damage, "model.npz")
    assert done.code == 6 and named in done.last_lines()[1]
    assert command("run", folder, "--input", "x.npy", "--output", "y.npy").code == 6


def test_show_prints_the_table_again(first: First) -> None:
    shown = command("show", first.project.latest)
    assert shown.code == 0
    assert shown.out.split("Model:")[0].strip() == first.done.out.split("Model:")[0].strip()


def test_artifact_whose_file_was_damaged_is_written_again(built: Project) -> None:
    first = built.latest
    model = first / "model.npz"
    model.chmod(0o644)
    model.write_bytes(b"")
    second = built.build()
    assert second.code == 0 and second.manifest_path != first / "manifest.json"
    assert command("verify", second.manifest_path.parent).code == 0


def test_builds_from_any_folder_without_leaving_anything_there(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert project.build(cwd=elsewhere).code == 0
    assert list(elsewhere.iterdir()) == []


def test_no_machine_name_or_folder_in_the_delivered_files(first: First) -> None:
    folder = first.project.latest
    needles = [
        str(first.project.artifacts.parent).encode(),
        os.uname().nodename.encode() + b"/",
        str(Path.home()).encode() + b"/",
    ]
    for file in folder.iterdir():
        if file.name != "manifest.json":  # the manifest keeps the configuration, artifacts_dir included
            assert not any(needle in file.read_bytes() for needle in needles), file


def test_toolchain_runs_a_step_under_its_own_interpreter(built: Project, tmp_path: Path) -> None:
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "env"], check=True
    )
    python = tmp_path / "env/bin/python"
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    import numpy

    (site / "path.pth").write_text(str(Path(numpy.__file__).parent.parent))
    arguments = [f"toolchains.old.python={python}", "candidate.null_fp32.steps.convert.toolchain=old"]
    done = built.build(*arguments, "candidates=[null_fp32]")
    assert done.code == 0, done.err
    bad = built.build("toolchains.old.python=/no/such/python", "candidate.null_fp32.steps.convert.toolchain=old")
    assert bad.code == 4 and "/no/such/python" in bad.last_lines()[1]


def test_the_tolerance_of_a_conversion_is_in_the_configuration(project: Project) -> None:
    noise = "candidate.null_int8.steps.convert.noise=0.001"
    strict = project.build(noise, "candidate.null_int8.steps.quantize.min_cosine=1.0")
    row = next(c for c in strict.manifest["candidates"] if c["id"] == "null_int8")
    assert row["status"] == "failed" and "(at least 1)" in row["reason"], strict.err
    wrong = project.build("candidate.null_int8.steps.quantize.min_cosine=2")
    assert wrong.code == 2 and "min_cosine is 2" in wrong.last_lines()[1]
