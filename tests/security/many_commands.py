"""Runs many command lines quickly: modules are imported once, then each command line has a forked process of its own.

`python many_commands.py < cases.json > results.json`; each process has an address-space limit and a time limit, no
controlling terminal, and nothing on standard input.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY = 2 << 30
SECONDS = 10
"""Of processor time. What waits is ended after three times as many: other tests may keep the machine busy."""
PRELOADED = ("build", "plan", "doctor", "show", "verify", "store", "publish", "pull", "run", "history", "compare")


def run_one(arguments: list[str], folder: str, settings: dict[str, str]) -> dict[str, Any]:
    """One command line in `folder`, to its end: exit code (a negative signal), output, seconds of processor time."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(folder)
                os.environ.update(settings)
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                sys.argv = ["python -m compiler", *arguments]
                from compiler.__main__ import main

                code = main()
                sys.stdout.flush()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status, seconds = _wait(child, time.monotonic() + 3 * SECONDS)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(1 << 22).decode(errors="surrogateescape"))
    return {"code": status, "out": texts[0], "err": texts[1], "seconds": seconds}


def _wait(child: int, deadline: float) -> tuple[int, float]:
    """Exit code and processor time of a child, which is killed at the deadline."""
    while time.monotonic() < deadline:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def preload() -> None:
    """What command lines would import, so that each takes milliseconds."""
    import importlib

    import hydra  # noqa: F401
    import yaml  # noqa: F401

    for verb in PRELOADED:
        importlib.import_module(f"compiler.commands.{verb}")


def main() -> None:
    """Answers the cases on standard input."""
    cases = json.loads(sys.stdin.read())
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    preload()
    print(json.dumps([run_one(**case) for case in cases]))


if __name__ == "__main__":
    main()
