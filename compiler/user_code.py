"""Which line of the user's own code an error, or a call, comes from: theirs, not ours and not a library's."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from compiler.installed import is_installed

OURS = str(Path(__file__).resolve().parent) + "/"
STANDARD_LIBRARY = tuple({sysconfig.get_path("stdlib") + "/", sysconfig.get_path("platstdlib") + "/"})


def is_own(file: str) -> bool:
    """Whether the source `file` is the user's: a file that is neither ours, nor Python's, nor of a distribution."""
    return (
        file.startswith("/")  # not one made up at run time, as "<string>" is
        and not file.startswith((OURS, *STANDARD_LIBRARY))
        and not is_installed(file)
        and Path(file).is_file()
    )


def own_line(error: BaseException) -> str | None:
    """The user's line that was last to run when `error` was raised, as `file:line, in function`; None where none was.

    A library may raise an error of its own because of the first one: then the first one's line is looked for.
    """
    for cause in _causes(error):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if is_own(frame.filename):
                return f"{shown(frame.filename)}:{frame.lineno}, in {frame.name}"
    return None


def calling_line(frame: FrameType | None) -> str | None:
    """The user's line nearest to `frame` among those that called it, in the form of `own_line`."""
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return f"{shown(frame.f_code.co_filename)}:{frame.f_lineno}, in {frame.f_code.co_name}"
        frame = frame.f_back
    return None


def defined_at(function: Any) -> str | None:
    """Where the user defines `function`, as `file:line, in function`; None where somebody else does."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not is_own(code.co_filename):
        return None
    return f"{shown(code.co_filename)}:{code.co_firstlineno}, in {code.co_name}"


def raised_by_library(error: BaseException) -> bool:
    """Whether the last call before `error` was one of an installed library's."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and is_installed(frames[-1].filename)


def shown(file: str) -> str:
    """`file` as it is seen from the working folder, where it lies in it."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    next_: BaseException | None = error
    while next_ is not None and id(next_) not in seen:
        seen.add(id(next_))
        yield next_
        next_ = next_.__cause__ or next_.__context__
