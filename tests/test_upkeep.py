"""Upkeep: what gc may take, what dead processes leave, clocks that are wrong, stores that cannot be written to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Done, First, Project, command, environment
from processes import in_mount_namespace, wait_until

from compiler.canonical import digest
from compiler.runtime.verify import verify
from compiler.store import Origin, Store, upkeep
from compiler.store.records import sealed

TEN_YEARS_S = 10 * 365 * 86400
MB = 1_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store in `tmp_path`/.store."""
    with Store(tmp_path / ".store") as opened:
        yield opened


def commit(store: Store, name: str, size: int = MB, used: float | None = None, scope: str = "m/t") -> str:
    """A result of `size` bytes, last of use at `used`; returns its key."""
    document = {"step": name}
    key = digest(document)
    with store.work_folder("t") as folder:
        (folder / "out").mkdir()
        (folder / "out" / "data").write_bytes(name.encode().ljust(size, b"."))
        store.commit(key, document, folder / "out", 0.0, Origin(name, scope))
    if used is not None:
        os.utime(store.action_path(key), (used, used))
    return key


def version(artifacts: Path, place: str, keys: list[str]) -> Path:
    """A finished version that was built from `keys`, as far as gc reads it."""
    folder = artifacts / place
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"steps": [{"key": key} for key in keys]}))
    return folder


def left(store: Store) -> set[str]:
    """The steps whose results are there and whole."""
    artifacts = store.root.parent
    assert list(upkeep.check(store, artifacts, repair=False, told=lambda _: None)) == [] or artifacts.exists()
    return {row.step for row in upkeep.rows(store, artifacts) if store.lookup(row.key)}


def collect(root: Path, keep: int | None, largest: int | None, dry_run: bool = False) -> upkeep.Collected:
    """Garbage collection by a process of its own, so that nothing that this one took is in use."""
    with Store(root) as other:
        return upkeep.collect(other, root.parent, keep, largest, dry_run)


def fill(tmp_path: Path) -> dict[str, str]:
    """Results a to f, used in that order, f by two keys' worth of versions; the keys by name."""
    with Store(tmp_path / ".store") as store:
        return {name: commit(store, name, used=1e9 + 1000 * i) for i, name in enumerate("abcdef")}


# -- gc ------------------------------------------------------------------------------------------------------------


def test_gc_keeps_what_the_newest_versions_and_latest_need(store: Store, tmp_path: Path) -> None:
    keys = fill(tmp_path)
    for number, names in ((1, "ab"), (2, "bc"), (3, "cd")):
        version(tmp_path, f"m/t/{number}", [keys[name] for name in names])
    version(tmp_path, "m/other/1", [keys["e"]])
    (tmp_path / "m/t/latest").symlink_to("1")
    assert {row.step: row.kept_by for row in upkeep.rows(store, tmp_path)} == dict(a=1, b=2, c=2, d=1, e=1, f=0)
    rehearsed = collect(store.root, 1, None, dry_run=True)
    assert {row.step for row in rehearsed.results} == {"f"} and left(store) == set("abcdef")
    assert {row.step for row in collect(store.root, 1, None).results} == {"f"}
    assert left(store) == set("abcde")  # 3 is the newest, latest is 1, the other target has one of its own
    (tmp_path / "m/t/latest").unlink()
    assert {row.step for row in collect(store.root, 2, None).results} == {"a"} and left(store) == set("bcde")
    done = collect(store.root, 0, None)
    assert left(store) == set() and done.results_left == done.bytes_left == 0 and done.bytes_freed == 4 * MB
    assert sorted(path.parent.name for path in tmp_path.glob("*/*/*/manifest.json")) == ["1", "1", "2", "3"]


def test_gc_with_a_size_takes_the_least_recently_used_until_it_fits(store: Store, tmp_path: Path) -> None:
    keys = fill(tmp_path)
    version(tmp_path, "m/t/1", [keys["a"]])
    done = collect(store.root, None, 4 * MB)
    assert [row.step for row in done.results] == ["b", "c"] and left(store) == set("adef")
    assert done.bytes_left == 4 * MB and done.bytes_freed == 2 * MB
    with Store(store.root) as user:
        assert user.take(keys["d"]) is not None  # used again, and no longer in use: `user` has ended
    done = collect(store.root, None, 3 * MB)
    assert [row.step for row in done.results] == ["e"]
    assert collect(store.root, None, 3 * MB).results == []
    done = collect(store.root, None, 0)
    assert left(store) == {"a"} and done.bytes_left == MB  # the version's own stays: without --keep all are kept
    assert left(store) == {"a"} and collect(store.root, 0, 0).bytes_left == 0


def test_gc_takes_one_of_two_names_of_equal_content_only_when_neither_is_needed(store: Store, tmp_path: Path) -> None:
    with Store(store.root) as maker:
        for name in ("x", "y"):
            with maker.work_folder("t") as folder:
                (folder / "out").mkdir()
                (folder / "out/data").write_bytes(b"same")
                maker.commit(digest({"step": name}), {"step": name}, folder / "out", 0.0, Origin(name, "m/t"))
    version(tmp_path, "m/t/1", [digest({"step": "y"})])
    collect(store.root, 1, None)
    assert store.lookup(digest({"step": "y"})) is not None
    shutil.rmtree(tmp_path / "m")
    assert {row.step for row in collect(store.root, 1, None).results} == {"x", "y"} and left(store) == set()
    assert not list((store.root / "objects").glob("*/*"))


def test_gc_takes_nothing_that_a_living_process_took_made_or_had_last(store: Store, tmp_path: Path) -> None:
    keys = fill(tmp_path)
    with Store(store.root) as build:
        assert build.take(keys["b"]) is not None
        made = commit(build, "g", scope="other/t")
        build.needs("mine/t")
        commit(store, "h", scope="mine/t")  # by another build of the same model and target
        build.remember_last("mine/t", "c-step", {"step": "c"})
        store.__exit__()
        collect(store.root, 0, 0)
        assert left(store) == set("bcgh") and build.lookup(made) is not None
    assert len(collect(store.root, 0, 0).results) == 4


def test_gc_takes_failures_quarantine_nameless_objects_and_unheld_locks(store: Store, tmp_path: Path) -> None:
    keys = fill(tmp_path)
    version(tmp_path, "m/t/1", list(keys.values()))
    with store.work_folder("failed") as folder:
        store.keep_failure("ab" * 32, folder)
        folder.mkdir()
    damaged = store.lookup(keys["a"])
    assert damaged is not None
    (damaged.path / "more").write_text("x")
    assert store.lookup(keys["a"]) is None
    nameless = store.lookup(keys["f"])
    assert nameless is not None
    store.action_path(keys["f"]).unlink()
    with store.lock("unheld"):
        pass
    with store.lock("held"):
        store.__exit__()
        done = collect(store.root, 1, None)
        assert (store.root / "locks/held").exists() and not (store.root / "locks/unheld").exists()
    assert done.other["failures"] == done.other["quarantined"] == done.other["nameless results"] == 1
    assert left(store) == set("bcde")


def test_gc_forgets_what_own_code_read_for_results_that_are_gone(store: Store, tmp_path: Path) -> None:
    names = {}
    for name in ("kept", "gone"):
        document = {"step": name, "reads": {"own:table.json": name}}
        names[name] = digest(document)
        with store.work_folder("t") as folder:
            (folder / "out").mkdir()
            (folder / "out" / "data").write_text(name)
            store.commit(names[name], document, folder / "out", 0.0, Origin(name, "m/t"))
        store.remember_reads(digest({"step": name}), ["own:table.json"])
    version(tmp_path, "m/t/1", [names["kept"]])
    store.__exit__()
    assert collect(store.root, 1, None, dry_run=True).other["lists of files read"] == 1
    assert collect(store.root, 1, None).other["lists of files read"] == 1
    assert store.read_sets(digest({"step": "kept"})) == [["own:table.json"]]
    assert store.read_sets(digest({"step": "gone"})) == []


def test_gcs_flags_say_what_they_do_and_after_it_the_kept_build_has_nothing_to_do(built: Project) -> None:
    assert built.build("seed=1").code == 0
    gc = ["store", "gc", f"artifacts_dir={built.artifacts}"]
    objects = built.objects()
    said = command(*gc, "--dry-run", "--keep", "0")
    assert said.code == 0 and "would remove" in said.out and built.objects() == objects
    done = command(*gc, "--json")  # keeps the newest version
    gone = json.loads(done.out)
    assert (
        done.code == 0 and gone["dry_run"] is False and {"samples", "package"} <= {r["step"] for r in gone["results"]}
    )
    assert 0 < len(built.objects()) == len(objects) - len({r["object"] for r in gone["results"]})
    small = command(*gc, "--max-size", "1KB")
    assert small.code == 0 and "see --keep" in small.err
    again = built.build("seed=1")
    assert again.code == 0 and again.executed == [] and "Nothing to do" in again.out
    assert {row["state"] for row in built.plan().values()} == {"miss", "pending", "on demand"}
    assert command(*gc, "--max-size", "much").code == command(*gc, "--keep", "-1").code == 2
    everything = command(*gc, "--keep", "0")
    assert everything.code == 0 and "0 results (0.00 MB) left" in everything.out and built.objects() == []
    assert [verify(path.parent)["status"] for path in built.artifacts.glob("*/*/*/manifest.json")] == [
        "provisional"
    ] * 3


# -- leftovers -----------------------------------------------------------------------------------------------------

SLEEPER = """
import sys, time
from pathlib import Path
from compiler.store import Store
store = Store(Path(sys.argv[1]))
(store.scratch() / "half-made").write_text("x")
with store.lock("busy"):
    print(store.scratch(), flush=True)
    time.sleep(600)
"""


def test_what_a_dead_process_left_is_reclaimed_and_what_a_living_one_has_is_not(store: Store, tmp_path: Path) -> None:
    started = []
    for number in range(2):
        script = SLEEPER.replace("busy", f"busy-{number}")
        line = [sys.executable, "-c", script, store.root]
        started.append(subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True))
    try:
        folders = [Path((process.stdout or sys.stdin).readline().strip()) for process in started]
        for folder in folders:
            old = time.time() - TEN_YEARS_S  # age says nothing: a build may take long, and clocks be wrong
            os.utime(folder, (old, old))
        store.clean_leftovers()
        assert all((folder / "half-made").is_file() for folder in folders)
        dead, living = folders
        started[0].send_signal(signal.SIGKILL)
        started[0].wait(timeout=20)
        store.clean_leftovers()
        assert not dead.exists() and (living / "half-made").is_file()
        with store.lock("busy-0"):  # the dead one's lock is free
            done = collect(store.root, 0, None)
        assert (living / "half-made").is_file() and done.other["leftovers"] == 0
    finally:
        for process in started:
            process.kill()
            process.communicate()
    wait_until(lambda: collect(store.root, 0, None).other["leftovers"] == 1, "gc takes what it left")
    assert not living.exists()


# -- clocks --------------------------------------------------------------------------------------------------------


def test_times_of_all_files_ten_years_off_make_nothing_run(built: Project) -> None:
    for years in (10, -20):
        for path in [built.artifacts, *built.artifacts.rglob("*")]:
            if not path.is_symlink():
                shifted = path.stat().st_mtime + years / 10 * TEN_YEARS_S
                os.utime(path, (shifted, shifted))
        with Store(built.artifacts / ".store") as store:
            store.clean_leftovers()
            assert list(upkeep.check(store, built.artifacts, repair=False, told=lambda _: None)) == []
        again = built.build()
        assert again.code == 0 and again.executed == [] and "Nothing to do" in again.out, again.err


def _at(shift: str, project: Project, *overrides: str) -> Done:
    """A build whose clock is `shift` off."""
    done = subprocess.run(
        ["faketime", "-f", shift, sys.executable, "-m", "compiler", *map(str, project.base), *overrides],
        capture_output=True, text=True, env=environment(), check=False, timeout=300,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def test_build_whose_clock_is_ten_years_off_finds_what_is_there_and_writes_what_is_not(project: Project) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("needs faketime: apt-get install faketime")
    first = _at("+0d", project)
    assert first.code == 0, first.err
    versions = [first.manifest_path.parent]
    for number, shift in enumerate(("+10y", "-10y"), 1):
        again = _at(shift, project)
        assert again.code == 0 and again.executed == [] and again.manifest_path.parent == versions[0], again.err
        new = _at(shift, project, f"budget.size_mb={number}")
        assert new.code == 0 and "select" in new.executed, new.err
        versions.append(new.manifest_path.parent)
        assert (versions[0].parent / "latest").resolve() == versions[-1]
        assert verify(versions[-1])["status"] == "provisional"
    ages = [int(path.name[:4]) for path in versions]
    assert ages[1] - ages[0] in (9, 10) and ages[0] - ages[2] in (10, 11)  # the clock was really off
    with Store(project.artifacts / ".store") as store:
        assert list(upkeep.check(store, project.artifacts, repair=False, told=lambda _: None)) == []


# -- read-only -----------------------------------------------------------------------------------------------------


def _mounted(first: First, folder: Path) -> list[str]:
    """Shell lines that put a finished build where it can be made read-only."""
    return [f"mount -t tmpfs none {folder}", f"cp -a {first.project.artifacts} {folder}/artifacts"]


def test_store_that_cannot_be_written_to_serves_all_that_reads_and_says_so_to_what_writes(
    first: First, tmp_path: Path
) -> None:
    latest, where = f"{tmp_path}/artifacts/nullmodel/nulltarget/latest", f"artifacts_dir={tmp_path}/artifacts"
    project = Project(tmp_path)
    reading = [
        "{build}", f"{{compiler}} show {latest}", f"{{compiler}} verify {latest}", f"{{compiler}} store ls {where}",
        f"{{compiler}} store fsck {where}", f"{{compiler}} plan {' '.join(map(str, project.base))}",
    ]  # fmt: skip
    lines = [*_mounted(first, tmp_path), f"mount -o remount,ro {tmp_path}"]
    lines += [f"({line}); echo code $?" for line in reading]
    lines += [f"({{compiler}} store gc {where}); echo gc $?", "{other}"]
    done = in_mount_namespace("\n".join(lines), project, "seed=1")
    assert done.stdout.count("code 0") == len(reading), done.stdout + done.stderr
    assert "Nothing to do" in done.stdout and "everything is as it was written" in done.stdout
    assert "in the store" in done.stdout and "gc 2" in done.stdout
    assert done.stderr.count("cannot write below") == 2, done.stderr
    assert done.returncode == 2 and "cannot write below" in done.stderr.strip().splitlines()[-1]


def test_damage_in_a_store_that_cannot_be_written_to_is_not_served_either(first: First, tmp_path: Path) -> None:
    project = Project(tmp_path)
    spoil = f"import glob; p = glob.glob('{tmp_path}/artifacts/.store/objects/*/*/predictions.npz')[0]; "
    spoil += "import os; os.chmod(p, 0o644); d = bytearray(open(p, 'rb').read()); d[9] ^= 1; open(p, 'wb').write(d)"
    lines = [
        *_mounted(first, tmp_path), f'{sys.executable} -c "{spoil}"',
        f"mount -o remount,ro {tmp_path}", f"({{compiler}} store fsck --repair artifacts_dir={tmp_path}/artifacts)",
        "echo fsck $?", "{build}",
    ]  # fmt: skip
    done = in_mount_namespace("\n".join(lines), project)
    assert "fsck 6" in done.stdout and "findings remain" in done.stderr, done.stderr
    assert done.returncode == 2 and "cannot write below" in done.stderr.strip().splitlines()[-1], done.stderr
    assert "Nothing to do" not in done.stdout


def test_link_in_a_store_is_removed_and_what_it_points_to_left_alone(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (mine / "secret").write_text("x")
    (mine / "secret").chmod(0o600)
    commit(store, "a")
    for name, target in {"file": mine / "secret", "folder": mine, "nowhere": tmp_path / "nowhere"}.items():
        (store.root / "work" / name).symlink_to(target)
    with store:
        store.clean_leftovers()
    assert [path.name for path in (store.root / "work").iterdir() if path.is_symlink()] == []
    assert (mine / "secret").read_text() == "x"
    assert ((mine / "secret").stat().st_mode & 0o777, mine.stat().st_mode & 0o777) == (0o600, 0o700)


def test_record_of_another_form_stops_no_upkeep(built: Project) -> None:
    strange = built.artifacts / ".store/actions/ab" / f"{'ab' * 32}.json"
    strange.parent.mkdir(exist_ok=True)
    strange.write_bytes(sealed({"key": "ab" * 32}))
    (strange.parent / "folder.json").mkdir()
    where = f"artifacts_dir={built.artifacts}"
    assert command("store", "ls", where).code == 0
    assert command("store", "gc", where).code == 0
    assert command("store", "fsck", where).code == 6
    assert command("store", "fsck", "--repair", where).code == 0
    assert command("store", "fsck", where).code == 0


def test_gc_makes_room_on_a_disk_that_is_full(tmp_path: Path) -> None:
    project = Project(tmp_path)
    gc = f"{sys.executable} -m compiler store gc --keep 0 artifacts_dir={project.artifacts}"
    inside = (
        f"mount -t tmpfs -o nr_inodes=400 none {tmp_path} && {{build}}; n=0; "
        f"while touch {tmp_path}/filler$n; do n=$((n+1)); done; {gc}"
    )
    done = in_mount_namespace(inside, project)
    assert done.returncode == 0, done.stderr
    assert "removed 11 results" in done.stdout and "0 results (0.00 MB) left" in done.stdout
