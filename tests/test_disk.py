"""Files on disk: copies that share blocks where they can, and are copies everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from compiler.disk import copy

SCRIPT = """
import os, sys
from pathlib import Path
from compiler.disk import copy
folder = Path(sys.argv[1])
(folder / "a").write_bytes(os.urandom(40 << 20))
os.sync()
before = os.statvfs(folder).f_bavail
for name in "bcd":
    copy(folder / "a", folder / name)
os.sync()
used = (before - os.statvfs(folder).f_bavail) * os.statvfs(folder).f_bsize
assert all((folder / n).read_bytes() == (folder / "a").read_bytes() for n in "bcd")
with (folder / "b").open("r+b") as stream:
    stream.write(b"changed")
assert (folder / "a").read_bytes()[:7] != b"changed"
print(used)
"""


def test_copies_are_copies_where_blocks_cannot_be_shared(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(3 << 20))
    target.write_bytes(b"something longer before" * (1 << 18))
    copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    target.write_bytes(b"")
    assert source.stat().st_size == 3 << 20


def test_copies_share_blocks_where_the_file_system_can(tmp_path: Path) -> None:
    """Three copies of 40 MB in a btrfs that has not room for them."""
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs root and btrfs: apt-get install btrfs-progs")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as stream:
        stream.truncate(150 << 20)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    inside = f"mount -o loop {image} {folder} && {sys.executable} -c '{SCRIPT}' {folder}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", inside], capture_output=True, text=True, env=environment, check=False
    )
    if "mount:" in done.stderr:
        pytest.skip(f"a btrfs cannot be mounted here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 << 20
