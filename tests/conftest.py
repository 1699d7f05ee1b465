"""Shared by all tests: the command line as a person calls it, in folders of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "tests" / "conf"
QUICK = [
    f"steps.{step}.{field}"
    for step in ("screen", "benchmark")
    for field in ("rounds=1", "min_calls=5", "min_seconds=0")
]

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # builds take turns by locks in TMPDIR: two workers would wait for each other's measurements
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix=f"compiler-{worker}-")


LONG = ("test_real", "test_edits", "test_errors", "test_crash", "test_faults", "test_rebuild", "test_batch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: what a worker begins last must not be what the other waits for."""
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_unconfigure() -> None:
    """Removes the worker's own temporary folder; `tmp_path` lies elsewhere."""
    if worker:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def executed(self) -> list[str]:
        """Names of the steps that ran, in the order in which they ended."""
        return [line.split(":")[0] for line in self.err.splitlines() if ": done in" in line]

    @property
    def manifest_path(self) -> Path:
        """The last line of a build's output."""
        return Path(self.out.strip().splitlines()[-1])

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest that the build printed the path of."""
        loaded: dict[str, Any] = json.loads(self.manifest_path.read_text())
        return loaded

    def manifest_in(self, folder: Path) -> dict[str, Any]:
        """The manifest, where the build ran in `folder` with a relative artifacts_dir."""
        loaded: dict[str, Any] = json.loads((folder / self.manifest_path).read_text())
        return loaded

    def last_lines(self) -> tuple[str, str]:
        """What to do, and the cause: the last two lines of standard error."""
        lines = self.err.strip().splitlines()
        return (lines[-2] if len(lines) > 1 else "", lines[-1])


def environment() -> dict[str, str]:
    """Ours, with this checkout importable from any folder, and what a test adds by EXTRA_PATH."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("EXTRA_PATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def command(*arguments: object, cwd: Path | None = None, **extra: Any) -> Done:
    """`python -m compiler ARGUMENTS`, to its end."""
    process = subprocess.run(
        [sys.executable, "-m", "compiler", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd or ROOT, env=extra.pop("env", environment()), check=False, timeout=900,
        **extra,
    )  # fmt: skip
    return Done(process.returncode, process.stdout, process.stderr)


class Project:
    """A folder of artifacts and the null build's command line."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = folder / "artifacts"
        self.base = ["--config-dir", CONF, "target=nulltarget", "model=nullmodel", f"artifacts_dir={self.artifacts}"]

    def build(self, *overrides: object, **extra: Any) -> Done:
        """Builds with the null backend."""
        return command(*self.base, *overrides, **extra)

    def plan(self, *overrides: object) -> dict[str, dict[str, Any]]:
        """The plan's rows by step name."""
        done = command("plan", *self.base, "--json", *overrides)
        assert done.code == 0, done.err
        return {row["name"]: row for row in json.loads(done.out)["steps"]}

    @property
    def latest(self) -> Path:
        """The folder of the newest version that passed."""
        return (self.artifacts / "nullmodel" / "nulltarget" / "latest").resolve()

    def objects(self) -> list[Path]:
        """Every stored object."""
        return sorted((self.artifacts / ".store" / "objects").glob("*/*"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path)


@dataclass
class First:
    """A finished build of the null backend, which no test may change."""

    project: Project
    manifest: dict[str, Any]
    done: Done


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    """One finished build for all tests."""
    project = Project(tmp_path_factory.mktemp("first"))
    done = project.build()
    assert done.code == 0, done.err
    return First(project, done.manifest, done)


@pytest.fixture
def built(first: First, tmp_path: Path) -> Project:
    """A copy of the finished build, for the test to go on from, or to spoil."""
    project = Project(tmp_path)
    shutil.copytree(first.project.artifacts, project.artifacts, symlinks=True)
    return project


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    """The shipped JSON Schema of manifests."""
    loaded: dict[str, Any] = json.loads((ROOT / "compiler/schemas/manifest.schema.json").read_text())
    return loaded
