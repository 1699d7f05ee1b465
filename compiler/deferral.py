"""Which candidates this host cannot finish, and how far it gets with each: pure functions on a plan and this host."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from compiler.errors import MissingToolError
from compiler.keys.tools import tool_version
from compiler.plan import SPLITS, CandidatePlan, Plan, Step, evaluation_name
from compiler.runtime import gpu
from compiler.runtime.names import ON_GPU, distributions_of

BUILD = "pip install 'target-model-compiler[build]'"


@dataclass(frozen=True)
class Lack:
    """What a host lacks, and what installs it."""

    what: str
    install: str


def lacking(plan: Plan, prepared: Collection[str] = ()) -> dict[str, list[Lack]]:
    """For each candidate that needs a GPU, or a tool beside one, that is not here: what lacks, in order of need.

    Steps in `prepared` are done already. What else lacks is for `check_tools` to say: it stops any build.
    """
    found = {}
    for candidate in plan.candidates.values():
        lacks = [
            lack
            for name in candidate.steps
            if name not in prepared
            for lack in _of_step(plan.steps[name])
            if plan.steps[name].stage.on_gpu
        ]
        if candidate.runtime in ON_GPU:
            lacks += [Lack(what, install) for what, install in gpu.lacking(candidate.runtime)]
        if lacks:
            found[candidate.id] = list(dict.fromkeys(lacks))
    return found


def lacking_to_finish(plan: Plan, prepared: Collection[str]) -> dict[str, list[Lack]]:
    """For each candidate what this host lacks to do all that is left: the steps that are not in `prepared`, and to run
    the result.
    """
    found = {}
    for candidate in plan.candidates.values():
        rest = [name for name in candidate.steps if name not in prepared]
        lacks = [lack for name in rest for lack in _of_step(plan.steps[name])]
        if candidate.runtime in ON_GPU:
            lacks += [Lack(what, install) for what, install in gpu.lacking(candidate.runtime)]
        else:
            lacks += _absent(distributions_of(candidate.runtime), candidate.runtime)
        if lacks:
            found[candidate.id] = list(dict.fromkeys(lacks))
    return found


def here_lacking(plan: Plan, names: list[str]) -> list[Lack]:
    """What the steps `names`, and those before them, need of a GPU and beside it that this host has not."""
    steps = [plan.steps[name] for name in plan.ancestors(names)]
    return list(dict.fromkeys(lack for step in steps if step.stage.on_gpu for lack in _of_step(step)))


def _of_step(step: Step) -> list[Lack]:
    stage = step.stage
    lacks = []
    if stage.on_gpu and gpu.describe()["gpu"] is None:
        lacks.append(Lack(gpu.GPU, gpu.DRIVER))
    return lacks + _absent(stage.used_tools())


def _absent(distributions: Collection[str], extra: str = "build") -> list[Lack]:
    line = f"pip install 'target-model-compiler[{extra}]'"
    return [Lack(name, gpu.INSTALL.get(name, line)) for name in distributions if tool_version(name) == "absent"]


def reach(plan: Plan, candidate: CandidatePlan) -> str:
    """The last of a candidate's steps that this host can make; the one before its own where it is none of them."""
    last = candidate.spec.after
    for name in candidate.steps:
        step = plan.steps[name]
        if step.stage.on_gpu and _of_step(step):
            break
        last = name
    return last


def here(plan: Plan) -> list[str]:
    """The steps that a deferred build runs here, but for what they need before them."""
    ends = [reach(plan, candidate) for candidate in plan.candidates.values()]
    return list(dict.fromkeys([*ends, *(name for name in ("calibrate",) if name in plan.steps)]))


def handed_on(plan: Plan, made: Collection[str]) -> list[str]:
    """Of the steps `made` those whose results the others need, in the plan's order."""
    rest = [step for name, step in plan.steps.items() if name not in made]
    needed = {source for step in rest for source in step.inputs.values()}
    baseline = {evaluation_name(split, plan.config.baseline) for split in SPLITS}
    return [n for n in plan.steps if n in made and (n in needed or n in baseline or n == "calibrate")]


def refuse(lacks: dict[str, list[Lack]], fix: str) -> MissingToolError:
    """The error of a build that may not be deferred, or cannot be finished here: what lacks, for which candidates."""
    wanted: dict[Lack, list[str]] = {}
    for name, items in lacks.items():
        for lack in items:
            wanted.setdefault(lack, []).append(name)
    return MissingToolError(
        f"this host lacks {', '.join(lack.what for lack in wanted)}",
        fix=fix,
        details=[f"{lack.what} (for {', '.join(names)}): {lack.install}" for lack, names in wanted.items()],
    )


def sentence(lacks: Sequence[Lack], host: str = "the build's host") -> str:
    """What lacks, in words."""
    return f"needs {', '.join(lack.what for lack in lacks)}, which {host} has not"
