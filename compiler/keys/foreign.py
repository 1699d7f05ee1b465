"""Another interpreter: a toolchain's. What it has installed, and how it finds this package and nothing else of ours."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path

from compiler.canonical import digest
from compiler.errors import MissingToolError, StepError
from compiler.foreign_json import parse_json
from compiler.runtime.inquiry import NoAnswerError, inquire
from compiler.words import words

TIME_LIMIT_S = 60.0
"""For a toolchain's interpreter to say what it has installed."""


@functools.cache
def foreign_identities(python: str, distributions: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """What `Tools.identities` and `interpreter` say under another interpreter.

    Raises:
        MissingToolError: the interpreter cannot be run.
    """
    environment = {**os.environ, "PYTHONPATH": import_path(python)}
    why = ""
    try:
        command = [python, "-m", "compiler.keys.tools", *distributions]
        code, out, err = inquire(command, TIME_LIMIT_S, environment)
        if code == 0:
            return _understood(out)
        why = f"it ended with exit code {code}: {(err.strip().splitlines() or ['it says nothing'])[-1]}"
    except OSError as error:
        why = error.strerror or str(error)
    except (NoAnswerError, ValueError) as error:
        why = str(error)
    raise MissingToolError(
        f"the toolchain's interpreter {python} cannot be run: {words(why, 300)}",
        fix="create the environment, or correct toolchains.NAME.python",
    )


def _understood(out: str) -> tuple[dict[str, str], str]:
    """Identities and interpreter, as `compiler.keys.tools` prints them.

    Raises:
        ValueError: it printed something else.
    """
    found = parse_json(out)
    if not (isinstance(found, list) and len(found) == 2 and isinstance(found[0], dict) and isinstance(found[1], str)):
        raise ValueError("it says something else than which distributions it has")
    if not all(isinstance(value, str) for value in found[0].values()):
        raise ValueError("it names a distribution without its version")
    return found[0], found[1]


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
