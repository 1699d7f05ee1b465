"""A process of its own that runs one step: JSON in, files and JSON out.

    python -m compiler.worker REQUEST.json
    python -m compiler.worker --preload torch,onnx      (reads the request's path from standard input)

The request names the stage, its fields, the folders of its inputs and the modules it may load. The worker writes
the result's files into `out` beside the request and `answer.json` when it is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from compiler import lookup, reads, typed, user_code
from compiler.errors import CompilerError, ConfigError, StepError
from compiler.installed import is_installed
from compiler.stage import FACTS, write_json

STARTED_WITH = frozenset(sys.modules)
PR_SET_PDEATHSIG = 1
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def main(argv: list[str]) -> int:
    """Runs the request and returns 0, or the exit code of the error that it wrote into the answer."""
    with contextlib.suppress(OSError, AttributeError):  # die with the parent, whatever ends it (Linux)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get("COMPILER_PARENT", str(os.getppid())) != str(os.getppid()):
        return 0  # it died before we could ask to die with it
    # OpenVINO's converter and NNCF would start a process that reports their use: without this module they do not
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    if argv[0] == "--preload":
        for name in filter(None, argv[1].split(",")):
            with contextlib.suppress(ImportError):  # the stage says what is missing, if it is needed at all
                importlib.import_module(name)
        argv = [sys.stdin.readline().strip()]
        if not argv[0]:
            return 0  # nobody needs this worker any more
    request_path = Path(argv[0]).resolve()
    folder = request_path.parent
    request = json.loads(request_path.read_text())
    out = folder / "out"
    if out.exists():  # a kept failure is run again
        shutil.rmtree(out)
    out.mkdir()
    with contextlib.suppress(OSError):  # where memory runs out, the system should end this process and not the build
        Path("/proc/self/oom_score_adj").write_text("500")
    log = folder / "reads.jsonl"
    log.unlink(missing_ok=True)
    try:
        if request.get("roots"):
            reads.prepare(request["roots"], [*request["apart"], str(folder), *request["inputs"].values()], log)
            reads.watch()
        facts = _run(request, out)
        write_json(out / FACTS, facts)
        libraries = _audit(request.get("modules"))
        answer: dict[str, Any] = {"ok": True, "loaded": _loaded(), "reads": _read(log), "libraries": libraries}
        code = 0
    except CompilerError as error:
        answer = {"ok": False, **error.to_json()}
        code = error.exit_code
    except Exception as error:
        traceback.print_exc()
        what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {_first_line(error)}"
        line = user_code.own_line(error)
        what += f" ({line})" if line else ""
        answer = {
            "ok": False,
            **StepError(what, fix=_advice(error, line), details=traceback.format_exc().splitlines()[-12:]).to_json(),
        }
        if isinstance(error, OSError) and error.errno is not None:
            answer["errno"] = error.errno
        code = StepError.exit_code
    temporary = folder / "answer.tmp"
    temporary.write_text(json.dumps(answer))
    temporary.replace(folder / "answer.json")
    return code


def _run(request: dict[str, Any], out: Path) -> dict[str, Any]:
    stage = typed.make(lookup.load(request["stage"]), request["fields"])
    if request.get("seed") is not None:
        _seed(request["seed"], stage.used_tools())
    return stage.run({role: Path(path) for role, path in request["inputs"].items()}, out)


def _read(log: Path) -> dict[str, str]:
    """What own code read, with the state of each file. Raises StepError where the step changed one of them."""
    found, changed = reads.collected(log)
    if changed:
        raise StepError(
            f"the step reads a file that was changed while it ran: {', '.join(changed)}",
            fix="if the step writes it, write it elsewhere or before the build; if something else did, run again",
        )
    return found


def _seed(seed: int, tools: tuple[str, ...]) -> None:
    """Libraries draw random numbers where nobody expects it: each starts from the seed that the key covers."""
    random.seed(seed)
    if "numpy" in tools:
        import numpy as np

        np.random.seed(seed % 2**32)
    if "torch" in tools:
        import torch

        torch.manual_seed(seed)


def _audit(allowed: dict[str, str] | None) -> dict[str, str]:
    """What was loaded is what the key covers: no other first-party module, and none from another place.

    A change to such a module would go unnoticed. Returned is the content of other libraries' source, by path: of what
    lies on PYTHONPATH without metadata, and which no module of the key's names.
    """
    if allowed is None:
        return {}
    loaded = {name: getattr(sys.modules.get(name), "__file__", None) for name in allowed}
    wrong = sorted(file for name, file in loaded.items() if file and _digest(file) != allowed[name])
    if wrong and "COMPILER_PARENT" in os.environ:  # who runs a kept failure again may have corrected the source
        raise ConfigError(
            f"the step loaded source that its key does not cover: {', '.join(wrong)}",
            fix="if it was changed while it ran, run again; if not, one name is found in two places: rename one",
        )
    stray = sorted(
        name
        for name, module in list(sys.modules.items())
        if name not in allowed
        and name not in ("__main__", "__mp_main__")
        and _is_first_party(name, getattr(module, "__file__", None))
    )
    own = {name.partition(".")[0] for name in allowed} | {"compiler"}
    libraries = [str(sys.modules[name].__file__) for name in stray if name.partition(".")[0] not in own]
    stray = [name for name in stray if name.partition(".")[0] in own]
    if stray:
        raise StepError(
            f"the step loaded modules that its key does not cover: {', '.join(stray)}",
            fix="name them in the stage's dynamic_modules()",
        )
    return {file: _digest(file) for file in libraries}


def _digest(file: str) -> str:
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _loaded() -> list[str]:
    """Top-level names of installed modules that the step loaded: the versions of what brings them decide its result."""
    return sorted(
        {
            name.partition(".")[0]
            for name, module in list(sys.modules.items())
            if name not in STARTED_WITH and is_installed(getattr(module, "__file__", None) or "")
        }
    )


def _is_first_party(name: str, file: str | None) -> bool:
    """Ours, or source of the user's own. Texts are compared first: a worker has thousands of modules."""
    if not file or not file.endswith(".py"):
        return False
    if name.partition(".")[0] == "compiler":
        return True
    if is_installed(file) or file.startswith(STANDARD_LIBRARY) or not Path(file).is_absolute():
        return False  # installed, Python's own, or made up at run time
    path = Path(file).resolve()
    own = [Path(entry or ".").resolve() for entry in sys.path if "site-packages" not in entry]
    return any(map(path.is_relative_to, own)) and not path.is_relative_to(Path(STANDARD_LIBRARY).resolve())


def _advice(error: BaseException, line: str | None) -> str:
    if line:
        return f"it comes from your own code, {line}: see there, and the log and the command above"
    if user_code.raised_by_library(error):
        return "see the log and the command above; it may be a limit of the library that the step calls"
    return "see the log and the command above"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else "(no message)"


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # native libraries' exit handlers may hang or crash; everything of ours is written
