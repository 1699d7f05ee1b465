"""YAML that anybody wrote ends with exit 2 in words, in bounded time and memory, and runs nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, ROOT, environment

from compiler.config import compose
from compiler.errors import ConfigError
from compiler.foreign_files import read_limited
from compiler.foreign_yaml import MOST_NODES, check_yaml

SECONDS = 10
START = (
    "name: evil\narch: x86_64\ndefaults:\n  - override /pipeline@_global_.pipeline: nullline\ncandidates: [null_fp32]\n"
)
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))

HOSTILE: dict[str, str | bytes] = {
    "alias to itself": START + "x: &x\n  y: *x\n",
    "alias to itself in a list": START + "x: &x [1, *x]\n",
    "alias to what is around it": START + "x: &x {a: {b: {c: *x}}}\n",
    "a thousand million values": START + LAUGHS,
    "many values through merge keys": "a: &a {"
    + ", ".join(f"k{i}: 1" for i in range(999))
    + "}\n"
    + "".join(f"b{i}: [{', '.join(['*a'] * 10)}]\n" for i in range(20)),
    "five thousand levels of lists": START + "x: " + "[" * 5000 + "]" * 5000 + "\n",
    "five thousand levels, not closed": START + "x: " + "[" * 5000,
    "sixty-five levels of mappings": START + "x: " + "{a: " * 65 + "1" + "}" * 65 + "\n",
    "a thousand levels of block mappings": "".join(" " * i + "a:\n" for i in range(1000)),
    "a number": "42\n",
    "a text": "hello\n",
    "a list": "[1, 2]\n",
    "true": "true\n",
    "a quoted nothing": "''\n",
    "a tag that makes an object": START + "x: !!python/object/apply:os.system ['touch pwned']\n",
    "a tag that makes a name": START + "x: !!python/name:os.system ''\n",
    "an unknown tag": START + "x: !nope 1\n",
    "a tag of its own": "%TAG ! tag:evil,2000:\n--- !nope\nname: evil\n",
    "a NUL": START + "x: \x00\n",
    "control characters": START + "x: \x1b[31m\n",
    "a lone surrogate": b"x: \xed\xa0\x80\n",
    "no UTF-8": bytes(range(256)),
    "UTF-16": START.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00" + b"\0" * 40,
    "a key twice": START + "name: again\n",
    "a key that is a list": START + "[1, 2]: 3\n",
    "a key that is a mapping": START + "{a: 1}: 3\n",
    "a key that is null": START + "null: 3\n",
    "a key that is a number": START + "7: 3\n",
    "a key that is a date": START + "2020-01-01: 3\n",
    "an empty key": START + "'': 3\n",
    "a dotted key": START + "a.b.c: 3\n",
    "a key of a megabyte": "a" * (1 << 20) + ": 1\n",
    "two documents": START + "---\nname: other\n",
    "no end of a quote": START + "x: 'open\n",
    "tabs": START + "\tx: 1\n",
    "an unknown anchor": START + "x: *nowhere\n",
    "a directive": "%YAML 9.9\n---\n" + START,
    "a number of a hundred thousand digits": START + "cores: " + "9" * 100_000 + "\n",
    "an infinite number": START + "cores: .inf\n",
    "no number": START + "cores: .nan\n",
    "cores that are a text": START + "cores: many\n",
    "cores that are a list": START + "cores: [1]\n",
    "cores below one": START + "cores: -1\n",
    "threads of zero": START + "threads: 0\n",
    "isa that is a text": START + "isa: avx2\n",
    "isa of numbers in a mapping": START + "isa: {a: 1}\n",
    "candidates that are a text": START.replace("[null_fp32]", "null_fp32"),
    "no candidates": START.replace("[null_fp32]", "[]"),
    "candidates of null": START.replace("[null_fp32]", "[null]"),
    "an unknown candidate": START.replace("[null_fp32]", "[null_fp31]"),
    "a candidate that is a path": START.replace("[null_fp32]", "[../../etc/passwd]"),
    "a name that is a path": START.replace("name: evil", "name: ../../etc"),
    "an empty name": START.replace("name: evil", "name: ''"),
    "a name that is null": START.replace("name: evil", "name: null"),
    "no name": START.replace("name: evil\n", ""),
    "a name with a slash": START.replace("name: evil", "name: a/b"),
    "a name of many letters in other scripts": START.replace("evil", "名" * 50),
    "an interpolation of itself": START.replace("name: evil", "name: ${target.name}"),
    "an interpolation in a circle": START.replace(
        "name: evil", "name: ${target.description}\ndescription: ${target.name}"
    ),
    "an interpolation that leads nowhere": START.replace("name: evil", "name: ${nowhere}"),
    "an interpolation that is not closed": START.replace("name: evil", "name: ${target"),
    "an interpolation a thousand deep": START.replace("name: evil", "name: " + "${" * 1000 + "}" * 1000),
    "an environment variable": START.replace("name: evil", "name: ${oc.env:HOME}"),
    "an unknown resolver": START.replace("name: evil", "name: ${exec:ls}"),
    "a host's fact that there is not": START.replace("name: evil", "name: ${host:secrets}"),
    "defaults that are a text": START.replace("  - override /pipeline@_global_.pipeline: nullline", "  nullline"),
    "defaults with a path": START.replace("nullline", "../../../etc/passwd"),
    "defaults that lead nowhere": START.replace("nullline", "nowhere"),
    "defaults of a number": START.replace("nullline", "42"),
    "an override of nothing": START.replace("override /pipeline@_global_.pipeline", "override /nothing"),
    "match that is a list": START + "match: [1]\n",
    "a match that is no expression": START + "match: {cpu_model: '('}\n",
    "an unknown field of match": START + "match: {cpu: x}\n",
    "a package directive": "# @package _global_\ntarget: 5\n",
    "an unknown package": "# @package a.b.c\n" + START,
}


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends the test where it takes too long, or more than a gigabyte of memory on top of what the process has."""

    def over(_number: int, _frame: Any) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in KB


def _target(folder: Path, content: str | bytes) -> list[Path]:
    (folder / "target").mkdir(parents=True, exist_ok=True)
    (folder / "target" / "evil.yaml").write_bytes(
        content.encode(errors="surrogatepass") if isinstance(content, str) else content
    )
    return [folder, CONF]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_in_words(
    name: str, tmp_path: Path, in_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        from compiler.plan import make_plan

        make_plan(compose(["target=evil", "model=nullmodel"], _target(tmp_path / "conf", HOSTILE[name])))
    assert caught.value.exit_code == 2 and caught.value.what and caught.value.fix
    assert not list(tmp_path.glob("**/pwned"))


def test_the_start_that_they_share_is_itself_good(tmp_path: Path) -> None:
    assert compose(["target=evil", "model=nullmodel"], _target(tmp_path, START)).target.name == "evil"


PLACES: dict[str, Callable[[Path], Any]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "three gigabytes of nothing": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 3 << 30),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_not_waited_for(place: str, tmp_path: Path, in_time: None) -> None:
    (tmp_path / "target").mkdir()
    PLACES[place](tmp_path / "target" / "evil.yaml")
    with pytest.raises(ConfigError, match="cannot be read as configuration"):
        compose(["target=evil", "model=nullmodel"], [tmp_path, CONF])


def test_limits_of_yaml_are_on_what_it_stands_for(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: &a [" + "1, " * 999 + "1]\n" + "b: [" + ", ".join(["*a"] * (MOST_NODES // 1001 - 2)) + "]\n")
    check_yaml(file)
    file.write_text("a: &a [" + "1, " * 999 + "1]\n" + "b: [" + ", ".join(["*a"] * (MOST_NODES // 1001 + 2)) + "]\n")
    with pytest.raises(ValueError, match="stands for more than 100,000 values"):
        check_yaml(file)
    file.write_text("")
    check_yaml(file)
    file.write_text("# nothing but a comment\n")
    check_yaml(file)


def test_read_limited_reads_regular_files_only(tmp_path: Path, in_time: None) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345")
    assert read_limited(file, 5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_limited(file, 4)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_limited(path, 5)


def test_command_line_refuses_it_within_a_gigabyte_of_address_space(tmp_path: Path) -> None:
    _target(tmp_path, HOSTILE["a thousand million values"])
    done = subprocess.run(
        [sys.executable, "-m", "compiler", "plan", "--config-dir", tmp_path, "--config-dir", CONF, "target=evil"],
        capture_output=True, text=True, env=environment(), cwd=ROOT, check=False, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )  # fmt: skip
    assert done.returncode == 2 and "stands for more than" in done.stderr.splitlines()[-1], done.stderr
