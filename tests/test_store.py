"""The store: what is committed is whole, what is served is verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.disk import write_atomically
from compiler.store import Store

KEY = "ab" * 32


def _commit(store: Store, key: str = KEY, content: str = "x") -> str:
    with store.work_folder("t") as folder:
        out = folder / "out"
        (out / "sub").mkdir(parents=True)
        (out / "sub/file.txt").write_text(content)
        return store.commit(key, {}, out, 1.0).digest


def test_committed_result_is_found_and_equal_content_is_stored_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = _commit(store)
    other = _commit(store, "cd" * 32)
    found = store.lookup(KEY)
    assert found is not None and found.digest == digest == other
    assert (found.path / "sub/file.txt").read_text() == "x"
    assert len(list((tmp_path / "objects").glob("*/*"))) == 1


def test_unknown_key_is_a_miss_and_looking_creates_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "s").lookup(KEY) is None
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_damaged_result_is_never_served_and_is_kept_for_diagnosis(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    digest = _commit(store)
    file = store.object_path(digest) / "sub/file.txt"
    file.chmod(0o644)
    if damage == "flip":
        file.write_text("y")
    elif damage == "truncate":
        file.write_text("")
    elif damage == "remove":
        file.unlink()
    else:
        (file.parent / "extra").write_text("z")
    assert store.state(KEY) == "damaged"
    assert store.lookup(KEY) is None
    assert (tmp_path / "quarantine" / digest).is_dir()
    assert _commit(store) == digest and store.lookup(KEY) is not None


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_action_with_another_keys_content_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _commit(store)
    path = tmp_path / "actions/ab" / f"{KEY}.json"
    moved = tmp_path / "actions/cd" / f"{'cd' * 32}.json"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert store.lookup("cd" * 32) is None
