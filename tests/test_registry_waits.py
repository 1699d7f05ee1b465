"""Registries: what is waited for is said, proxies that are not used are named, and no file on the way blocks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from compiler import disk
from compiler.registries import connect, proxies, seen
from compiler.registries.layout import Layout
from compiler.registries.reference import parse
from compiler.runtime.fetch import _alone


def test_second_pull_into_a_folder_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "QUIET_S", 0.2)
    folder, done = tmp_path / "artifact", threading.Event()

    def second() -> None:
        with _alone(folder):
            done.set()

    thread = threading.Thread(target=second, daemon=True)
    with _alone(folder):
        thread.start()
        while not caplog.records:
            assert not done.wait(0.02), "two at once"
    assert done.wait(10)
    assert [record.message for record in caplog.records] == [f"waiting for another pull into {folder}"]


def test_second_writer_to_a_layout_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "QUIET_S", 0.2)
    handle = os.open(tmp_path, os.O_RDONLY)
    disk.lock_alone(handle, "nobody")
    thread = threading.Thread(target=Layout(tmp_path)._begin, daemon=True)
    thread.start()
    while not caplog.records:
        thread.join(0.02)
        assert thread.is_alive(), "two at once"
    os.close(handle)
    thread.join(10)
    assert not thread.is_alive() and (tmp_path / "index.json").exists()
    assert caplog.records[0].message == f"waiting for another process that publishes to {tmp_path}"


@pytest.mark.parametrize(
    ("host", "given", "named"),
    [
        ("registry.example.com", {"HTTPS_PROXY": "http://proxy:3128"}, "HTTPS_PROXY"),
        ("registry.example.com:5000", {"https_proxy": "p", "HTTPS_PROXY": "q"}, "https_proxy"),
        ("registry.example.com", {"ALL_PROXY": "socks5://proxy"}, "ALL_PROXY"),
        ("registry.example.com", {"HTTP_PROXY": "http://proxy:3128"}, ""),
        ("registry.example.com", {"HTTPS_PROXY": ""}, ""),
        ("registry.example.com", {"HTTPS_PROXY": "p", "NO_PROXY": "other.org, .example.com"}, ""),
        ("registry.example.com:5000", {"HTTPS_PROXY": "p", "no_proxy": "registry.example.com:5000"}, ""),
        ("registry.example.com", {"HTTPS_PROXY": "p", "no_proxy": "*.Example.com"}, ""),
        ("registry.example.com", {"HTTPS_PROXY": "p", "no_proxy": "*"}, ""),
        ("registry.example.com", {"HTTPS_PROXY": "p", "no_proxy": "try.example.com,"}, "HTTPS_PROXY"),
        ("[2001:db8::1]:5000", {"HTTPS_PROXY": "p", "no_proxy": "2001:db8::1"}, ""),
    ],
)
def test_proxy_that_is_not_used_is_named(
    host: str, given: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (*proxies.NAMES, *proxies.EXCEPTIONS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    connect(parse(f"oci://{host}/one"))
    expected = f"{host} is reached directly: the proxy that {named} names is not used"
    assert [record.message for record in caplog.records] == ([expected] if named else [])


def test_this_machine_is_never_reached_by_a_proxy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for host in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000"):
        connect(parse(f"oci://{host}/one"))
    assert not caplog.records


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link", "huge"])
def test_record_of_tags_that_is_no_file_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "target-model-compiler" / seen.NAME
    file.parent.mkdir()
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 1 << 40)
    one = parse("oci://localhost:5000/one")
    assert seen.last(one) is None
    seen.remember(one, "sha256:" + "0" * 64, dict.fromkeys(seen.FIELDS, "x"))
    assert (seen.last(one) is None) == (kind == "folder")
