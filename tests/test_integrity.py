"""Rot: what is not as it was written is found, never served, kept for diagnosis, and made again; nothing else is."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, ROOT, Done, First, Project, command

from compiler import versions
from compiler.config import compose
from compiler.errors import IntegrityError
from compiler.identity import KeyMaker
from compiler.keys.memo import Memo, content_digest, stamp
from compiler.plan import make_plan
from compiler.progress import PlainWatcher
from compiler.runner import Runner
from compiler.store import Store, upkeep
from compiler.store.records import read_sealed, sealed

MEASURED = {"benchmark", "select", "package"}
"""What the figures of a benchmark, which differ each time they are taken, hang on; evaluations besides."""
PORTABLE = ("samples", "export", "null_fp32.convert", "null_int8.quantize")


class Heard(PlainWatcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.began: list[tuple[str, str]] = []

    def started(self, step: str, why: str) -> None:
        self.began.append((step, why))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def store(built: Project) -> Iterator[Store]:
    """The store of the copy."""
    with Store(built.artifacts / ".store") as opened:
        yield opened


def flip(path: Path, bit: int) -> None:
    """Turns one bit of a file over; its length, mode and times of writing and reading stay as they were."""
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(info.st_mode)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.stat().st_mtime_ns == info.st_mtime_ns and path.stat().st_size == info.st_size


def some_bit(path: Path) -> int:
    """A bit of the file, the same one in each run."""
    return random.Random(path.name).randrange(8 * path.stat().st_size)


def actions(store: Store) -> dict[str, dict[str, Any]]:
    """Every action by its key."""
    found = {path.stem: read_sealed(path) for path in sorted((store.root / "actions").glob("*/*.json"))}
    return {key: action for key, action in found.items() if action is not None}


def steps_by_object(store: Store) -> dict[str, set[str]]:
    """The names of the steps behind each object."""
    named: dict[str, set[str]] = {}
    for action in actions(store).values():
        named.setdefault(action["object"], set()).add(action["step"])
    return named


def findings(store: Store, built: Project, repair: bool = False) -> list[upkeep.Damage]:
    """What fsck finds."""
    return list(upkeep.check(store, built.artifacts, repair, lambda _: None))


def outputs(manifest: dict[str, Any]) -> dict[str, Any]:
    """The digests of the files of each portable step."""
    return {step["name"]: step["outputs"] for step in manifest["steps"] if step["name"] in PORTABLE}


def rebuilt(first: First, built: Project, left: tuple[str, ...] = ("the version",)) -> Done:
    """The next build, which must succeed, have the first one's portable results, and leave a store that is whole.

    `left` are words of what no build needs any more, and may still lie there damaged.
    """
    done = built.build()
    assert done.code == 0, done.err
    assert outputs(done.manifest) == outputs(first.manifest)
    with Store(built.artifacts / ".store") as store:
        for damage in findings(store, built):
            assert any(words in damage.what for words in left), damage
    return done


def _affected(names: set[str], ran: list[str]) -> bool:
    """Whether exactly the steps `names` ran; where one measures, also what hangs on its figures, which are new."""
    if "benchmark" not in names:
        return set(ran) == names
    needed = {name for name in names if not name.startswith("evaluate.")}
    return needed <= set(ran) and all(n in names | MEASURED or n.startswith("evaluate.") for n in ran)


# -- bits ----------------------------------------------------------------------------------------------------------


def test_one_bit_flipped_in_every_file_of_every_object_is_found_named_and_never_served(
    built: Project, store: Store
) -> None:
    said: list[str] = []
    store.objects.on_damage = said.append
    assert findings(store, built) == []
    files = [path for folder in built.objects() for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 30
    by_object: dict[str, list[str]] = {}
    for key, action in actions(store).items():
        by_object.setdefault(action["object"], []).append(key)
    for path in files:
        digest = path.parent.name
        bit = some_bit(path)
        flip(path, bit)
        assert [damage.what for damage in findings(store, built) if digest[:12] in damage.what], path
        for key in by_object[digest]:
            assert store.lookup(key) is None and store.state(key) == "damaged", path
        aside = store.root / "quarantine" / digest
        assert not store.object_path(digest).exists() and (aside / path.name).is_file()
        assert said and str(aside) in said.pop(), path
        flip(aside / path.name, bit)
        aside.rename(store.object_path(digest))
        for key in by_object[digest]:
            assert store.lookup(key) is not None, path
    assert findings(store, built) == []


def test_one_bit_flipped_in_every_record_is_found_and_none_is_believed(built: Project, store: Store) -> None:
    kinds = {"actions": 11, "verified": 11, "last": 11, "versions": 1}
    for kind, least in kinds.items():
        paths = sorted((store.root / kind).rglob("*.json"))
        assert len(paths) >= least, kind
        for path in paths:
            bit = some_bit(path)
            flip(path, bit)
            assert read_sealed(path) is None
            name = path.relative_to(store.root).as_posix()
            assert [damage.what for damage in findings(store, built) if name in damage.what], name
            if kind == "actions":
                assert store.lookup(path.stem) is None and store.state(path.stem) == "damaged"
            if kind == "versions":
                assert versions.find(built.artifacts, store, path.stem, Memo(store.root / "none.json")) is None
            flip(path, bit)
    memo = store.root / "memo.json"
    flip(memo, some_bit(memo))
    assert any("memo.json" in damage.what for damage in findings(store, built))
    assert Memo(memo)._rows == {}  # every input is read anew
    # what says that an object was verified is not needed: the object is read, and served
    for path in sorted((store.root / "verified").rglob("*.json")):
        flip(path, some_bit(path))
    assert all(store.lookup(key) is not None for key in actions(store))


def test_every_bit_of_a_record_counts(built: Project, store: Store) -> None:
    path = sorted((store.root / "actions").glob("*/*.json"))[0]
    data = path.read_bytes()
    path.chmod(0o644)
    believed = 0
    for bit in {*range(8 * 80), *random.Random(0).sample(range(8 * len(data)), 400)}:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        believed += read_sealed(path) is not None
    assert believed == 0
    for length in (0, 1, 60, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert read_sealed(path) is None
    path.write_bytes(data + b" ")
    assert read_sealed(path) is None


def _spoil_and_build(first: First, folder: Path, number: int) -> None:
    """One bit flipped in the `number`-th object of a copy: the next build says so, and makes that alone again."""
    project = Project(folder)
    shutil.copytree(first.project.artifacts, project.artifacts, symlinks=True)
    with Store(project.artifacts / ".store") as store:
        names = steps_by_object(store)[project.objects()[number].name]
    path = random.Random(number).choice(sorted(p for p in project.objects()[number].rglob("*") if p.is_file()))
    flip(path, some_bit(path))
    aside = project.artifacts / ".store/quarantine" / path.parent.name
    done = rebuilt(first, project)
    assert f"a stored result is not as it was written: set aside in {aside}" in done.err, done.err
    assert all(f"{name}: running (result missing or corrupt)" in done.err for name in names), done.err
    assert _affected(names, done.executed), (names, done.err)
    assert (aside / path.name).is_file()
    shutil.rmtree(folder)


def test_build_after_a_flipped_bit_says_so_and_makes_only_that_again(first: First, tmp_path: Path) -> None:
    """A seeded sample of the soak test."""
    for number in random.Random(2).sample(range(len(first.project.objects())), 2):
        _spoil_and_build(first, tmp_path / str(number), number)


@pytest.mark.soak
def test_build_after_a_flipped_bit_in_each_object_makes_only_that_again(first: First, tmp_path: Path) -> None:
    """One bit in each object in turn."""
    for number in range(len(first.project.objects())):
        _spoil_and_build(first, tmp_path / str(number), number)


def _rot(store: Store, folder: Path, name: str) -> None:
    """One bit of a file turned over as a disk rots: even the times of its entry are those at which it was verified."""
    flip(folder / name, some_bit(folder / name))
    rows = []
    for file in sorted(folder.iterdir()):
        info = file.stat()
        rows.append([file.name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino])
    record = store.root / "verified" / folder.name[:2] / f"{folder.name}.json"
    record.write_bytes(sealed({"files": rows}))


def test_rot_that_changes_no_time_is_found_in_what_builds_read_themselves(first: First, built: Project) -> None:
    """Figures and signatures decide what a build does and says: small files are read in full each time."""
    with Store(built.artifacts / ".store") as store:
        named = {name: store.object_path(d) for d, names in steps_by_object(store).items() for name in names}
        spoiled = {name: named[name] for name in ("export", "null_int8.quantize", "evaluate.report.null_baseline")}
        for folder in spoiled.values():
            _rot(store, folder, "facts.json")
    done = rebuilt(first, built)
    assert set(done.executed) == set(spoiled) and done.err.count("is not as it was written: set aside in") == 3


def test_rot_that_changes_no_time_is_found_by_fsck_and_before_a_step_reads_it(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files are believed to be what they were while their times are, until a step is to read them."""
    monkeypatch.setattr("compiler.store.objects.SMALL_BYTES", 0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    watcher = Heard()
    with Store(built.artifacts / ".store") as store:
        named = {name: store.object_path(d) for d, names in steps_by_object(store).items() for name in names}
        for step, file in (("samples", "calibration.npy"), ("null_fp32.convert", "model.npz")):
            _rot(store, named[step], file)
        found = [damage.what for damage in findings(store, built)]
        assert len(found) == 2
        assert all(any(named[step].name[:12] in what for what in found) for step in ("samples", "null_fp32.convert"))
        config = compose([*map(str, built.base[2:]), "candidate.null_int8.steps.quantize.bits=7"], [CONF])
        keys = KeyMaker(config, Memo(store.root / "memo.json", store.write))
        outcome = Runner(make_plan(config), store, keys, watcher).make(["null_int8.quantize"])
        assert outcome.results["null_fp32.convert"].path == named["null_fp32.convert"]
        assert findings(store, built) == []
    for step in ("samples", "null_fp32.convert"):
        assert f"the stored result of {step} does not match its digest: set aside, made again" in watcher.notes
        assert (step, "result missing or corrupt") in watcher.began
    assert sorted(step for step, _ in watcher.began) == ["null_fp32.convert", "null_int8.quantize", "samples"]


# -- pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["short", "long", "empty", "gone", "extra", "link", "folder", "all gone", "a file"])
def test_object_of_another_shape_is_not_served(built: Project, store: Store, damage: str) -> None:
    for key, action in actions(store).items():
        folder = store.object_path(action["object"])
        path = folder / "facts.json"
        path.chmod(0o644)
        if damage == "short":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "long":
            path.write_bytes(path.read_bytes() + b"\n")
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "gone":
            path.unlink()
        elif damage == "extra":
            (folder / "sub").mkdir()
            (folder / "sub/more.txt").write_text("x")
        elif damage == "link":
            other = built.artifacts / f"{key}.json"
            path.rename(other)
            path.symlink_to(other)
        elif damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            shutil.rmtree(folder)
            if damage == "a file":
                folder.write_text("x")
        assert [found.what for found in findings(store, built)], action["step"]
        assert store.lookup(key) is None and store.state(key) == "damaged"
        assert (store.root / "quarantine" / folder.name).exists() == (damage != "all gone")


def test_damage_that_cannot_be_set_aside_is_an_error_and_is_not_taken_for_a_new_result(
    built: Project, store: Store
) -> None:
    """Nothing can be moved into `quarantine`: what lies where the result belongs must not pass for it."""
    (store.root / "quarantine").write_text("not a folder")
    moved_from = {store.object_path(action["object"]) for action in actions(store).values()}
    for key, action in actions(store).items():
        folder = store.object_path(action["object"])
        with store.work_folder("again") as work:
            shutil.copytree(folder, work / "out")
            flip(folder / "facts.json", 8)
            with pytest.raises(IntegrityError, match="could not be set aside"):
                store.commit(key, action["document"], work / "out", 0.0)
        assert store.lookup(key) is None and store.state(key) == "damaged"
    repaired = command("store", "fsck", f"artifacts_dir={built.artifacts}", "--repair")
    assert repaired.code == 0 and "quarantine is nothing that a build has made" in repaired.out, repaired.err
    moved = {path.name for path in (store.root / "quarantine").iterdir()}
    assert moved == {path.name for path in moved_from} and not any(path.exists() for path in moved_from)


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o666, 0o777])
def test_modes_decide_nothing_but_whether_a_file_can_be_read(store: Store, mode: int) -> None:
    """What is served is what has the digest: read-only files are a courtesy, not the proof."""
    for key, action in actions(store).items():
        path = store.object_path(action["object"]) / "facts.json"
        path.chmod(mode)
        assert (store.lookup(key) is not None) == os.access(path, os.R_OK)


def _delete_half_and_build(first: First, folder: Path, seed: int, measured: bool) -> None:
    """Half of the objects deleted, the benchmark's among them or not: only what is gone runs."""
    project = Project(folder)
    shutil.copytree(first.project.artifacts, project.artifacts, symlinks=True)
    with Store(project.artifacts / ".store") as store:
        named = steps_by_object(store)
    benchmark = {digest for digest, names in named.items() if "benchmark" in names}
    others = sorted(set(named) - benchmark)
    gone = random.Random(seed).sample(others, len(named) // 2 - measured) + sorted(benchmark)[: int(measured)]
    for path in project.objects():
        if path.name in gone:
            shutil.rmtree(path)
    lost = {name for digest in gone for name in named[digest]}
    done = rebuilt(first, project, left=("is missing",) if measured else ())  # of the figures that were there before
    assert _affected(lost, done.executed), (seed, lost, done.err)
    for name in (lost & set(done.executed)) - (MEASURED - {"benchmark"} if measured else set()):
        assert f"{name}: running (result missing or corrupt)" in done.err, done.err
    if not measured:
        assert f"{len(lost)} results were made again; this version was written before." in done.out, done.out
    again = project.build()
    assert again.code == 0 and again.executed == [] and "Nothing to do" in again.out
    shutil.rmtree(folder)


def test_half_of_the_objects_deleted_makes_only_these_again(first: First, tmp_path: Path) -> None:
    """A seeded sample of the soak test."""
    for seed, measured in ((0, False), (1, True)):
        _delete_half_and_build(first, tmp_path / str(seed), seed, measured)


@pytest.mark.soak
def test_half_of_the_objects_deleted_makes_only_these_again_each_time(first: First, tmp_path: Path) -> None:
    """Twenty choices of which half."""
    for seed in range(20):
        _delete_half_and_build(first, tmp_path / str(seed), seed, measured=seed % 4 == 3)


# -- fsck ----------------------------------------------------------------------------------------------------------


def test_fsck_names_what_is_damaged_repairs_it_and_the_next_build_makes_only_that(first: First, built: Project) -> None:
    fsck = ["store", "fsck", f"artifacts_dir={built.artifacts}"]
    with Store(built.artifacts / ".store") as store:
        objects = {name: digest for digest, names in steps_by_object(store).items() for name in names}
        keys = {action["step"]: key for key, action in actions(store).items()}
        model = store.object_path(objects["export"]) / "model.npz"
        flip(model, some_bit(model))
        record = store.action_path(keys["select"])
        flip(record, some_bit(record))
        shutil.rmtree(store.object_path(objects["evaluate.report.null_baseline"]))
    found = command(*fsck)
    assert found.code == 6, found.out
    lines = found.out.splitlines()
    assert len(lines) == 3 and "fsck --repair" in found.last_lines()[0], found.out
    for name in (objects["export"][:12], keys["select"], "evaluate.report.null_baseline"):
        assert any(name in line for line in lines), (name, found.out)
    assert model.exists() and record.exists()  # who only looks changes nothing
    mended = command(*fsck, "--repair")
    assert mended.code == 0 and "all mended" in mended.out, mended.out + mended.err
    assert (built.artifacts / ".store/quarantine" / objects["export"] / "model.npz").is_file()
    after = command(*fsck)
    assert after.code == 0 and "everything is as it was written" in after.out, after.out
    done = rebuilt(first, built)
    assert set(done.executed) == {"export", "select", "evaluate.report.null_baseline"}
    assert done.err.count("result missing or corrupt") == 3
    assert "3 results were made again; this version was written before." in done.out


def test_input_that_rotted_is_found_though_nothing_says_that_it_changed(built: Project, tmp_path: Path) -> None:
    """Size, times and inode are those that its digest is remembered for: only reading it tells."""
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"good" * 100)
    old = content_digest(weights, Memo(tmp_path / "none.json"))
    weights.write_bytes(b"evil" * 100)
    with Store(built.artifacts / ".store") as store:
        memo = store.root / "memo.json"
        rows = {**(read_sealed(memo) or {})["rows"], f"sha256:{weights}": [stamp(weights), old]}
        memo.write_bytes(sealed({**(read_sealed(memo) or {}), "rows": rows}))
        assert content_digest(weights, Memo(memo)) == old  # every build would believe it
        config = compose([*map(str, built.base[2:]), f"model.weights={weights}"], [CONF])
        with pytest.raises(IntegrityError, match="other content"):  # unless it writes a version
            KeyMaker(config, Memo(memo)).check_fully(make_plan(config))
    fsck = ["store", "fsck", f"artifacts_dir={built.artifacts}"]
    found = command(*fsck, "--json")
    assert found.code == 6 and str(weights) in found.last_lines()[1]
    assert [item["what"] for item in json.loads(found.out) if str(weights) in item["what"]]
    repaired = command(*fsck, "--repair")
    assert repaired.code == 6 and "restore the inputs" in repaired.last_lines()[0]  # nobody else can
    assert not memo.exists()
    assert command(*fsck).code == 0  # what it holds now is what builds will read


def test_finished_version_that_rotted_is_named_and_written_again(first: First, built: Project) -> None:
    folder = (built.artifacts / "nullmodel/nulltarget/latest").resolve()
    with Store(built.artifacts / ".store") as store:
        files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
        assert len(files) >= 5
        for path in files:
            bit = some_bit(path)
            flip(path, bit)
            found = findings(store, built)
            assert [damage.what for damage in found if folder.name in damage.what and path.name in damage.what], path
            assert all(not damage.mended for damage in findings(store, built, repair=True))
            flip(path, bit)
    flip(folder / "model.npz", 4321)
    found = command("store", "fsck", f"artifacts_dir={built.artifacts}", "--repair")
    assert found.code == 6 and folder.name in found.last_lines()[1]
    done = rebuilt(first, built)
    assert done.executed == [] and done.manifest_path.parent.name != folder.name
    assert command("verify", done.manifest_path.parent).code == 0
    assert (folder.parent / "latest").resolve() == done.manifest_path.parent


def test_damaged_bookkeeping_costs_no_step_that_was_not_damaged(first: First, built: Project) -> None:
    store = built.artifacts / ".store"
    for path in [store / "memo.json", *(store / "last").rglob("*.json"), *(store / "verified").rglob("*.json")]:
        flip(path, some_bit(path))
    done = rebuilt(first, built)
    assert done.executed == [] and "Nothing to do" in done.out
