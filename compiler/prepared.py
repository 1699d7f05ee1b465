"""What a deferred version may say, checked before any step runs: it is data that somebody else wrote."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from compiler.errors import IntegrityError
from compiler.identity import is_path_field
from compiler.manifest import HOST
from compiler.outcome import StepRecord
from compiler.plan import BRIEF, REQUIRED, SPLITS, Plan, evaluation_name

SHA256 = re.compile(r"[0-9a-f]{64}")
FIX = "prepare the build again: python -m compiler target=... model=... defer=true"
OF_A_HOST: Mapping[str, tuple[type, ...]] = {
    "cpu_model": (str,), "arch": (str,), "isa": (list,), "cores": (int,), "memory_mb": (int,), "os": (str,),
    "kernel": (str,), "virtualized": (bool,), "governor": (str,), "gpu": (str, type(None)),
    "driver": (str, type(None)), "fingerprint": (str,),
}  # fmt: skip
"""What every host tells of itself, and the types of it."""
OF_AN_ENVIRONMENT: Mapping[str, tuple[type, ...]] = {
    "compiler": (str,), "python": (str,), "interpreter": (str,), "build_isa": (list,), "packages": (dict,),
    "git_commit": (str, type(None)), "dirty": (bool, type(None)),
}  # fmt: skip


def hosts(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The host that the prepared accuracies name, once all that goes into the new manifest unread is of its form.

    Raises:
        ValueError: it is not.
        LookupError, TypeError, AttributeError: something lacks, or is of another type.
    """
    found = [host for host in manifest["measured_on"] if host["id"] == HOST]
    if len(found) != 1 or len(manifest["measured_on"]) != 1:
        raise ValueError("measured_on does not say where it was prepared")
    _check_types(found[0], OF_A_HOST, "measured_on")
    if found[0]["kind"] != "proxy" or found[0]["is_target"] is not False or found[0]["protocol"] != {}:
        raise ValueError("measured_on claims a measurement")  # there is none in a deferred build
    for entry in manifest["inputs"].values():
        if set(entry) != {"path", "sha256"} or not all(isinstance(text, str) for text in entry.values()):
            raise ValueError("inputs")
    _check_types(manifest["environment"], OF_AN_ENVIRONMENT, "environment")
    return found


def _check_types(entry: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], what: str) -> None:
    for name, kinds in types.items():
        if type(entry[name]) not in kinds:
            raise ValueError(f"{what}: {name}")


def records(manifest: Mapping[str, Any], plan: Plan) -> dict[str, StepRecord]:
    """What became of the steps that were made where the build was prepared.

    Raises:
        ValueError, LookupError, TypeError: a row is none that builds write.
    """
    found = {}
    for row in manifest["steps"]:
        name, seconds = str(row["name"]), float(row["seconds"])
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the step {name} took {seconds} s")
        if name in plan.steps and name != "package" and row["key"] is not None:
            if not all(SHA256.fullmatch(text) for text in (row["key"], *row["outputs"])):
                raise ValueError(f"the step {name} has a key or an output that is no digest")
            outputs = tuple(row["outputs"])
            why = f"made for {manifest['version']}, which this finishes"
            found[name] = StepRecord(name, str(row["stage"]), row["key"], "reused", seconds, outputs, why)
    return found


def check_steps(plan: Plan, names: Collection[str], left_out: Collection[str]) -> None:
    """Refuses a version that would make other steps run than what is left of a deferred build.

    That is: the steps of candidates which are not in `names`, and those that every build ends with. Whatever else they
    would take, or files of this host, is no part of it.

    Raises:
        IntegrityError: a result lacks, or a step would read files of this host.
    """
    chains = {c.id: c for c in plan.candidates.values() if c.id not in left_out}
    own = {step for candidate in chains.values() for step in candidate.steps}
    late = [name for name in (*REQUIRED, *BRIEF) if name in plan.steps and name != "samples"]
    evaluations = {evaluation_name(split, name) for split in SPLITS for name in plan.candidates}
    allowed = {*own, *late, *evaluations}
    queue = ["samples", *late, *(c.result for c in chains.values())]
    queue += [evaluation_name(split, name) for split in SPLITS for name in chains]
    seen = set(names)
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in allowed:
            raise IntegrityError(f"the version lacks the result of the step {name}", fix=FIX)
        step = plan.steps[name]
        if any(is_path_field(type(step.stage), field.name) for field in dataclasses.fields(step.stage)):
            raise IntegrityError(f"the step {name} would read files of this host", fix=FIX)
        measuring = name in (*BRIEF, "benchmark")  # these go without the candidates that are left out
        queue += [s for r, s in step.inputs.items() if not measuring or r.removeprefix("candidate/") not in left_out]
