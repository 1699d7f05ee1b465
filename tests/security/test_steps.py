"""What a step leaves behind fails its candidate in words, not the build, and outlives neither its time nor itself."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, First, Project, command, environment
from processes import processes

from compiler.canonical import file_digest
from compiler.disk import remove_tree
from compiler.live_progress import LiveWatcher
from compiler.store import TooSlow, UnfitError, incoming
from compiler.words import words

HERE = Path(__file__).parent
SECONDS = 180
"""A build of one group takes less, also on a busy machine; what hangs is ended by its limit of a few seconds."""
CANDIDATE = (
    "backend: misbehaving.backend\nruntime: 'null'\nprecision: fp32\nafter: export\nartifact: model.npz\n"
    "steps: {{{stage}: {{how: {how}}}{more}}}\n"
)
REFUSE = ", refuse: {stage: misbehaving.backend.refuse}"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")

RESULTS = {
    "a_link_to_a_file": "passwd, which is a link",
    "a_link_in_place_of_the_model": "model.npz, which is a link",
    "links_in_a_circle": "which is a link",
    "a_link_that_leads_nowhere": "a, which is a link",
    "a_link_to_a_folder": "etc, which is a link",
    "a_link_to_the_folder_itself": "again, which is a link",
    "a_hard_link": "linked, which has other names too",
    "a_fifo": "fifo, which is neither a file nor a folder",
    "a_socket": "socket, which is neither a file nor a folder",
    "a_device": "null, which is neither a file nor a folder",
    "a_name_that_is_not_utf8": "name that is not UTF-8",
    "a_folder_whose_name_is_not_utf8": "name that is not UTF-8",
    "a_name_of_two_lines": "name with control characters",
    "a_name_with_escapes": "name with control characters",
    "folders_fifteen_hundred_deep": "more than 64 folders in each other",
    "a_terabyte_of_nothing": "more than the disk holds",
    "more_than_the_disk_in_ten_files": "more than the disk holds",
    "no_result_folder": "no folder of results",
    "a_link_in_place_of_the_result_folder": "no folder of results",
    "a_file_in_place_of_the_result_folder": "no folder of results",
    "no_working_folder": "removed its working folder",
    "no_working_folder_and_gone": "removed its working folder",
    "a_link_in_place_of_the_working_folder": "removed its working folder",
}
ANSWERS = {
    "no_answer": "ended with exit code 0 and no answer",
    "an_empty_answer": "answer cannot be read",
    "an_answer_that_is_no_json": "answer cannot be read",
    "an_answer_that_is_not_utf8": "answer cannot be read",
    "an_answer_that_is_a_list": "answer cannot be read",
    "an_answer_that_is_a_number": "answer cannot be read: NaN",
    "an_answer_a_hundred_thousand_deep": "answer cannot be read: it is nested too deeply",
    "an_answer_of_many_digits": "answer cannot be read",
    "an_answer_of_a_terabyte": "answer cannot be read: it is larger than",
    "an_answer_that_is_a_fifo": "answer cannot be read: it is not a regular file",
    "an_answer_that_is_a_folder": "answer cannot be read: it is not a regular file",
    "an_answer_that_is_a_device": "answer cannot be read",
    "an_answer_that_is_a_circle": "answer cannot be read",
    "an_answer_whose_parts_are_of_other_types": "answer cannot be read: loaded",
    "an_answer_with_reads_of_other_types": "answer cannot be read: reads",
    "an_answer_with_half_characters": "answer cannot be read: loaded",
    "an_answer_with_a_key_twice": "answer cannot be read: a key occurs twice",
    "an_answer_that_half_denies": "answer cannot be read: ok",
    "an_error_of_no_words": "the step failed without a word",
    "an_error_with_escapes": "?[31mred",
    "an_error_of_megabytes": "wwww",
    "an_error_number_that_is_none": "so it is",
    "an_answer_without_facts": "facts.json",
    "facts_that_are_replaced": "facts.json",
    "facts_that_are_a_terabyte": "facts.json",
}
WORDS = {
    "facts_with_nan": "the stage's facts: NaN",
    "facts_with_infinity": "the stage's facts: -Infinity",
    "facts_of_no_json": "the stage's facts: ",
    "facts_that_are_a_list": "the stage's facts: a list, not a mapping",
    "facts_in_a_circle": "the stage's facts: ",
    "facts_five_hundred_deep": "the stage's facts: ",
    "facts_with_half_characters": "the stage's facts: ",
    "facts_of_a_hundred_megabytes": "the stage's facts: ",
    "facts_with_another_fidelity": "the stage's facts: fidelity",
    "facts_bound_to_nothing": "the stage's facts: bound_to",
    "an_error_whose_words_cannot_be_had": "Unspeakable: (its words cannot be had)",
    "an_error_whose_words_are_no_text": "OfNoText: (its words cannot be had)",
    "an_error_whose_type_has_an_odd_name": "?[31mred",
    "an_error_of_ten_megabytes": "ValueError: xxxx",
    "an_error_of_ours_of_ten_megabytes": "xxxx",
    "an_error_of_ours_of_no_text": "{1, 2}",
    "an_error_that_steers_the_terminal": "ValueError: ?[31mred",
    "an_error_of_ours_that_steers_the_terminal": "?[31mred",
    "a_keyboard_interrupt": "KeyboardInterrupt: (no message)",
    "an_exit_with_zero": "SystemExit: 0",
    "an_exit_with_words": "SystemExit: ?[31mred",
    "a_base_exception": "BaseException: a base exception",
    "endless_recursion": "RecursionError",
    "a_stack_overflow": "",
    "a_wild_pointer": "was killed by SIGSEGV",
    "the_words_of_a_full_disk": "no space left where I looked",
    "binary_output": "ValueError: after binary output",
    "a_log_that_steers_the_terminal": "was killed by SIGABRT",
    "a_log_that_is_a_fifo": "was killed by SIGABRT",
    "a_log_that_is_another_file": "was killed by SIGABRT",
    "closed_streams": "ValueError: after its streams were closed",
}
MODELS = {
    "no_model": "the step made no model.npz",
    "a_model_without_a_signature": "its signature.json is not valid: No such file",
    "a_signature_that_is_a_list": "its signature.json is not valid: ",
    "a_signature_of_huge_tensors": "its signature.json is not valid: the shape",
    "a_signature_without_a_claim": "its signature.json is not valid: 'claim' is missing",
    "a_signature_a_hundred_thousand_deep": "its signature.json is not valid: it is nested too deeply",
    "weights_of_an_odd_name": "is no name that an artifact's file may have",
}
PROCESSES = {
    "a_flood_without_lines": "wrote more than",
    "a_stopped_process": "ran past its time limit of 4 s",
    "a_deaf_process": "ran past its time limit of 4 s",
    "an_endless_loop_in_c": "ran past its time limit of 4 s",
    "many_processes": "ran past its time limit of 4 s",
    "the_end_of_its_own_group": "was killed by SIGKILL",
    "the_end_of_its_parents_group": "was killed by SIGKILL",
    "the_end_of_its_parent": "was killed by SIGKILL",
    "a_daemon_and_an_error": "ValueError: and it left a daemon",
    "a_daemon_and_a_crash": "was killed by SIGABRT",
    "a_changed_input": "changed its input",
    "a_file_more_in_an_input": "changed its input",
    "an_input_less": "changed its input",
}
HARMLESS = (
    "a_daemon", "children_that_stay", "a_child_that_writes_after_the_answer", "a_thread_that_never_ends",
    "an_exit_handler_that_hangs", "another_working_folder", "no_permissions",
    "progress_that_is_a_fifo", "progress_that_is_a_folder", "progress_that_is_a_device", "progress_of_a_terabyte",
    "progress_that_is_a_list", "progress_without_its_parts", "progress_of_other_types", "progress_of_no_numbers",
    "progress_of_many_digits", "progress_a_hundred_thousand_deep", "progress_that_steers_the_terminal",
    "folders_twenty_deep", "names_that_differ_in_case", "a_name_of_255_characters", "names_in_other_scripts",
    "empty_folders", "facts_that_steer_the_terminal", "facts_of_many_digits",
)  # fmt: skip
MEASURED = ("no_permissions", "a_child_that_writes_after_the_answer")
"""Harmless ones that convert, too: their models are measured. The others have a whole result, on which a step
follows that fails: nothing needs to be measured."""
GROUPS: dict[str, dict[str, str]] = {
    "quick": RESULTS | ANSWERS | WORDS | MODELS | dict.fromkeys(HARMLESS, ""),
    "processes": PROCESSES,
}
FAILING = [(group, how) for group in GROUPS for how in GROUPS[group] if how not in HARMLESS]


@dataclass
class Built:
    """A build in which every case of a group is a candidate, beside one that behaves."""

    project: Project
    done: Done
    seconds: float
    rows: dict[str, Any]


def _project(folder: Path, first: First, cases: dict[str, str]) -> Project:
    """A project that has a candidate for each case, and the results of those that behave."""
    (folder / "conf/candidate").mkdir(parents=True)
    for how in cases:
        stage = "misbehave_briefly" if "time limit" in cases[how] else "misbehave"
        stage = "misbehave_and_convert" if how in MEASURED else stage
        more = REFUSE if how in HARMLESS and how not in MEASURED else ""
        (folder / f"conf/candidate/{how}.yaml").write_text(CANDIDATE.format(stage=stage, how=how, more=more))
    project = Project(folder)
    shutil.copytree(first.project.artifacts, project.artifacts, symlinks=True)
    project.base = ["--config-dir", str(folder / "conf"), *project.base, f"candidates=[null_fp32,{','.join(cases)}]"]
    return project


@pytest.fixture(scope="session")
def builds() -> Iterator[dict[str, Built]]:
    """The builds so far, one a group; `built_group` adds to them. What they left is more than pytest can remove."""
    found: dict[str, Built] = {}
    yield found
    for built in found.values():
        remove_tree(built.project.artifacts)


@pytest.fixture
def built_group(
    request: pytest.FixtureRequest, builds: dict[str, Built], first: First, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """The build of the group that the test names."""
    group = request.param
    if group not in builds:
        project = _project(tmp_path_factory.mktemp(group), first, GROUPS[group])
        began = time.monotonic()
        done = project.build("executor.jobs=4", cwd=HERE)
        seconds = time.monotonic() - began
        rows = {row["id"]: row for row in done.manifest["candidates"]} if done.code == 0 else {}
        builds[group] = Built(project, done, seconds, rows)
    return builds[group]


@pytest.mark.parametrize("built_group", GROUPS, indirect=True)
def test_build_goes_on_ends_in_time_leaves_no_process_and_steers_no_terminal(built_group: Built) -> None:
    done, project = built_group.done, built_group.project
    assert done.code == 0, done.err[-3000:]
    assert "Traceback" not in done.err.replace("  Traceback (most", "") and "internal error" not in done.err
    assert built_group.seconds < SECONDS
    assert not processes(project) and not _daemons(project)
    assert not CONTROL.search(done.out + done.err), CONTROL.search(done.out + done.err)
    assert not CONTROL.search(done.manifest_path.read_text())
    assert built_group.rows["null_fp32"]["status"] in ("selected", "eligible", "skipped"), built_group.rows["null_fp32"]
    assert max(map(len, done.err.splitlines())) < 2000
    assert list((project.artifacts / ".store/work").iterdir()) == []


def _daemons(project: Project) -> list[str]:
    """What a step started that carries no setting of the worker's; its command line does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"misbehaving-" in line and str(project.artifacts / ".store").encode() in line:
                found.append(entry.name)
    return found


@pytest.mark.parametrize(("built_group", "how"), FAILING, indirect=["built_group"], ids=[how for _, how in FAILING])
def test_candidate_fails_in_words(built_group: Built, how: str) -> None:
    row = built_group.rows[how]
    said = next(GROUPS[group][how] for group, name in FAILING if name == how)
    assert row["status"] == "failed" and said in row["reason"], row["reason"]
    assert row["reason"].startswith(f"{how}.misbehave") and len(row["reason"]) < 1000


@pytest.mark.parametrize(
    ("built_group", "how"), [("quick", how) for how in HARMLESS], indirect=["built_group"], ids=HARMLESS
)
def test_harmless_candidate_is_whole(built_group: Built, how: str) -> None:
    row = built_group.rows[how]
    if how in MEASURED:
        assert row["status"] in ("selected", "eligible", "skipped"), row["reason"]
    else:
        assert row["reason"] == f"{how}.refuse: its chain ends here", row["reason"]
        assert _status(built_group, f"{how}.misbehave") == "executed"


def _status(built_group: Built, step: str) -> str:
    return next(row["status"] for row in built_group.done.manifest["steps"] if row["name"] == step)


# -- what every candidate needs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "how", "said"),
    [
        ("samples", "an_answer_that_is_a_fifo", "error: samples: its answer cannot be read: it is not a regular file"),
        (
            "samples",
            "folders_fifteen_hundred_deep",
            "error: samples: the result has more than 64 folders in each other",
        ),
        ("export", "no_signature", "error: export: its signature.json is not valid: No such file or directory"),
        ("export", "an_input_less", "error: export changed its input, the result of samples"),
    ],
)
def test_step_that_all_candidates_need_ends_the_build_in_words(
    step: str, how: str, said: str, project: Project
) -> None:
    stage = f"steps.{step}.stage=misbehaving.backend.{step}"
    done = project.build(stage, f"+steps.{step}.how={how}", cwd=HERE)
    assert done.code == 5 and done.last_lines()[1] == said, done.err
    assert done.last_lines()[0].startswith("try: ") and not processes(project)
    assert not CONTROL.search(done.out + done.err)
    remove_tree(project.artifacts)


@pytest.mark.parametrize("built_group", GROUPS, indirect=True)
def test_what_failures_left_can_be_looked_after(built_group: Built, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    built_group.project.artifacts.rename(artifacts)  # links and devices cannot be copied
    try:
        for verb in ("ls", "fsck", "gc"):
            done = command("store", verb, f"artifacts_dir={artifacts}")
            assert done.code == 0, (verb, done.err)
            assert not CONTROL.search(done.out + done.err)
        assert list((artifacts / ".store/failures").iterdir()) == []
    finally:
        artifacts.rename(built_group.project.artifacts)


# -- parts ---------------------------------------------------------------------------------------------------------


def test_result_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "MOST_ENTRIES", 3)
    for number in range(3):
        (tmp_path / str(number)).write_text("x")
    assert incoming.check_result(tmp_path) == {"0": 1, "1": 1, "2": 1}
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnfitError, match="more than 3 files and folders"):
        incoming.check_result(tmp_path)


def test_result_that_cannot_be_read_in_time_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 64 << 30)
    sizes = {"large": 64 << 30}
    began = time.monotonic()
    with pytest.raises(TooSlow):
        incoming.read_entries(tmp_path, sizes, time.monotonic() + 0.2)
    assert time.monotonic() - began < 5
    os.truncate(tmp_path / "large", 5)
    (entry,) = incoming.read_entries(tmp_path, {"large": 5}, time.monotonic() + 60)
    assert entry.sha256 == file_digest(tmp_path / "large")


def test_folders_deeper_than_a_path_can_say_are_removed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    handle = os.open(base, os.O_RDONLY)
    for number in range(1500):
        os.mkdir("folder", dir_fd=handle)
        if number % 400 == 0:
            os.symlink("/", "link", dir_fd=handle)
            os.mkfifo("fifo", dir_fd=handle)
        inner = os.open("folder", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    remove_tree(base)
    assert list(tmp_path.iterdir()) == []
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/")
    for name in ("fifo", "link", "nothing"):
        remove_tree(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs another user to become")
def test_folders_without_permissions_are_read_and_removed_by_their_owner(tmp_path: Path) -> None:
    """Permissions mean nothing to root."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom compiler.disk import remove_tree\n"
        "from compiler.store.incoming import check_result\n"
        "base = Path(sys.argv[1])\n(base / 'a/b').mkdir(parents=True)\n(base / 'a/b/c').write_text('x')\n"
        "for name in ('a/b/c', 'a/b', 'a', ''):\n    (base / name).chmod(0)\n"
        "if sys.argv[2] == 'read':\n    assert check_result(base) == {'a/b/c': 1}\n"
        "remove_tree(base)\nassert not base.exists()\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        for what in ("read", "remove"):
            line = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", script]
            done = subprocess.run(
                [*line, f"{folder}/base", what], capture_output=True, text=True, env=environment(), check=False
            )
            if "Permission denied" in done.stderr and "python" in done.stderr.splitlines()[-1]:
                pytest.skip("the other user may not run this Python")
            assert done.returncode == 0, done.stderr


def test_progress_on_a_terminal_shows_words_as_they_are() -> None:
    from rich.console import Console

    stream = io.StringIO()
    with LiveWatcher(Console(file=stream, force_terminal=True, width=100)) as watcher:
        watcher.planned(1)
        watcher.started("a", "[/nothing]")
        watcher.progressed("a", 1, 2, "[/b] [red]")
        time.sleep(0.6)
        watcher.ended("a", "executed", 1.0)
    assert "[/b] [red]" in stream.getvalue() or "[/nothing]" in stream.getvalue()


WORDS_OF = {"\x1b[31m": "?[31m", "a\nb\tc": "a b c", "x" * 700: "x" * 600 + "...", 5: "5", "\udcff": "?", "": ""}


@pytest.mark.parametrize("text", WORDS_OF)
def test_words_are_one_printable_line(text: object) -> None:
    assert words(text) == WORDS_OF[text]  # type: ignore[index]


def test_strays_are_ended_and_workers_are_not(tmp_path: Path) -> None:
    """In a process of its own: one that adopts orphans ends every child that it does not know."""
    script = (
        "import subprocess, sys\nfrom compiler import supervision\nsupervision.adopt_orphans()\n"
        "sleep = ['sleep', '600']\n"
        "stray = subprocess.Popen(sleep, start_new_session=True)\n"
        "worker = subprocess.Popen(sleep, start_new_session=True)\n"
        "own = subprocess.Popen(sleep)\n"
        "with supervision.known(worker.pid):\n    supervision.end_strays()\n"
        "print(own.poll(), worker.poll(), stray.poll() is None)\n"
        "[process.kill() for process in (own, worker)]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "None None False\n"
