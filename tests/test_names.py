"""Names of files that travel: what is allowed cannot leave its folder, hide, or be two things."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.names import MAX_LENGTH, MAX_PARTS, check_name, check_names

PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,20}", fullmatch=True)
GOOD = st.lists(PART, min_size=1, max_size=MAX_PARTS).map("/".join)
HOSTILE = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["..", ".", "", "a", ".git", "~", "C:", "a b", "é", "a\n", "\\", "con", "$x", "-r", "+"]))
    .map("/".join)
)  # fmt: skip


def _allowed(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


@settings(max_examples=40)
@given(GOOD)
def test_plain_names_are_allowed(name: str) -> None:
    assert _allowed(name) == (len(name) <= MAX_LENGTH)


@settings(max_examples=300)
@given(HOSTILE)
def test_what_is_allowed_stays_in_its_folder_and_is_plain(name: str) -> None:
    if not _allowed(name):
        return
    folder = Path("/safe/folder")
    assert (folder / name).as_posix() == f"/safe/folder/{name}" and ".." not in Path(name).parts
    assert not PureWindowsPath(name).is_absolute() and not PureWindowsPath(name).drive
    assert not any(part.startswith((".", "-", "~")) for part in name.split("/"))
    assert re.sub(r"[A-Za-z0-9._+/-]", "", name) == "" and name.isascii()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", ".git/x", "a\\b", "C:x", "a b", "ä", "a\n", "a\x00",
     "-rf", "~/x", "a" * 256, "/".join("abcdefghi"), 7],
)  # fmt: skip
def test_name_that_could_mean_something_else_is_refused(name: str) -> None:
    assert not _allowed(name)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["a", "a"], "twice"),
        (["Model.bin", "model.bin"], "case"),
        (["A/x", "a/y"], "case"),
        (["a", "a/b"], "folder"),
        (["a/b", "A"], "folder"),
    ],
)
def test_names_that_clash_on_some_file_system_are_refused(names: list[str], word: str) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(ValueError, match=word):
            check_names(order)


@settings(max_examples=40)
@given(st.lists(GOOD, unique_by=str.lower, max_size=6))
def test_files_of_allowed_names_can_be_made_beside_each_other(names: list[str]) -> None:
    try:
        check_names(names)
    except ValueError:
        return
    lower = [name.lower() for name in names]
    assert len(set(lower)) == len(lower)
    assert not any(a != b and a.startswith(f"{b}/") for a in lower for b in lower)
