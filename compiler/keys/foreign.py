"""Another interpreter: a toolchain's. What it has installed, and how it finds this package and nothing else of ours."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from compiler.canonical import digest
from compiler.errors import MissingToolError, StepError


@functools.cache
def foreign_identities(python: str, distributions: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """What `Tools.identities` and `interpreter` say under another interpreter.

    Raises:
        MissingToolError: the interpreter cannot be run.
    """
    environment = {**os.environ, "PYTHONPATH": import_path(python)}
    try:
        done = subprocess.run(
            [python, "-m", "compiler.keys.tools", *distributions],
            capture_output=True, text=True, timeout=60, check=True, env=environment,
        )  # fmt: skip
        identities, runs_on = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise MissingToolError(
            f"the toolchain's interpreter {python} cannot be run: {error}",
            fix="create the environment, or correct toolchains.NAME.python",
        ) from None
    return identities, str(runs_on)


def import_path(interpreter: str) -> str:
    """PYTHONPATH for a worker: this package, and what the user put there.

    Another interpreter must not see our site-packages, so it gets a folder that holds a link to this package alone.
    """
    package = Path(__file__).resolve().parent.parent
    parent = package.parent
    if interpreter != sys.executable:
        parent = Path(tempfile.gettempdir()) / f"compiler-import-{os.getuid()}-{digest(str(package))[:12]}"
        parent.mkdir(mode=0o700, exist_ok=True)
        if parent.stat().st_uid != os.getuid():
            raise StepError(f"{parent} belongs to another user", fix="remove it, or set TMPDIR")
        link = parent / package.name
        if not link.is_symlink():
            with contextlib.suppress(FileExistsError):
                link.symlink_to(package)
    return os.pathsep.join([str(parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
