"""The base installation: our wheel in an environment with numpy and, at most, one model library."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

from conftest import ROOT, Done
from packaging.requirements import Requirement


@functools.cache
def wheel(folder: Path) -> Path:
    """Our wheel, as `pip install .` builds it."""
    backend = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(backend, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def environment(folder: Path, names: Iterable[str]) -> Path:
    """The interpreter of a fresh virtual environment with our wheel, numpy, `names` and what these require.

    What others made is linked from the environment that runs the tests: no index is asked.
    """
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in _closure(["numpy", *names]):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "wheel").mkdir(exist_ok=True)
    install = ["install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel(folder / "wheel"))]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, capture_output=True)
    return python


def call(python: Path, *arguments: object, cwd: Path) -> Done:
    """`python -m compiler ARGUMENTS` there: nothing of the checkout is on the way."""
    process = subprocess.run(
        [str(python), "-m", "compiler", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    return Done(process.returncode, process.stdout, process.stderr)


def _closure(names: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    queue = list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in found:
            continue
        found[name] = None
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return sorted(found)
