"""The documentation does what it says; what it says of backends is built in `test_real.py`."""

from __future__ import annotations

import re

from conftest import ROOT

import compiler.errors
from compiler.__main__ import VERBS


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
