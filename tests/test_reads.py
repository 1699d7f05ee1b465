"""Files that own code reads are part of a result's identity; libraries on PYTHONPATH are identified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Done, Project, command, environment

from compiler import reads
from compiler.installed import is_installed
from compiler.keys import files

STAGE = """
import dataclasses
from pathlib import Path
from compiler.backends import null

HERE = Path(__file__).parent

@dataclasses.dataclass(kw_only=True)
class Export(null.Export):
    def run(self, inputs, out):
        {body}
        return super().run(inputs, out)
"""

RUNTIME = """
from pathlib import Path
from compiler.runtime.null import *
import compiler.runtime.null as base

def open(path, options):
    (Path(__file__).parent / "table.json").read_text()
    return base.open(path, options)
"""


class Own:
    """A folder with user code on PYTHONPATH, and a project that is built with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder / "user/ownpkg", Project(folder)
        self.folder.mkdir(parents=True)
        path = os.pathsep.join([str(ROOT), str(self.folder.parent)])
        self.env = environment() | {"PYTHONPATH": path}
        self.extra: list[str] = ["steps.export.stage=ownpkg.mine.export"]

    def stage(self, body: str) -> None:
        (self.folder / "mine.py").write_text(STAGE.format(body=body))

    def build(self) -> Done:
        return self.project.build(*self.extra, env=self.env)

    def plan(self, step: str = "export") -> tuple[str, str]:
        done = command("plan", *self.project.base, *self.extra, "--json", env=self.env)
        assert done.code == 0, done.err
        row = next(row for row in json.loads(done.out)["steps"] if row["name"] == step)
        return row["state"], row["why"]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def test_file_that_own_code_reads_is_in_the_key_and_named_by_plan(own: Own) -> None:
    own.stage('(HERE / "sizes.json").read_text(); [p.read_bytes() for p in HERE.glob("parts/*.txt")]')
    sizes, parts = own.folder / "sizes.json", own.folder / "parts"
    parts.mkdir()
    sizes.write_text("1")
    (parts / "a.txt").write_text("a")
    assert own.build().code == 0
    assert own.plan() == ("hit", "in the store")
    os.utime(sizes)
    (own.folder / "unrelated.json").write_text("{}")
    assert own.plan() == ("hit", "in the store")
    sizes.write_text("2")
    assert own.plan() == ("miss", "the file ownpkg/sizes.json changed")
    again = own.build()
    assert again.executed == ["export"], again.err  # the same bytes, so nothing after it
    sizes.write_text("1")
    assert own.plan() == ("hit", "in the store")  # the earlier result is still known
    assert own.build().executed == []
    (parts / "b.txt").write_text("b")
    assert own.plan() == ("miss", "the list of files in ownpkg/parts/ changed")
    (parts / "b.txt").unlink()
    sizes.unlink()
    assert own.plan() == ("miss", "the file ownpkg/sizes.json is gone")


def test_file_that_is_looked_for_and_absent_counts_once_it_is_there(own: Own) -> None:
    own.stage("""
        try:
            (HERE / "optional.json").read_text()
        except FileNotFoundError:
            pass""")
    assert own.build().code == 0
    assert own.plan()[0] == "hit"
    (own.folder / "optional.json").write_text("{}")
    assert own.plan() == ("miss", "the file ownpkg/optional.json is there now")


@pytest.mark.parametrize(
    "body",
    [
        'p = HERE / "count"; p.write_text(str(int(p.read_text()) + 1))',
        'p = HERE / "fresh"; p.write_text("x"); p.read_text()',
    ],
)
def test_step_that_changes_a_file_that_it_reads_is_refused_by_name(own: Own, body: str) -> None:
    own.stage(body)
    (own.folder / "count").write_text("1")
    done = own.build()
    name = "count" if "count" in body else "fresh"
    assert done.code == 5 and f"{own.folder / name}" in done.last_lines()[1], done.err


def test_file_that_an_own_runtime_reads_in_a_measurement_process_counts(own: Own) -> None:
    own.stage("pass")
    (own.folder / "racer.py").write_text(RUNTIME)
    table = own.folder / "table.json"
    table.write_text("1")
    own.extra += ["candidate.null_int8.runtime=ownpkg.racer"]
    done = own.build()
    assert done.code == 0, done.err
    assert own.plan("benchmark")[0] == "hit"
    table.write_text("2")
    assert own.plan("benchmark") == ("miss", "the file ownpkg/table.json changed")


def _library(folder: Path, metadata: bool) -> None:
    folder.mkdir()
    (folder / "sidelib.py").write_text("VALUE = 1\n")
    if metadata:
        info = folder / "sidelib-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sidelib\nVersion: 1.0\n")
        (info / "RECORD").write_text("sidelib.py,sha256=a,10\nsidelib-1.0.dist-info/RECORD,,\n")


@pytest.mark.parametrize("metadata", [True, False])
def test_library_in_any_folder_of_pythonpath_is_identified_and_not_refused(own: Own, metadata: bool) -> None:
    """As a framework imports what it happens to find: no import statement of ours or the user's names it."""
    lib = own.folder.parents[1] / "libs"
    _library(lib, metadata)
    own.env["PYTHONPATH"] += f"{os.pathsep}{lib}"
    own.stage('import importlib; importlib.import_module("side" + "lib")')
    done = own.build()
    assert done.code == 0, done.err
    assert own.plan() == ("hit", "in the store")
    if metadata:
        (lib / "sidelib-1.0.dist-info/RECORD").write_text("sidelib.py,sha256=b,10\n")
        assert own.plan() == ("miss", "sidelib 1.0 to 1.0 (other files)")
    else:
        (lib / "sidelib.py").write_text("VALUE = 2\n")
        assert own.plan() == ("miss", "the file sidelib.py changed")


def test_checkout_installed_to_be_edited_is_own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edited.egg-info").mkdir()
    (tmp_path / "edited.egg-info/top_level.txt").write_text("edited\n")
    (tmp_path / "edited.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed(tmp_path / "edited.py")


def test_names_of_read_files_do_not_depend_on_where_the_code_lies(tmp_path: Path) -> None:
    found = {}
    for name in ("a", "b"):
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        (root / "sub/x.json").write_text("1")
        path = str(root / "sub/x.json")
        found[name] = files.named({path: reads.state(path)}, {"nets": root})
        assert files.states(found[name], {"nets": root}) == found[name]
    assert found["a"] == found["b"] == {"nets:sub/x.json": reads.state(str(tmp_path / "a/sub/x.json"))}


def test_bytecode_modules_and_what_is_apart_are_not_counted(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from compiler import reads
root = Path(sys.argv[1])
reads.prepare([str(root)], [str(root / "apart")], root.parent / "log")
reads.watch()
sys.path.insert(0, str(root))
import beside
for name in ("apart/x", "__pycache__/x.pyc", "data"):
    (root / name).read_bytes()
print(sorted(reads.collected(root.parent / "log")[0]))
"""
    root = tmp_path / "root"
    for name in ("apart/x", "__pycache__/x.pyc", "data", "beside.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    said = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True, env=environment()
    ).stdout
    assert said.strip() == str([str(root / "data")])
