"""Files that the user names: what is no regular file, or far too large, is refused in words and not waited for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, ROOT, First, environment
from security.many_commands import SECONDS

from compiler.errors import ConfigError
from compiler.foreign_files import open_lock_file, open_regular, read_limited
from compiler.keys.memo import content_digest, full_digest
from compiler.registries import http
from compiler.registries.credentials import _read as read_credentials
from compiler.runtime.signatures import _command


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's whole path would be too long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def _terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


MADE: dict[str, Callable[[Path], Any]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "socket": _socket,
    "terabyte": _terabyte,
    "loop": lambda path: path.symlink_to(path),
    "link-to-nowhere": lambda path: path.symlink_to("nowhere"),
    "link-to-device": lambda path: path.symlink_to("/dev/zero"),
}
NAMED = {"device": "/dev/zero", "memory": "/proc/self/mem", "input": "/dev/stdin", "long": "x" * 5000}
VERSION, FILE = "{version}", "{file}"
PLAN = ["plan", "--config-dir", str(CONF), "target=nulltarget", "model=nullmodel"]
FOLDER_OF_IMAGES = ["plan", "target=host", "model=resnet18", "data=imagefolder", "data.root=pictures"]
FORMS: dict[str, list[str]] = {
    "version to show": ["show", FILE],
    "version to verify": ["verify", FILE],
    "version to compare": ["compare", VERSION, FILE],
    "version that is replaced": ["verify", VERSION, "--installed", FILE],
    "public key": ["verify", VERSION, "--key", FILE],
    "policy": ["verify", VERSION, "--policy", FILE],
    "input": ["run", VERSION, "--input", FILE, "--output", "out.npy"],
    "picture": ["run", VERSION, "--input", f"{FILE}.png", "--output", "out.npy"],
    "archive": ["run", VERSION, "--input", f"{FILE}.npz", "--output", "out.npy"],
    "samples": ["measure", VERSION, "--samples", FILE],
    "measurement": ["measure", VERSION, "--add", FILE],
    "private key": ["publish", VERSION, "file:registry", "--key", FILE],
    "certificate": ["publish", VERSION, "file:registry", "--key", "keys/team.key", "--certificate", FILE],
    "registry": ["history", f"file:{FILE}"],
    "folder of configuration": ["plan", "--config-dir", FILE, "target=nulltarget"],
    "store": ["store", "fsck", f"artifacts_dir={FILE}"],
    "weights": [*FOLDER_OF_IMAGES, f"model.weights={FILE}"],
    "list of classes": [*FOLDER_OF_IMAGES, f"data.classes={FILE}"],
    "key in the configuration": [*PLAN, "publish=true", "registry=file:registry", f"signing.key={FILE}"],
}
FINE = {
    ("folder of configuration", "folder"), ("registry", "folder"), ("weights", "folder"), ("list of classes", "folder"),
    ("key in the configuration", "terabyte"), ("key in the configuration", "memory"),
}  # fmt: skip
"""What a plan is content with, because the build's first step says it, and folders where a folder is due."""
QUICK = ("version to show", "version to verify", "public key", "policy", "registry", "store")
"""Asked with every file; what takes longer, with the few that differ most."""
FEW = ("fifo", "terabyte", "device", "long")
CASES = [
    (form, place)
    for form in FORMS
    for place in ((*MADE, *NAMED) if form in QUICK else FEW)
    if (form, place) not in FINE
]


@pytest.fixture(scope="module")
def ended(first: First, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """The outcome of every form of a command line with every file."""
    folder = tmp_path_factory.mktemp("files")
    for ending in ("", ".png", ".npz"):
        for name, make in MADE.items():
            make(folder / f"{name}{ending}")
    (folder / "keys").mkdir()
    subprocess.run([_command()[0][0], ROOT / "tests" / "certificates.py", folder / "keys", "secret"], check=True)
    (folder / "pictures" / "a").mkdir(parents=True)
    cases = []
    for form, place in CASES:
        named = NAMED.get(place, place)
        words = [word.replace(VERSION, str(first.project.latest)).replace(FILE, named) for word in FORMS[form]]
        cases.append({"arguments": words, "folder": str(folder), "settings": {"HOME": str(folder)}})
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("many_commands.py")],
        input=json.dumps(cases), capture_output=True, text=True, env=environment(), check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_file_is_refused_at_once(form: str, ended: dict[tuple[str, str], dict[str, Any]]) -> None:
    for place in [place for asked, place in CASES if asked == form]:
        done = ended[form, place]
        assert done["code"] == (6 if (form, place) in UNSIGNED else 2), (place, done)
        assert done["seconds"] < SECONDS and "Traceback" not in done["err"], (place, done)
        assert done["err"].strip().splitlines()[-1].startswith("error: "), (place, done)


UNSIGNED = {("public key", "terabyte"), ("public key", "memory")}
"""The artifact has no signature at all, which comes before what is wrong with a key."""


@pytest.mark.parametrize("place", MADE)
def test_readers_of_foreign_files(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    MADE[place](path)
    with pytest.raises((OSError, ValueError)):
        read_limited(path, 100)
    if place != "terabyte":
        with pytest.raises((OSError, ValueError)):
            open_regular(path)
        with pytest.raises(ConfigError):
            full_digest(path / "below")
    if place not in ("terabyte", "link-to-nowhere"):
        with pytest.raises(OSError, match=r"regular|directory|links|address"):
            open_lock_file(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for digest in (full_digest, lambda path: content_digest(path, None)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no file or folder"):
            digest(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match=r"cannot read .*too long"):
            digest(tmp_path / ("x" * 5000))
    with pytest.raises(ConfigError, match="cannot read /proc/self/mem"):
        full_digest(Path("/proc/self/mem"))


@pytest.mark.parametrize("place", ["fifo", "folder", "terabyte", "link-to-device", "loop"])
def test_certificates_and_credentials_are_not_waited_for(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MADE[place](tmp_path / place)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / place))
    http._context.cache_clear()
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        http._context()
    if place == "terabyte":
        with pytest.raises(ConfigError, match="cannot read the credentials"):
            read_credentials(tmp_path / place)
    else:
        assert read_credentials(tmp_path / place) == {}
