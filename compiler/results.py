"""What a step left as its result, checked once its worker is gone: whoever reads it later relies on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler import launch
from compiler.answers import read_checked_facts
from compiler.conversion import SIGNATURE
from compiler.foreign_json import read_json
from compiler.names import check_names
from compiler.stage import FACTS
from compiler.stages._measurement import artifact_files
from compiler.store import UnfitError, check_result
from compiler.words import words


def check(job: launch.Job, worker: launch.Worker, models: Sequence[str]) -> None:
    """Checks the files of a result, its facts, and the `models` in it, which candidates end with.

    Raises:
        UnfitError: it cannot be a result of this step.
    """
    out = worker.folder / "out"
    try:
        check_result(out)
        _check_facts(out)
        for model in models:
            _check_model(out, model)
    except UnfitError as error:
        error.details = worker.log_tail()
        raise launch.named(error, job.name) from None


def _check_facts(out: Path) -> None:
    try:
        read_checked_facts(out / FACTS)
    except (OSError, ValueError) as error:
        raise UnfitError(
            f"its {FACTS} cannot be read: {_said(error)}",
            fix="the worker writes the facts that run() returns: the step must leave the file alone",
        ) from None


def _check_model(out: Path, model: str) -> None:
    """That the model is there, under names that artifacts may have, and that its signature says how to run it."""
    from compiler.runtime import claims

    names = [path.name for path in artifact_files(out, model)]
    if model not in names:
        raise UnfitError(f"the step made no {model}", fix="write it, or correct the candidate's artifact")
    try:
        check_names(names)
    except ValueError as error:
        raise UnfitError(f"the files of {model}: {words(error, 200)}", fix="name them as the model is named") from None
    try:
        claims.check_signature(read_json(out / SIGNATURE))
    except (OSError, ValueError) as error:
        raise UnfitError(
            f"its {SIGNATURE} is not valid: {_said(error)}", fix="write it as compiler.conversion.Conversion does"
        ) from None


def _said(error: OSError | ValueError) -> str:
    return words((error.strerror or error) if isinstance(error, OSError) else error, 200)
