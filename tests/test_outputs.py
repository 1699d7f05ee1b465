"""Outputs go to regular files and folders only, and never into an artifact."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import First, Project, command

from compiler.commands import measure, publish, pull, report, run
from compiler.errors import CompilerError, ConfigError
from compiler.outputs import check_output_file, check_output_folder, write_output
from compiler.runtime.verify import read_manifest, verify


@pytest.fixture
def version(first: First, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first.project.latest, tmp_path / "version"))


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # a null device of our own: /dev/null is never at risk
    except PermissionError:
        pytest.skip("making a device needs root")


MAKE: dict[str, Callable[[Path], Any]] = {
    "a device": _device,
    "a FIFO": os.mkfifo,
    "a link": lambda path: path.symlink_to(path.parent / "target"),
    "a folder": Path.mkdir,
}


def _writers(version: Path, images: Path, place: Path) -> dict[str, Callable[[], int]]:
    """Every verb that writes a file where the user says."""
    return {
        "report": lambda: report.run([str(version), "--output", str(place)]),
        "run": lambda: run.run([str(version), "--input", str(images), "--output", str(place)]),
        "pull": lambda: pull.run(
            [f"file:{version.parent}/layout", str(version.parent / "new"), "--report", str(place)]
        ),
    }


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("verb", ["report", "run", "pull"])
def test_output_that_is_no_regular_file_is_refused_and_stays(
    version: Path, tmp_path: Path, kind: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    MAKE[kind](place)
    before = place.lstat()
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=f"is {kind}, not a regular file"):
        _writers(version, tmp_path / "x.npy", place)[verb]()
    assert (place.lstat().st_mode, place.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("verb", ["report", "run", "pull", "publish", "write-bundle"])
def test_nothing_is_written_into_an_artifact(version: Path, tmp_path: Path, verb: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 3), np.uint8))
    inside = version / "deep" / "x"
    folders: dict[str, Callable[[], int]] = {
        "publish": lambda: publish.run([str(version), f"file:{inside}"]),
        "write-bundle": lambda: measure.run([str(version), "--samples", "x.npy", "--write-bundle", str(inside)]),
    }
    with pytest.raises(CompilerError) as caught:
        {**_writers(version, tmp_path / "x.npy", inside), **folders}[verb]()
    assert caught.value.exit_code == 2 and "inside the artifact" in caught.value.what
    verify(version)


def test_output_replaces_a_file_whole_and_keeps_it_when_the_work_fails(version: Path, tmp_path: Path) -> None:
    place = tmp_path / "y.npy"
    place.write_bytes(b"old")
    np.save(tmp_path / "bad.npy", np.zeros((1, 9, 9, 3), np.uint8))
    with pytest.raises(ConfigError):
        run.run([str(version), "--input", str(tmp_path / "bad.npy"), "--output", str(place)])
    assert place.read_bytes() == b"old"
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 3), np.uint8))
    assert run.run([str(version), "--input", str(tmp_path / "x.npy"), "--output", str(place)]) == 0
    assert np.load(place).shape == (1, 4)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a/" * 3000 + "x", "file/below"])
def test_place_that_cannot_be_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for check in (check_output_file, check_output_folder, lambda path: write_output(path, b"")):
        try:
            check(tmp_path / name)
        except ConfigError as error:
            assert "cannot write" in error.what or "is a" in error.what
        else:
            assert check is not check_output_file or name == "file/below"
    with pytest.raises(ConfigError):
        write_output(tmp_path / name, b"")


def test_report_of_a_pull_is_made_from_the_verified_manifest(built: Project, tmp_path: Path) -> None:
    """The published page is covered by no signature: whoever can write to the registry could change it."""
    layout = tmp_path / "layout"
    assert command("publish", built.latest, f"file:{layout}").code == 0
    _, manifest = read_manifest(built.latest)
    for blob in (layout / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        if data.startswith(b"<!DOCTYPE html>"):
            blob.chmod(0o644)
            blob.write_bytes(data.replace(b"<h1>", b"<h1>forged "))
    page = tmp_path / "report.html"
    done = command("pull", f"file:{layout}", tmp_path / "out", "--report", page)
    assert done.code == 0, done.err
    assert "forged" not in page.read_text() and manifest["digest"] in page.read_text()
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
