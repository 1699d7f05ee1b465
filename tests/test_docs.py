"""The documentation does what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import QUICK, ROOT, command

import compiler.errors
from compiler.__main__ import VERBS

BLOCK = re.compile(r"^`([\w./]+)`:\n```\w+\n(.*?)^```$", re.S | re.M)


@pytest.mark.real
def test_adding_a_backend_builds_what_it_describes(tmp_path: Path) -> None:
    text = (ROOT / "docs/adding-a-backend.md").read_text()
    files = BLOCK.findall(text)
    assert [name for name, _ in files] == [
        "private/half_runtime.py",
        "private/half_backend.py",
        "conf/candidate/half_fp16.yaml",
    ]
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "private/__init__.py").write_text("")
    lines = [line for line in text.splitlines() if line.startswith("python -m compiler ")]
    assert len(lines) == 2
    for line in lines:
        done = command(*shlex.split(line)[3:], *QUICK, cwd=tmp_path)
        assert done.code == 0, done.err
    row = next(c for c in done.manifest_in(tmp_path)["candidates"] if c["id"] == "half_fp16")
    assert row["latency_ms"] and row["fidelity"]["centred_cosine"] > 0.999
    backend = tmp_path / "private/half_backend.py"
    backend.write_text(backend.read_text().replace("float16 storage", "half storage"))
    again = command(*shlex.split(lines[0])[3:], "--json", *QUICK, cwd=tmp_path)
    states = {row["name"]: row for row in json.loads(again.out)["steps"]}
    assert states["half_fp16.shrink"]["why"] == "source of private/half_backend.py changed"
    assert states["fuse"]["state"] == "hit"


def test_readme_and_help_name_every_verb() -> None:
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"compiler {verb} " in readme or verb == "build", verb


def test_every_error_class_and_its_exit_code_are_in_the_error_table() -> None:
    table = (ROOT / "docs/errors.md").read_text()
    classes = [
        c
        for c in vars(compiler.errors).values()
        if isinstance(c, type) and issubclass(c, compiler.errors.CompilerError)
    ]
    for cls in classes:
        if cls is not compiler.errors.CompilerError:
            assert re.search(rf"^\| {cls.exit_code} \| `{cls.__name__}` \|", table, re.M), cls.__name__


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
