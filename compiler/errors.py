"""Every error the user can meet: one class, one exit code; what happened, and what to do next."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

UNUSABLE_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)
"""What the system says of a path that nobody can open, or not this user, whoever asks for it."""


class CompilerError(Exception):
    """Base of all errors that are reported without a traceback.

    `str(error)` is one line of fact; `fix` is one line that says what to do; `details` are further lines
    (a log tail, the first names that do not fit).
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str = "", details: Iterable[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.details = list(details)

    def to_json(self) -> dict[str, object]:
        """The form in which a worker hands the error to the process that started it."""
        return {"error": type(self).__name__, "what": self.what, "fix": self.fix, "details": self.details}


class ConfigError(CompilerError):
    """Bad usage or configuration: an unknown name, a wrong type, data that does not fit the model."""

    exit_code = 2


class GateError(CompilerError):
    """Built, but a requirement of the budget is not met (or unproven under strict=true)."""

    exit_code = 3


class MissingToolError(CompilerError):
    """A tool, driver or device that the build needs is not there."""

    exit_code = 4


class StepError(CompilerError):
    """A step of the build failed."""

    exit_code = 5


class OutOfMemory(StepError):
    """A visit needed more memory than it may have, or than there is."""


class DiskFullError(StepError):
    """No space is left: it fails the whole build, since no other step would fare better."""


class IntegrityError(CompilerError):
    """Something does not match its digest or signature, or the user's policy refuses it."""

    exit_code = 6


class InterruptedBuild(CompilerError):
    """The user, or the system, ended the build."""

    exit_code = 130


def from_json(record: dict[str, object]) -> CompilerError:
    """Rebuilds an error that a worker reported; an unknown class becomes a StepError."""
    classes = {
        c.__name__: c for c in (ConfigError, GateError, MissingToolError, StepError, DiskFullError, IntegrityError)
    }
    cls = classes.get(str(record.get("error")), StepError)
    details = record.get("details")
    return cls(
        str(record.get("what", "")),
        fix=str(record.get("fix", "")),
        details=[str(line) for line in details] if isinstance(details, list) else [],
    )


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the known name nearest to `wrong`, or '' when none is near."""
    near = difflib.get_close_matches(wrong, sorted(set(known)), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unusable_name(error: OSError) -> ConfigError:
    """The error for a path of the user's that the system does not open; one of UNUSABLE_NAMES says why."""
    name = str(error.filename)
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return ConfigError(f"cannot use {shown}: {error.strerror}", fix="check the path and its permissions")


def unknown_name(kind: str, wrong: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among the `known` ones of its `kind`."""
    names = sorted(set(known))
    return ConfigError(
        f"unknown {kind} {wrong!r}{did_you_mean(wrong, names)}",
        fix=f"known: {', '.join(names)}" if names else f"no {kind} is known here",
    )
