"""The command line: `python -m compiler target=rpi4 model=mobilenetv3`, `python -m compiler VERB ...`."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback

from compiler.errors import (
    UNUSABLE_NAMES,
    CompilerError,
    InterruptedBuild,
    MissingToolError,
    StepError,
    unknown_name,
    unusable_name,
)
from compiler.supervision import adopt_orphans

VERBS = {
    "build": "the artifact for a target and a model (meant when no verb is given)",
    "plan": "every step with its key, hit or miss, and why; runs nothing",
    "doctor": "checks this host, prints the install line for what lacks",
    "show": "a manifest as a table",
    "report": "a manifest as one page of HTML, beside the version",
    "compare": "two artifacts side by side; marks a difference only where the intervals part",
    "profile": "per-operator time of baseline and artifact",
    "measure": "measures a built artifact again; keeps the figures beside it",
    "run": "inference with a built artifact",
    "finish": "completes a deferred build where its hardware is",
    "verify": "an artifact's files, signature and provenance",
    "rebuild": "builds again from an artifact's manifest alone and compares the portable files",
    "publish": "sends a finished version to a registry",
    "pull": "fetches an artifact from a registry, verified, into a folder",
    "history": "the versions in a repository of a registry",
    "store": "looks after stored results: ls, gc, fsck",
}
BUILD_PACKAGES = ("hydra", "omegaconf", "rich", "numpy", "yaml", "jinja2", "markupsafe")
HYDRA_FLAGS = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--hydra-help",
    "--package",
    "-p",
    "--resolve",
    "--shell-completion",
    "-sc",
)


def main() -> int:
    """Runs the command line's verb; returns the exit code of the contract."""
    _fill_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    adopt_orphans()
    arguments = sys.argv[1:]
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except CompilerError as error:
        return _report(error)
    except KeyboardInterrupt:
        return _report(InterruptedBuild("interrupted", fix="run the same command again"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is not None and error.errno in UNUSABLE_NAMES:
            return _report(unusable_name(error))
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
            return _bug()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at its end
        return _report(
            StepError(f"cannot write standard output: {error.strerror}", fix="free some space, or write elsewhere")
        )
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in BUILD_PACKAGES:
            return _bug()
        return _report(
            MissingToolError(
                f"this needs the Python package {error.name!r}, which is not installed",
                fix="pip install 'target-model-compiler[build]' (in a checkout: make setup)",
            )
        )
    except Exception:
        return _bug()


def _fill_closed_streams() -> None:
    """A standard stream that was closed before the start becomes one that nobody reads, or that has nothing to read.

    Python has None in its place, and the next file that is opened would take its number: a library's message to
    standard error would be written into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            os.set_inheritable(number, True)  # children have standard streams, too
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _report(error: CompilerError) -> int:
    from compiler.commands.arguments import print_error

    with contextlib.suppress(OSError):
        print_error(error)
    return error.exit_code


def _bug() -> int:
    traceback.print_exc()
    print("try: report this with the lines above; it is a bug in the compiler, not in your input", file=sys.stderr)
    print("error: internal error", file=sys.stderr)
    return 1


def _interrupt(_number: int, _frame: object) -> None:
    """The first signal ends the build; further ones would only disturb its clean end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from compiler import __version__

        print(__version__)
        return 0
    first = arguments[0]
    if first.startswith("-") or "=" in first:
        verb, rest = "build", arguments
    else:
        verb, rest = first, arguments[1:]
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    asks_hydra = verb in ("build", "plan") and any(word.partition("=")[0] in HYDRA_FLAGS for word in rest)
    module = "hydra_flags" if asks_hydra else verb
    code: int = importlib.import_module(f"compiler.commands.{module}").run(rest)
    return code


def _help() -> str:
    from compiler.overrides import options

    lines = [__doc__ or "", "", "verbs (each has --help):"]
    lines += [f"  {name:<8} {text}" for name, text in VERBS.items()]
    lines += ["", "configuration (any Hydra override may follow):"]
    lines += [f"  {group}={'|'.join(options(group))}" for group in ("target", "model", "data", "budget")]
    lines += ["  candidates=[...]  from: " + ", ".join(options("candidate"))]
    lines += [
        "",
        "flags of build and plan: --json, --multirun, --config-dir DIR; Hydra's --cfg job and --info work too",
    ]
    return "\n".join(lines).strip()


if __name__ == "__main__":
    sys.exit(main())
