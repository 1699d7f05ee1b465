"""The store's own files, replaced by what no build writes: nothing hangs, what can be made again is made again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, Project, command, environment
from security.many_commands import SECONDS


def _terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _full_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


HARM: dict[str, Callable[[Path], Any]] = {
    "a FIFO": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a folder": _full_folder,
    "a terabyte": _terabyte,
    "junk": lambda path: path.write_bytes(b"{\xff junk"),
}
RECORDS = (
    ".store/memo.json",
    ".store/actions/*/*.json",
    ".store/verified/*/*.json",
    ".store/last/*/*/*.json",
    ".store/versions/*.json",
    ".store/latest/*/*.json",
)


def _replace(path: Path, harm: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    HARM[harm](path)


def _run(project: Project, *lines: list[str]) -> list[dict[str, Any]]:
    """The outcome of command lines, one after the other."""
    cases = [{"arguments": line, "folder": str(project.artifacts.parent), "settings": {}} for line in lines]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("many_commands.py")],
        input=json.dumps(cases), capture_output=True, text=True, env=environment(), check=True, timeout=300,
    )  # fmt: skip
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    for outcome in outcomes:
        assert outcome["code"] in (0, 2, 6) and outcome["seconds"] < SECONDS, outcome
        assert "Traceback" not in outcome["err"], outcome
    return outcomes


def _lines(project: Project) -> tuple[list[str], list[str], list[str]]:
    where = f"artifacts_dir={project.artifacts}"
    build = [str(word) for word in project.base]
    assert build[1] == str(CONF)
    return build, ["store", "fsck", where], ["store", "fsck", "--repair", where]


@pytest.mark.parametrize("harm", ["a FIFO", "a folder", "a link to a device", "a terabyte"])
def test_records_that_are_none_are_reported_and_made_again(built: Project, harm: str) -> None:
    paths = [sorted(built.artifacts.glob(pattern))[0] for pattern in RECORDS]
    for path in paths:
        _replace(path, harm)
    build, fsck, repair = _lines(built)
    reported, looked, made, repaired, last = _run(built, fsck, ["store", "ls", fsck[-1]], build, repair, fsck)
    assert reported["code"] == 6 and all(path.name in reported["out"] for path in paths), reported
    assert looked["code"] == made["code"] == repaired["code"] == last["code"] == 0, (made, repaired)


def test_what_is_set_aside_is_said(built: Project) -> None:
    path = sorted(built.artifacts.glob(".store/actions/*/*.json"))[0]
    _replace(path, "a FIFO")
    build, _, _ = _lines(built)
    (made,) = _run(built, build)
    assert made["code"] == 0 and f"{path} is not a regular file: set aside" in made["err"]
    assert path.is_file()


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (".store/locks/upkeep", "a FIFO"),
        (".store/locks/upkeep", "a folder"),
        (".store/actions", "a link to itself"),
        (".store/work", "a FIFO"),
        (".store/objects/00", "a FIFO"),
    ],
)
def test_what_lies_where_folders_and_locks_belong_is_in_the_way_until_repaired(
    built: Project, name: str, harm: str
) -> None:
    _replace(built.artifacts / name, harm)
    build, fsck, repair = _lines(built)
    before, reported, repaired, whole, after = _run(built, build, fsck, repair, fsck, ["plan", *build])
    assert before["code"] == 0 or "fsck --repair" in before["err"].splitlines()[-2], before
    assert reported["code"] == 6 and "is nothing that a build has made" in reported["out"], reported
    assert repaired["code"] in (0, 6) and whole["code"] == 0 and after["code"] == 0, repaired


@pytest.mark.parametrize("harm", ["a FIFO", "a link to nowhere", "a terabyte", "junk"])
def test_a_version_whose_manifest_is_none(built: Project, harm: str) -> None:
    version = built.latest
    version.chmod(0o755)
    _replace(version / "manifest.json", harm)
    build, fsck, _ = _lines(built)
    shown, verified, checked, made = _run(built, ["show", str(version)], ["verify", str(version)], fsck, build)
    assert shown["code"] == verified["code"] == checked["code"] == 6 and version.name in checked["out"]
    assert made["code"] == 0 and built.latest != version


@pytest.mark.parametrize("harm", ["a FIFO", "a terabyte"])
def test_files_of_a_version_and_of_a_result(built: Project, harm: str) -> None:
    _replace(next(built.artifacts.glob(".store/objects/*/*/signature.json")), harm)
    version = built.latest
    _replace(version / "model.npz", harm)
    build, fsck, repair = _lines(built)
    verified, checked, made, _, last = _run(built, ["verify", str(version)], fsck, build, repair, ["plan", *build])
    assert verified["code"] == checked["code"] == 6 and made["code"] == last["code"] == 0
    assert built.latest != version and "set aside" in made["err"]


@pytest.mark.parametrize("harm", ["a FIFO", "a folder", "junk"])
def test_the_remedy_for_what_lies_where_latest_belongs(built: Project, harm: str) -> None:
    right, link = built.latest, built.latest.parent / "latest"
    _replace(link, harm)
    stopped = built.build()
    assert stopped.code == 2 and "move it away" in stopped.last_lines()[0] and str(right) in stopped.last_lines()[1]
    found = command("store", "fsck", "--repair", f"artifacts_dir={built.artifacts}")
    assert found.code == 6 and "move it away, and build again" in found.out
    link.rename(link.with_name("latest.moved"))
    done = built.build()
    assert done.code == 0 and built.latest == right, done.err
    assert command("store", "fsck", f"artifacts_dir={built.artifacts}").code == 0


def test_a_version_that_was_moved_away_is_no_candidate_for_latest(built: Project) -> None:
    right, link = built.latest, built.latest.parent / "latest"
    link.unlink()
    shutil.copytree(right, link)  # a file server that does not know links
    next(built.artifacts.glob(".store/latest/*/*.json")).unlink()
    assert built.build().code == 2
    link.rename(link.with_name("latest.moved"))
    assert built.build().code == 0 and built.latest == right
