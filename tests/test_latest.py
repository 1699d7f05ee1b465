"""The link `latest`: every build leaves it where it must lead, fsck reports one that leads elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project, command

from compiler.keys.memo import Memo
from compiler.keys.sources import source_closure
from compiler.store import Store, latest
from compiler.versions import WRITERS


def _removed(link: Path) -> None:
    link.unlink()


def _elsewhere(link: Path) -> None:
    link.unlink()
    link.symlink_to("20200101T000000Z-00000000")


def _at_a_copy(link: Path) -> None:
    target = link.resolve()
    shutil.copytree(target, target.with_name("20200101T000000Z-00000000"))
    link.unlink()
    link.symlink_to("20200101T000000Z-00000000")


HARM = [_removed, _elsewhere, _at_a_copy]


@pytest.mark.parametrize("harm", HARM)
def test_build_with_nothing_to_do_restores_latest(built: Project, harm: Callable[[Path], None]) -> None:
    right = built.latest
    harm(right.parent / "latest")
    done = built.build()
    assert done.code == 0 and "Nothing to do" in done.out and built.latest == right


@pytest.mark.parametrize("harm", HARM)
def test_fsck_reports_a_wrong_latest_and_repairs_it(built: Project, harm: Callable[[Path], None]) -> None:
    right, where = built.latest, f"artifacts_dir={built.artifacts}"
    harm(right.parent / "latest")
    found = command("store", "fsck", where)
    assert (found.code == 6 and "latest" in found.err and right.name in found.out + found.err) or "missing" in found.out
    assert built.latest != right
    repaired = command("store", "fsck", "--repair", where)
    assert repaired.code == 0 and "restored" in repaired.out and built.latest == right, repaired.err


def test_latest_stays_at_the_version_delivered_last_whatever_the_names_say(built: Project) -> None:
    """A clock that goes back gives a later version an earlier name."""
    home = built.latest.parent
    first = built.latest
    early = home / "20000101T000000Z-00000000"
    first.rename(early)
    with Store(built.artifacts / ".store") as store:
        latest.record(store, early, "pass")
        assert latest.restore(store, home) and built.latest == early
        shutil.copytree(early, home / "20300101T000000Z-00000000")
        assert latest.wanted(store, home) == early.name and not latest.restore(store, home)
        (built.artifacts / ".store/latest/nullmodel/nulltarget.json").unlink()
        assert latest.wanted(store, home) == "20300101T000000Z-00000000"


def test_latest_leads_to_no_version_that_may_not_be_delivered(built: Project) -> None:
    home, right = built.latest.parent, built.latest
    missed = home / "20990101T000000Z-00000000"
    shutil.copytree(right, missed)
    text = json.loads((missed / "manifest.json").read_text())
    (missed / "manifest.json").chmod(0o644)
    (missed / "manifest.json").write_text(json.dumps(text | {"status": "fail"}))
    (built.artifacts / ".store/latest/nullmodel/nulltarget.json").unlink()
    with Store(built.artifacts / ".store") as store:
        assert latest.wanted(store, home) == right.name
        shutil.rmtree(right)
        assert latest.wanted(store, home) is None and latest.restore(store, home)
        assert not (home / "latest").is_symlink()


def test_every_module_whose_words_reach_a_manifest_counts_and_registries_do_not(tmp_path: Path) -> None:
    found = set(source_closure(WRITERS, Memo(tmp_path / "memo.json")))
    wanted = {
        "manifest",
        "unfinished",
        "sentences",
        "deferral",
        "verdicts",
        "selection",
        "gates",
        "rounding",
        "figures",
    }
    assert {f"compiler.{name}" for name in wanted} <= found
    apart = ("registries", "store", "commands", "walker", "runner")
    assert [name for name in found if name.split(".")[1:2] and name.split(".")[1] in apart] == []


@pytest.mark.parametrize(
    "module",
    [
        "compiler.worker",
        "compiler.runtime.null",
        "compiler.stages.benchmark",
        "compiler.stages.export",
        "compiler.stages.evaluate",
        "compiler.stages.package_deferred",
        "compiler.backends.tflite",
        "compiler.backends.null",
    ],
)
def test_keys_of_steps_do_not_cover_what_only_commands_use(module: str, tmp_path: Path) -> None:
    """Or a comment in a registry's source would measure everything again."""
    found = source_closure((module,), Memo(tmp_path / "memo.json"))
    apart = ("registries", "store", "commands", "walker", "runner", "identity", "versions")
    assert [name for name in found if name.split(".")[1:2] and name.split(".")[1] in apart] == []
    assert not {"compiler.runtime.fetch", "compiler.runtime.trust", "compiler.runtime.verify"} & found.keys()
