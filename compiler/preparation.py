"""The steps that a deferred build has in place of those that another host will run: early accuracy, and the packing."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from compiler.conversion import Conversion
from compiler.plan import SPLITS, Plan, Step, evaluation_name
from compiler.runtime.names import ON_CPU, ON_GPU
from compiler.stages.package_deferred import PackageDeferred

REPORT = "report"


def on_cpu(plan: Plan, candidate: str) -> list[str]:
    """Makes a candidate's evaluations run on the CPU and returns their names: none where only a GPU can run it.

    The same function is computed there, so its accuracy is the same but for rounding; its latency is never taken so.
    """
    runtime = plan.candidates[candidate].runtime
    if runtime in ON_GPU and runtime not in ON_CPU:
        return []
    names = [evaluation_name(split, candidate) for split in SPLITS]
    for name in names:
        step = plan.steps[name]
        stage = dataclasses.replace(step.stage, runtime=ON_CPU.get(runtime, runtime))  # type: ignore[call-arg]
        plan.steps[name] = dataclasses.replace(step, stage=stage)
    return names


def early_evaluations(plan: Plan, ends: Mapping[str, str], made: Collection[str], paired: bool) -> list[str]:
    """Adds to the plan an evaluation, on the report split, of each model that a candidate's own steps made here.

    `ends`: the last step of each candidate that runs here; `made`: the steps that did; `paired`: the baseline is
    evaluated here too.
    """
    added = {}
    for name, end in ends.items():
        stage = plan.steps[end].stage
        if end not in made or end not in plan.candidates[name].steps or not isinstance(stage, Conversion):
            continue
        like = plan.steps[evaluation_name(REPORT, name)]
        fields = {"runtime": stage.runtime, "artifact": stage.artifact, "options": dict(stage.runtime_options)}
        inputs = {role: source for role, source in like.inputs.items() if paired or role != "baseline"} | {"model": end}
        step = dataclasses.replace(
            like,
            name=early_name(end),
            stage=dataclasses.replace(like.stage, **fields),
            inputs=inputs,
        )
        added[step.name] = step
    plan.steps.update(added)
    return list(added)


def early_name(step: str) -> str:
    """The name of the evaluation of what the candidate's step `step` made."""
    return evaluation_name(REPORT, step)


def add_packing(plan: Plan, names: list[str], described_by: str) -> None:
    """Makes `package` gather the results of `names`, and what the step `described_by` says of the model."""
    inputs = {f"step/{name}": name for name in names} | {"model": described_by}
    plan.steps["package"] = Step("package", PackageDeferred(), inputs)
