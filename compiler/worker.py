"""A process of its own that runs one step: JSON in, files and JSON out.

    python -m compiler.worker REQUEST.json
    python -m compiler.worker --preload torch,onnx      (reads the request's path from standard input)

The request names the stage, its fields, the folders of its inputs and the modules it may load. The worker writes
the result's files into `out` beside the request and `answer.json` when it is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from compiler import lookup, reads, typed, user_code
from compiler.answers import ANSWER, check_facts
from compiler.disk import remove_tree
from compiler.errors import CompilerError, ConfigError, StepError
from compiler.installed import is_installed
from compiler.stage import FACTS, write_json
from compiler.supervision import die_with_parent, supervised
from compiler.words import lines, words

STARTED_WITH = frozenset(sys.modules)
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def main(argv: list[str]) -> int:
    """Runs the request and returns 0, or the exit code of the error that it wrote into the answer."""
    die_with_parent()
    if os.environ.get("COMPILER_PARENT", str(os.getppid())) != str(os.getppid()):
        return 0  # it died before we could ask to die with it
    return supervised(lambda: _work(argv))


def _work(argv: list[str]) -> int:
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
    remove_tree(out)  # a kept failure is run again
    out.mkdir()
    with contextlib.suppress(OSError):  # where memory runs out, the system should end this process and not the build
        Path("/proc/self/oom_score_adj").write_text("500")
    log = folder / "reads.jsonl"
    remove_tree(log)
    answer, code = _answered(request, folder, out, log)
    temporary = folder / "answer.tmp"
    temporary.write_text(json.dumps(answer))
    temporary.replace(folder / ANSWER)
    return code


def _answered(request: dict[str, Any], folder: Path, out: Path, log: Path) -> tuple[dict[str, Any], int]:
    """Runs the step; returns what to answer, and the exit code."""
    try:
        if request.get("roots"):
            reads.prepare(request["roots"], [*request["apart"], str(folder), *request["inputs"].values()], log)
            reads.watch()
        facts = _checked(_run(request, out))
        write_json(out / FACTS, facts)
        libraries = _audit(request.get("modules"))
        return {"ok": True, "loaded": _loaded(), "reads": _read(log), "libraries": libraries}, 0
    except CompilerError as error:
        said = {"what": words(error.what), "fix": words(error.fix), "details": lines(error.details)}
        return {"ok": False, **error.to_json(), **said}, error.exit_code
    except BaseException as error:  # code of anybody's may raise what is no Exception, too
        with contextlib.suppress(Exception):  # it may have closed the log
            traceback.print_exc()
        what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {_first_line(error)}"
        line = user_code.own_line(error)
        what += f" ({line})" if line else ""
        details = lines(traceback.format_exc().splitlines()[-12:])
        answer = {"ok": False, **StepError(words(what), fix=_advice(error, line), details=details).to_json()}
        if isinstance(error, OSError) and isinstance(error.errno, int):
            answer["errno"] = error.errno
        return answer, StepError.exit_code


def _checked(facts: object) -> dict[str, Any]:
    try:
        return check_facts(facts)
    except ValueError as error:
        raise StepError(
            f"the stage's facts: {words(error)}", fix="return a small dict of JSON types with finite numbers from run()"
        ) from None


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
    try:
        text = str(error)
    except Exception:  # whoever wrote the class is not us
        return words(error)
    found = next((line.strip() for line in text[: 1 << 20].splitlines() if line.strip()), "(no message)")
    return words(found, 400)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a step may have closed them, or put something in their place
            stream.flush()
    os._exit(status)  # native libraries' exit handlers may hang or crash; everything of ours is written
