"""Bad input and bad luck: a clear error with the contract's exit code, and nothing already built is lost."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CONF, ROOT, Project, command, environment
from processes import in_mount_namespace, start, wait_for


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["target=nulltarge"], "unknown target 'nulltarge'; did you mean 'nulltarget'?"),
        (["model=mobilnetv3"], "unknown model 'mobilnetv3'; did you mean 'mobilenetv3'?"),
        (["data=digit"], "unknown data 'digit'; did you mean 'digits'?"),
        (["candidates=[null_fp23]"], "unknown candidate 'null_fp23'; did you mean 'null_fp32'?"),
        (["bugdet.size_mb=3"], "unknown key 'bugdet.size_mb'; did you mean 'budget'?"),
        (["budget.size_md=3"], "unknown key 'budget.size_md'; did you mean 'size_mb'?"),
        (["candidate.null_int8.steps.quantise.bits=4"], "'quantise'; did you mean 'quantize'?"),
        (["candidate.null_int8.steps.quantize.bit=4"], "no field 'bit'; did you mean 'bits'?"),
        (["candidate.null_int9.steps.quantize.bits=4"], "'null_int9'; did you mean 'null_int8'?"),
        (["steps.exprot.scale=2"], "unknown stage 'exprot'; did you mean 'export'?"),
        (["objective=latncy"], "unknown objective 'latncy'; did you mean 'latency'?"),
        (["seed=abc"], "Value 'abc'"),
        (["steps.benchmark.rounds=many"], "rounds"),
        (["data=imagefolder"], "data.root has no value"),
        (["candidates=[]"], "the list of candidates is empty"),
        (["model.name=../x"], "cannot name a folder"),
        (["seed=[a"], "no viable alternative"),
        (["seed"], "'seed' is not KEY=VALUE"),
        (["--jsn"], "unknown flag '--jsn'; did you mean '--json'?"),
    ],
)  # fmt: skip
def test_wrong_word_is_refused_with_the_nearest_right_one(project: Project, overrides: list[str], cause: str) -> None:
    done = project.build(*overrides)
    fix, last = done.last_lines()
    assert done.code == 2
    assert last.startswith("error: ") and cause in last
    assert fix.startswith("try: ")
    assert not project.artifacts.exists()


def test_unknown_verb_and_missing_target_are_usage_errors() -> None:
    assert command("biuld").code == 2 and "did you mean 'build'?" in command("biuld").err
    missing = command("model=mobilenetv3")
    assert missing.code == 2 and "rpi4" in missing.last_lines()[0]


def test_users_file_with_the_name_of_one_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/rpi4.yaml").write_text("name: rpi4\n")
    done = command("plan", "--config-dir", tmp_path, "target=rpi4")
    assert done.code == 2 and "would hide it" in done.last_lines()[1]


def test_unknown_key_in_a_users_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine.yaml").write_text("name: mine\ncandidates: [tflite_fp32]\nthread: 2\n")
    done = command("plan", "--config-dir", tmp_path, "target=mine")
    assert done.code == 2 and "'thread'; did you mean 'threads'?" in done.last_lines()[1].replace(
        "target.thread", "thread"
    )


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("error", "the null converter was told to fail"),
        ("exception", "ValueError: a converter's own exception"),
        ("crash", "was killed by SIGABRT"),
        ("not_a_number", "returns NaN or infinity"),
        ("constant", "computes something else than the step before"),
        ("permute", "computes something else than the step before"),
    ],
)
def test_candidate_that_fails_is_left_out_by_name_and_the_others_are_built(
    built: Project, fail: str, said: str
) -> None:
    done = built.build(f"candidate.null_int8.steps.quantize.fail={fail}")
    assert done.code == 0, done.err
    row = next(c for c in done.manifest["candidates"] if c["id"] == "null_int8")
    assert row["status"] == "failed" and "null_int8.quantize" in row["reason"] and said in row["reason"]
    assert said in done.err and row["reproduce"]
    assert built.build(f"candidate.null_int8.steps.quantize.fail={fail}", "strict=true").code == 5


@pytest.mark.parametrize("step", ["convert", "quantize"])
def test_every_candidate_failing_ends_the_build_with_5(built: Project, step: str) -> None:
    done = built.build("candidates=[null_int8]", f"candidate.null_int8.steps.{step}.fail=crash")
    fix, cause = done.last_lines()
    assert done.code == 5 and f"null_int8.{step} was killed by SIGABRT" in cause and fix.startswith("try: ")


def test_checkpoint_that_does_not_match_its_digest_is_an_integrity_error(project: Project, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    done = project.build(f"model.weights={tmp_path / 'w.safetensors'}", f"model.sha256={'0' * 64}")
    assert done.code == 6 and "SHA-256" in done.last_lines()[1]


def test_missing_checkpoint_is_named_before_any_work(project: Project) -> None:
    done = project.build("model.weights=/no/such/file.pt")
    assert (
        done.code == 2
        and "/no/such/file.pt" in done.last_lines()[1]
        and "done in 0" not in done.err.split("export")[0][-5:]
    )


def test_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    assert command("show", tmp_path).code == 2
    (tmp_path / "manifest.json").write_text("{")
    assert command("show", tmp_path).code == 6


HOSTILE = {
    "escape": lambda m: m["files"][0].update(path="../x"),
    "absolute": lambda m: m["files"][0].update(path="/etc/passwd"),
    "surrogate": lambda m: m["files"][0].update(path="\ud800"),
    "negative size": lambda m: m["files"][0].update(size_bytes=-1),
    "no signature": lambda m: m.pop("signature"),
    "unknown selected": lambda m: m.update(selected="nobody"),
    "candidates": lambda m: m.update(candidates="x"),
    "other schema": lambda m: m.update(schema_version=99),
    "threads": lambda m: [c["options"].update(threads="abc") for c in m["candidates"]],
    "runtime that is code": lambda m: [c.update(runtime="evil") for c in m["candidates"]],
    "module that is code": lambda m: [c.update(runtime="evil.module") for c in m["candidates"]],
    "architecture that is code": lambda m: [
        c.update(runtime="pytorch", options={"threads": 1, "architecture": "evil:pwn"}) for c in m["candidates"]
    ],
    "stray option": lambda m: [c["options"].update(architecture="evil:pwn") for c in m["candidates"]],
}  # fmt: skip


def test_hostile_manifest_is_an_integrity_error_and_names_no_code_to_run(built: Project, tmp_path: Path) -> None:
    folder = built.latest
    good = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\ndef pwn(**_): pass\n")
    (folder / "manifest.json").chmod(0o644)
    for name, change in HOSTILE.items():
        manifest = json.loads(json.dumps(good))
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        done = command("run", folder, "--input", "x.npy", "--output", "y.npy", cwd=tmp_path)
        assert done.code == 6, (name, done.err)
        assert not (tmp_path / "canary").exists(), name
    for text in ("[" * 200_000, '{"schema_version": NaN}', "\x00", "[]"):
        (folder / "manifest.json").write_text(text)
        assert command("verify", folder).code == 6
        assert command("show", folder).code == 6


def test_manifest_cannot_steer_the_terminal(built: Project) -> None:
    path = built.latest / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["selected_because"] = "\x1b]0;owned\x07 [/bold] [red]x"
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    shown = command("show", path.parent)
    assert shown.code == 0 and "\x1b" not in shown.out and "[/bold] [red]x" in shown.out


def test_tampered_manifest_is_not_taken_for_the_builds_result(built: Project) -> None:
    first = built.latest / "manifest.json"
    first.chmod(0o644)
    first.write_text(first.read_text().replace('"status": "provisional"', '"status": "budget_failed"'))
    second = built.build()
    assert second.code == 0 and second.manifest_path != first and second.manifest["status"] == "provisional"


def test_input_that_changes_while_its_step_runs_leaves_nothing_behind(project: Project, tmp_path: Path) -> None:
    weights = tmp_path / "w.bin"
    weights.write_text("good")
    slow = ["steps.export.delay_s=2", f"model.weights={weights}"]
    process = start(project, *slow)
    wait_for(process, "export: running")
    weights.write_text("evil")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "was changed while it ran" in err
    weights.write_text("good")
    assert "export" in project.build(*slow).executed


@pytest.mark.parametrize(
    "overrides",
    [
        ["budget.size_mb=inf"], ["budget.accuracy_drop=nan"], ["executor.time_limit_s=0"], ["executor.jobs=-3"],
        ["target.threads=0"], ["data.splits.report=-1"], ["artifacts_dir="], ["~steps.package"], ["steps.samples=4"],
        ["candidate=3"], ["candidate.null_int8=3"], ["candidates=null_fp32"], ["target=nulltarget,rpi4"],
        ["model.sha256=00"],
        ["candidates=[null_baseline]"], ["candidate.null_fp32.runtime=nul"], ["steps.benchmark.rounds=0"],
        ["candidate.null_fp32.options={token:${oc.env:HOME}}"], ["+foo=1"], ["model.weights=/no/such"],
    ],
)  # fmt: skip
def test_senseless_value_is_a_usage_error_with_something_to_do(project: Project, overrides: list[str]) -> None:
    done = project.build(*overrides)
    fix, cause = done.last_lines()
    assert done.code == 2, done.err
    assert fix.startswith("try: ") and cause.startswith("error: ") and "Traceback" not in done.err


@pytest.mark.parametrize(
    "content", [b"name: [", b"\xff\xfe\x00", b"name: !!python/object/apply:os.system ['touch canary']"]
)
def test_users_yaml_that_is_none_is_named_and_runs_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine.yaml").write_bytes(content)
    done = command("plan", "--config-dir", tmp_path, "target=mine", cwd=tmp_path)
    assert done.code == 2 and "mine.yaml" in done.last_lines()[1]
    assert not (tmp_path / "canary").exists()


def test_folders_with_spaces_commas_and_umlauts_work(tmp_path: Path) -> None:
    folder = tmp_path / "a b, ü[c]"
    conf = folder / "conf"
    shutil.copytree(CONF, conf)
    base = ["--config-dir", conf, "target=nulltarget", "model=nullmodel", f"artifacts_dir='{folder}/x'"]
    done = command(*base)
    assert done.code == 0, done.err
    assert done.manifest_path.is_file() and str(folder) in done.out.split("Model:")[1]


def test_multirun_goes_on_after_a_failed_job_and_ends_at_ctrl_c(built: Project) -> None:
    done = built.build("--multirun", "budget.size_mb=inf,1")
    assert done.code == 2 and "Status: provisional" in done.out
    process = start(built, "--multirun", "candidate.null_slow.steps.convert.delay_s=60,0", "candidates=[null_slow]")
    wait_for(process, "null_slow.convert: running")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "[2/2]" not in err


def test_json_of_a_build_that_fails_its_gate_is_still_printed(built: Project) -> None:
    done = built.build("--json", "budget.size_mb=0.000001")
    assert done.code == 3 and json.loads(done.out)["status"] == "budget_failed"
    plain = built.build("budget.size_mb=0.000001")
    assert plain.code == 3 and plain.manifest["status"] == "budget_failed"


def test_reader_that_goes_away_does_not_end_the_build(project: Project) -> None:
    line = shlex.join([sys.executable, "-m", "compiler", *map(str, project.base)])
    subprocess.run(
        ["bash", "-c", f"{line} 2>&1 | head -1"], cwd=ROOT, env=environment(), check=True, capture_output=True
    )
    deadline = time.monotonic() + 60
    while not list(project.artifacts.glob("nullmodel/nulltarget/latest")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert list(project.artifacts.glob("nullmodel/nulltarget/latest"))


def test_output_that_cannot_be_written_is_a_clear_error(project: Project) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "compiler", "plan", *map(str, project.base)],
            cwd=ROOT, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == "error: cannot write standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_latest_that_is_no_link_is_left_alone_and_said(project: Project) -> None:
    latest = project.artifacts / "nullmodel/nulltarget/latest"
    latest.mkdir(parents=True)
    done = project.build()
    assert done.code == 2 and "left alone" in done.last_lines()[1] and latest.is_dir()


def test_damaged_bookkeeping_is_no_error(built: Project) -> None:
    store = built.artifacts / ".store"
    (store / "memo.json").write_text("[]")
    for path in [*(store / "last").rglob("*.json"), *(store / "actions").rglob("*.json")]:
        path.write_text("{}")
    assert built.build().code == 0


def test_missing_library_is_said_before_any_step_runs(project: Project, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "lacking.py").write_text(
        "import dataclasses\nfrom compiler.backends.null import Convert\n"
        "@dataclasses.dataclass(kw_only=True)\nclass Twist(Convert):\n    tools = ('no-such-distribution',)\n"
    )
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "candidate/lacking.yaml").write_text(
        "backend: mine.lacking\nruntime: 'null'\nprecision: fp32\nafter: export\n"
        "artifact: model.npz\nsteps: {twist: {}}\n"
    )
    base = ["--config-dir", conf, *project.base[2:], "candidates=[lacking]"]
    done = command(*base, cwd=tmp_path)
    assert done.code == 4 and "no-such-distribution (for lacking.twist)" in done.last_lines()[1]
    assert not project.artifacts.exists()


def test_missing_build_packages_are_a_missing_tool_not_a_bug(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['hydra'] = None; from compiler.__main__ import main; "
        "sys.argv = ['c', 'target=rpi4']; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 4 and "'hydra" in done.stderr.strip().splitlines()[-1]


def test_artifacts_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("")
    done = Project(tmp_path).build()
    assert done.code == 2 and "cannot write below" in done.last_lines()[1]


@pytest.mark.parametrize("kilobytes", [24, 100, 180, 300])
def test_full_disk_is_a_clear_error_and_what_was_built_stays(tmp_path: Path, kilobytes: int) -> None:
    inside = (
        f"mount -t tmpfs -o size={kilobytes}k none {tmp_path} && {{build}}; echo code $?; "
        f"mount -o remount,size=64m {tmp_path} && {{build}}"
    )
    done = in_mount_namespace(inside, Project(tmp_path))
    assert "code 5" in done.stdout, done.stderr
    assert "no space left" in done.stderr
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("samples: done") + done.stderr.count("samples: reused") <= 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_disk_of_any_size_is_large_enough_or_said_to_be_full(tmp_path: Path) -> None:
    """The store is whole after each, and the build goes on once there is room."""
    codes = {}
    for kilobytes in range(8, 648, 16):
        folder = tmp_path / str(kilobytes)
        folder.mkdir()
        project = Project(folder)
        fsck = shlex.join([sys.executable, "-m", "compiler", "store", "fsck", f"artifacts_dir={project.artifacts}"])
        inside = (
            f"mount -t tmpfs -o size={kilobytes}k none {folder} && {{build}}; echo code $?; "
            f"mount -o remount,size=64m {folder} && if [ -d {project.artifacts}/.store ]; then {fsck}; fi && {{build}}"
        )
        done = in_mount_namespace(inside, project)
        codes[kilobytes] = int(done.stdout.split("code ")[1].split()[0])
        assert codes[kilobytes] == 0 or (codes[kilobytes] == 5 and "no space left" in done.stderr), done.stderr
        assert "internal error" not in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0, (kilobytes, done.stderr)
    print(f"{len(codes)} of {len(codes)} sizes, {list(codes.values()).count(5)} of them too small")
    assert codes[8] == 5 and codes[632] == 0
