"""SIGKILL and disk faults at every call that changes a file: what is visible is whole, the next run needs no help."""

from __future__ import annotations

import contextlib
import errno
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK, ROOT, Done, Project, environment
from faults import KILL, NUMBERS, TORN, Call, Decision, Watched, watch

from compiler.canonical import digest, plain, tree_digest, tree_entries
from compiler.disk import explain_os_errors, write_array
from compiler.errors import CompilerError
from compiler.runtime.verify import verify
from compiler.store import Origin, Store
from compiler.store.records import read_sealed, sealed
from compiler.turns import turn

REMOVING = ("unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "utimensat")
"""Calls that need no space."""
PARTS = 8
"""The long tests go through the calls of a build in so many parts: call 1, 9, 17, ...; call 2, 10, 18, ..."""
PORTABLE = ("samples", "export", "null_fp32.convert", "null_int8.quantize")
DOCUMENTS: list[dict[str, Any]] = [{"stage": "t", "fields": {"n": n}} for n in range(2)]


def _fault(name: str, at: int, folder: Path) -> Callable[[Call], Decision]:
    """What to do with each call when the fault `name` befalls call `at`."""

    def decide(call: Call) -> Decision:
        own = call.path.startswith(f"{folder}/")
        if name == "full from then on":
            return errno.ENOSPC if call.number >= at and own and call.name not in REMOVING else None
        if call.number != at:
            return None
        if name == "torn":
            return TORN if call.name in ("write", "pwrite64") and own else KILL
        return {"kill": KILL, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}[name]

    return decide


def _applies(name: str, call: Call, folder: Path) -> bool:
    """Whether the fault `name` can befall `call`: the disk fails where the store is, a kill comes anywhere."""
    if name == "kill":
        return True
    if not call.path.startswith(f"{folder}/"):
        return False
    if name == "torn":
        return call.name in ("write", "pwrite64") and call.size > 1
    return name == "EIO" or call.name not in REMOVING


def _damage(artifacts: Path) -> list[str]:
    """Everything visible below `artifacts` that is not whole."""
    store = artifacts / ".store"
    found = []
    for path in (store / "objects").glob("*/*"):
        if tree_digest(tree_entries(path)) != path.name:
            found.append(f"object {path}")
    for path in (store / "actions").glob("*/*.json"):
        action = read_sealed(path)
        if action is None or action["key"] != path.stem or digest(action["document"]) != path.stem:
            found.append(f"action {path}")
            continue
        there = store / "objects" / action["object"][:2] / action["object"]
        if not there.is_dir() or [plain(entry) for entry in tree_entries(there)] != action["files"]:
            found.append(f"object of action {path}")
    records = [path for name in ("verified", "last", "versions") for path in (store / name).rglob("*.json")]
    found += [f"record {p}" for p in [*records, *store.glob("memo.json")] if read_sealed(p) is None]
    for path in artifacts.glob("[!.]*/[!.]*/[!.]*"):
        try:
            verify(path)
        except CompilerError as error:
            found.append(f"version {path}: {error.what}")
    return found


def _leftovers(artifacts: Path) -> list[Path]:
    """Temporary files and folders, wherever they lie."""
    hidden = [path for path in artifacts.rglob(".*") if path.name not in (".store", ".observations")]
    return [*(artifacts / ".store/work").iterdir(), *hidden]


# -- the store alone ---------------------------------------------------------------------------------------------------


def _use(artifacts: Path) -> int:
    """What a build does to a store, in one process: exit codes and last lines as the command line's."""
    root = artifacts / ".store"
    try:
        with Store(root) as store:
            with explain_os_errors(root):
                store.clean_leftovers()
            store.needs("m/t")
            for document in DOCUMENTS:
                key = digest(document)
                with store.lock(key):
                    if store.take(key) is None:
                        _commit(store, key, document)
                assert store.take(key) is not None
                with explain_os_errors(root):
                    store.remember_last("m/t", "step", document)
            with explain_os_errors(root):
                store.write(root / "versions" / "v.json", sealed({"version": "m/t/v"}))
            assert store.last("m/t", "step") == DOCUMENTS[-1]
    except CompilerError as error:
        print(f"try: {error.fix}\nerror: {error.what}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _commit(store: Store, key: str, document: dict[str, Any]) -> None:
    with store.work_folder("step") as folder:
        out = folder / "out"
        with explain_os_errors(store.root):
            (out / "sub").mkdir(parents=True)
            (out / "sub" / "weights.bin").write_bytes(key.encode() * 1000)
            (out / "facts.json").write_text("{}")
        store.commit(key, document, out, 1.0, Origin("step", "m/t"))


@pytest.mark.parametrize("name", ["kill", "torn", "ENOSPC", "EIO", "full from then on"])
def test_store_survives_the_fault_at_every_call_that_changes_a_file(tmp_path: Path, name: str) -> None:
    """Every one in turn (a disk that stays full: every fourth); `torn` kills in the middle of a write."""
    reference = watch(lambda: _use(tmp_path / "whole"))
    assert reference.code == 0, reference.err
    calls = [call for call in reference.calls if _applies(name, call, tmp_path / "whole")]
    assert len(calls) > (10 if name == "torn" else 60)
    for call in calls[:: 4 if name == "full from then on" else 1]:
        artifacts = tmp_path / f"{call.number}"
        done = watch(lambda artifacts=artifacts: _use(artifacts), _fault(name, call.number, artifacts))
        assert [c.name for c in done.calls[: call.number]] == [c.name for c in reference.calls[: call.number]], call
        if name in ("kill", "torn"):
            assert done.code == -9, (call, done.err)
        else:
            assert _is_clear(done), (call, done.code, done.err)
        assert _damage(artifacts) == [], call
        assert _use(artifacts) == 0, call
        assert _damage(artifacts) == [] and _leftovers(artifacts) == [], call


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace")
def test_watch_misses_no_call_that_strace_sees(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from test_crash import _use; sys.exit(_use(Path(sys.argv[1])))"
    line = [sys.executable, "-c", script]
    env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ours = watch([*line, str(tmp_path / "a")], env=env)
    assert ours.code == 0, ours.err
    names = f"trace={','.join(f'?{name}' for name in NUMBERS[platform.machine()])}"
    strace = ["strace", "-f", "-y", "-o", tmp_path / "log", "-e", names]
    subprocess.run([*strace, *line, tmp_path / "b"], env=env, check=True, timeout=120)
    theirs: Counter[str] = Counter()
    for text in (tmp_path / "log").read_text().splitlines():
        name = text.split()[1].partition("(")[0]
        opened_to_read = name in ("open", "openat") and "O_CREAT" not in text and "O_TRUNC" not in text
        if str(tmp_path / "b") in text and name != "ioctl" and not opened_to_read:
            theirs[name] += 1
    assert Counter(call.name for call in ours.calls if str(tmp_path / "a") in call.path) == theirs
    assert theirs.total() > 100


def _is_clear(done: Watched | Done) -> bool:
    """Whether a run met by a disk fault succeeded, or ended with an error of the contract."""
    if done.code == 0:
        return True
    fix, cause = done.last_lines()
    return done.code in (2, 5) and fix.startswith("try: ") and cause.startswith("error: ")


# -- a whole build with its workers ------------------------------------------------------------------------------------


class Watcher:
    """Runs the null build under the watch, each time in a new folder: an empty one, or a copy of `start`."""

    def __init__(self, folder: Path, start: Path | None = None, overrides: tuple[str, ...] = ()) -> None:
        self._folder, self._start, self._overrides = folder, start, overrides
        (folder / "tmp").mkdir(parents=True)
        self._env = {**environment(), "TMPDIR": str(folder / "tmp")}  # locks for the machine are this test's own
        self.whole, self.reference = self.run(0, "kill")
        assert self.reference.code == 0, self.reference.err

    def run(self, number: int, name: str) -> tuple[Project, Watched]:
        """A build whose call `number`, if it makes so many, is met by the fault `name`."""
        project = Project(self._folder / f"{name}-{number}")
        if self._start is not None:
            shutil.copytree(self._start, project.artifacts, symlinks=True)
        return project, watch(self._line(project), _fault(name, number, self._folder), ROOT, self._env)

    def short(self, most: int) -> Project:
        """A build on a disk that takes at most `most` bytes at a time."""
        project = Project(self._folder / "short")
        cut: list[Call] = []

        def decide(call: Call) -> Decision:
            if call.size <= most or not call.path.startswith(f"{project.artifacts}/"):
                return None
            cut.append(call)
            return range(most)

        done = watch(self._line(project), decide, ROOT, self._env)
        assert done.code == 0, done.err
        assert len(cut) > 1000
        return project

    def looking(self, look: Callable[[Call, Path], None]) -> None:
        """A build that stands still at each call for as long as `look` looks at its artifacts."""
        project = Project(self._folder / "looking")

        def decide(call: Call) -> Decision:
            look(call, project.artifacts)
            return None

        done = watch(self._line(project), decide, ROOT, self._env)
        assert done.code == 0, done.err

    def numbers(self, name: str) -> list[int]:
        """The calls that the fault can befall, by the build that none befell.

        Threads and workers take turns as they like, so the same number is only nearly the same call in another build.
        """
        return [call.number for call in self.reference.calls if _applies(name, call, self._folder)]

    def survives(self, number: int, name: str) -> bool:
        """Whether the fault came to be; fails where a build does not survive it."""
        project, done = self.run(number, name)
        if len(done.calls) < number:
            return False
        call = done.calls[number - 1]
        about = (call, done.code, done.err)
        if name in ("kill", "torn") and call.first:
            assert done.code == -9, about
        elif call.path.startswith(f"{self._folder}/"):
            assert _is_clear(done) and "internal error" not in done.err, about
        assert _damage(project.artifacts) == [], about
        again = project.build(*self._overrides, env=self._env)
        assert again.code == 0, (about, again.err)
        assert _damage(project.artifacts) == [], about
        assert _leftovers(project.artifacts) == [], about
        assert again.manifest_path.is_file()
        assert again.manifest_path.parent.resolve() == project.latest, about
        shutil.rmtree(project.artifacts.parent)
        return True

    def survive(self, numbers: Iterable[int], name: str) -> int:
        """How many faults came to be."""
        return sum(self.survives(number, name) for number in numbers)

    def _line(self, project: Project) -> list[str]:
        return [sys.executable, "-m", "compiler", *map(str, project.base), *self._overrides]


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    """For builds from the beginning."""
    return Watcher(tmp_path_factory.mktemp("builds"))


@pytest.fixture
def late_watcher(built: Project, tmp_path: Path) -> Watcher:
    """For builds whose results are all stored, so that nothing is left but to write the version."""
    shutil.rmtree(built.artifacts / "nullmodel")
    return Watcher(tmp_path / "late", built.artifacts)


SECOND = {"no-op": (), "second": ("steps.export.scale=0.5",)}
"""What is built on top of a finished build: the same again, and one with another result and version."""


def _second(built: Project, folder: Path, name: str) -> Watcher:
    if name == "no-op":
        (built.latest.parent / "latest").unlink()  # so that something is left to do, and to be killed at
    return Watcher(folder, built.artifacts, SECOND[name])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SECOND)
def test_latest_is_right_after_a_kill_at_every_call(built: Project, tmp_path: Path, name: str) -> None:
    watcher = _second(built, tmp_path / "w", name)
    numbers = watcher.numbers("kill")
    came = watcher.survive(numbers, "kill")
    print(f"{name}: latest right after {came} of {len(numbers)} kills")
    assert came > 0.9 * len(numbers)


@pytest.mark.parametrize("name", SECOND)
def test_latest_is_right_after_a_kill_at_some_of_the_last_calls(built: Project, tmp_path: Path, name: str) -> None:
    """A seeded sample of the soak test, from where the version and the link are written.

    A build that polls less often makes fewer calls, so the last of the sample may not come.
    """
    watcher = _second(built, tmp_path / "w", name)
    numbers = watcher.numbers("kill")[-40:]
    assert watcher.survive(random.Random(0).sample(numbers, 2), "kill") >= 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", ["kill", "torn", "ENOSPC", "EIO", "full from then on"])
def test_build_survives_the_fault_at_every_call_that_changes_a_file(watcher: Watcher, name: str, part: int) -> None:
    """Every call of the build and of its workers; whoever makes it meets the fault."""
    numbers = watcher.numbers(name)[part::PARTS]
    came = watcher.survive(numbers, name)
    print(f"{name}, part {part} of {PARTS}: {came} of {came}")
    assert came > 0.9 * len(numbers)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_build_survives_200_kills_at_random_calls(watcher: Watcher) -> None:
    numbers = watcher.numbers("kill")
    came = watcher.survive(random.Random(1).sample(numbers, 200), "kill")
    print(f"{came} of 200 kills among {len(numbers)} calls came; after each the next build was whole")
    assert came >= 180


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_real_build_survives_ten_kills_at_random_moments(tmp_path: Path) -> None:
    """PyTorch, ONNX Runtime and their workers: what is left is whole, no process stays, the next build ends well."""
    draw = random.Random(2)
    env = {**environment(), "TMPDIR": str(tmp_path)}
    line = [
        sys.executable, "-m", "compiler", "target=host", "model=mobilenetv3", *QUICK,
        "candidates=[onnxruntime_fp32,onnxruntime_int8]",
        "data.splits={train: 1000, calibration: 16, selection: 32, report: 32}",
    ]  # fmt: skip
    began = time.monotonic()
    subprocess.run([*line, f"artifacts_dir={tmp_path}/whole"], cwd=ROOT, env=env, check=True, capture_output=True)
    lasted = time.monotonic() - began
    for number in range(10):
        artifacts = tmp_path / f"killed-{number}"
        command = [*line, f"artifacts_dir={artifacts}"]
        moment = draw.uniform(0.05, 0.95) * lasted
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as build:
            with contextlib.suppress(subprocess.TimeoutExpired):
                build.wait(moment)
            build.kill()
        assert _damage(artifacts) == [], f"killed after {moment:.1f} s"
        again = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert _damage(artifacts) == [] and _leftovers(artifacts) == [], f"killed after {moment:.1f} s"
        print(
            f"killed after {moment:.1f} of {lasted:.1f} s: {'whole' if build.returncode == -9 else 'was done already'}"
        )
        shutil.rmtree(artifacts)


def test_build_survives_faults_at_some_calls(watcher: Watcher) -> None:
    """A seeded sample of the soak test."""
    chosen = random.Random(0)
    for name, count in {"kill": 2, "ENOSPC": 1, "EIO": 1}.items():
        assert watcher.survive(chosen.sample(watcher.numbers(name)[:-40], count), name) == count


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["kill", "torn", "ENOSPC", "EIO", "full from then on"])
def test_writing_of_a_version_survives_the_fault_at_every_call(late_watcher: Watcher, name: str) -> None:
    numbers = late_watcher.numbers(name)
    came = late_watcher.survive(numbers, name)
    print(f"{name}: {came} of {came}")
    assert came == len(numbers)


def test_writing_of_a_version_survives_faults_at_some_calls(late_watcher: Watcher) -> None:
    """A seeded sample of the soak test."""
    chosen = random.Random(0)
    for name, count in {"kill": 1, "EIO": 1, "full from then on": 1}.items():
        assert late_watcher.survive(chosen.sample(late_watcher.numbers(name), count), name) == count


def test_whatever_is_visible_is_whole_at_every_moment_of_a_build(watcher: Watcher) -> None:
    """At every call of the build and its workers: what others can see is whole, and is not written to where it lies."""
    moments, names_changed = 0, True

    def look(call: Call, artifacts: Path) -> None:
        nonlocal moments, names_changed
        inside = call.path.startswith(f"{artifacts}/")
        if inside and call.name in ("write", "pwrite64", "sendfile", "ftruncate"):
            assert "/.store/work/" in call.path or "/.store/locks/" in call.path, call
        if names_changed:
            assert _damage(artifacts) == [], call
        names_changed = inside and call.name not in ("write", "pwrite64", "sendfile", "fsync")
        moments += 1

    watcher.looking(look)
    print(f"whole at {moments} of {moments} moments")
    assert moments > 500


def test_machine_whose_folder_for_locks_cannot_be_written_to_builds_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler.turns._folder", lambda: tmp_path)
    for name in ("queue", "machine"):
        (tmp_path / name).mkdir()
        for measures in (False, True):
            with pytest.raises(OSError, match="the step's own"), turn(measures):
                raise OSError("the step's own")
        (tmp_path / name).rmdir()


def test_array_that_does_not_fit_on_the_disk_is_an_error_and_one_that_does_is_numpys(tmp_path: Path) -> None:
    """numpy.save itself reports success on a full disk."""
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((300, 400), np.float32)), np.zeros((0, 2))):
        with pytest.raises(OSError, match="No space left"):
            write_array(Path("/dev/full"), array)
        write_array(tmp_path / "ours.npy", array)
        np.save(tmp_path / "numpys.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


def test_short_writes_change_no_byte(watcher: Watcher) -> None:
    """A disk that takes at most 32 bytes at a time: equal keys, and equal objects of every portable step."""
    whole, short = _objects(watcher.whole.artifacts), _objects(watcher.short(32).artifacts)
    assert {name: short[name] for name in PORTABLE} == {name: whole[name] for name in PORTABLE}


def test_build_changes_no_file_outside_its_own_folders(watcher: Watcher) -> None:
    """Nor does git, asked for the commit: killed, it would leave its lock in the checkout."""
    home = watcher.whole.artifacts.parent.parent
    for call in watcher.reference.calls:
        nameless = call.path.startswith("pipe:") or call.path.endswith(" (deleted)")  # standard output
        assert nameless or f"{call.path}/".startswith((f"{home}/", "/proc/")), call


def _objects(artifacts: Path) -> dict[str, tuple[str, str]]:
    """Step -> key and object."""
    actions = [read_sealed(path) for path in (artifacts / ".store/actions").glob("*/*.json")]
    return {action["step"]: (action["key"], action["object"]) for action in actions if action is not None}
