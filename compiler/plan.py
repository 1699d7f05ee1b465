"""The steps of a build with their edges, computed from configuration alone; running nothing."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler import lookup, typed
from compiler.canonical import encode, plain
from compiler.errors import ConfigError, MissingToolError, did_you_mean, unknown_name
from compiler.keys.foreign import foreign_identities
from compiler.keys.tools import tool_version
from compiler.lookup import reference, stage_class
from compiler.runtime.names import DISTRIBUTIONS
from compiler.schema import Candidate, Config
from compiler.stage import CANDIDATES, PREVIOUS, Stage

SPECIAL = ("stage", "inputs", "toolchain")
SPLITS = ("selection", "report")
BRIEF = ("screen", "sweep")
FEW = 3
"""With fewer candidates there is nothing to screen: all are measured in depth at once."""
REQUIRED = ("samples", "benchmark", "evaluate", "select", "package")


@dataclass(frozen=True)
class Step:
    """One step. `inputs` maps each role to the step that fills it; `optional` roles may stay empty."""

    name: str
    stage: Stage
    inputs: dict[str, str]
    toolchain: str | None = None
    on_demand: bool = False
    optional: frozenset[str] = frozenset()

    @property
    def stage_name(self) -> str:
        """The stage's name in the configuration."""
        return lookup.snake(type(self.stage).__name__)


@dataclass(frozen=True)
class CandidatePlan:
    """A candidate as steps: `steps` in order; `result` is the step whose result holds the artifact."""

    id: str
    spec: Candidate
    runtime: str
    result: str
    steps: tuple[str, ...]


@dataclass
class Plan:
    """Steps in an order in which they can run, and what they are for."""

    config: Config
    steps: dict[str, Step] = field(default_factory=dict)
    candidates: dict[str, CandidatePlan] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)
    """Step -> further names under which candidates know the same step."""

    def ancestors(self, names: list[str]) -> list[str]:
        """`names` and all they need, in the plan's order."""
        needed: set[str] = set()
        queue = list(names)
        while queue:
            name = queue.pop()
            if name not in needed:
                needed.add(name)
                queue += self.steps[name].inputs.values()
        return [name for name in self.steps if name in needed]


def make_plan(config: Config) -> Plan:
    """The plan of one build.

    Raises:
        ConfigError: an unknown stage, field or step, with the nearest name.
    """
    _check_shape(config)
    plan = Plan(config)
    structural: dict[str, str] = {}
    late = {name: spec for name, spec in config.steps.items() if _needs_candidates(name, spec)}
    for name, spec in config.steps.items():
        if name not in late:
            _add(plan, structural, name, dict(spec or {}), None, None)
    for name in dict.fromkeys([config.baseline, *config.candidates]):
        _add_candidate(plan, structural, name, config.candidate[name])
    table = {
        c.id: {"runtime": c.runtime, "artifact": c.spec.artifact, "options": dict(c.spec.options)}
        for c in plan.candidates.values()
    }
    racing = {"candidates": table, "baseline": config.baseline}
    own_fields: dict[str, dict[str, Any]] = {
        "benchmark": {
            **racing,
            "objective": config.objective,
            "latency_p95_ms": config.budget.latency_p95_ms,
            "latency_p99_ms": config.budget.latency_p99_ms,
            "first_answer": config.budget.first_answer_ms is not None,
            "arrival_rate_per_s": config.budget.arrival_rate_per_s,
        },
        "screen": {**racing, **_like_benchmark(config, "screen")},
        "sweep": {
            **racing,
            **_like_benchmark(config, "sweep"),
            "latency_p95_ms": config.budget.latency_p95_ms,
            "memory_limit_mb": config.budget.peak_memory_mb,
        },
        "select": {
            "budget": plain(config.budget),
            "objective": config.objective,
            "baseline": config.baseline,
            "trained": True,
        },
        "package": {"artifact": ""},
    }
    briefly = _brief_step(config)
    for name, spec in late.items():
        if name in BRIEF:
            if name == briefly:
                _add(plan, structural, name, own_fields[name], None, None)
            continue
        if name == "benchmark" and briefly:
            own_fields[name]["inputs"] = {**dict((spec or {}).get("inputs") or {}), briefly: briefly}
        if name == "evaluate":
            _add_evaluations(plan, dict(spec or {}))
        else:
            _add(plan, structural, name, {**dict(spec or {}), **own_fields.get(name, {})}, None, None)
    return plan


def _brief_step(config: Config) -> str | None:
    """The step that looks at all candidates before the contenders are measured: `screen`, `sweep`, or none."""
    name = "sweep" if config.objective == "throughput" else "screen"
    if name == "sweep" and name not in config.steps:
        raise ConfigError(
            "objective=throughput needs a step sweep, which this pipeline has not",
            fix="add to the pipeline: sweep: {max_batch: 64, seconds: 0.5}",
        )
    return name if name in config.steps and (name == "sweep" or len(config.candidates) >= FEW) else None


def _like_benchmark(config: Config, name: str) -> dict[str, Any]:
    """The fields of `screen` or `sweep`: what it says itself, the rest like `benchmark`, and never longer than that."""
    known = {f.name for f in dataclasses.fields(stage_class(name))}
    deep = {k: v for k, v in dict(config.steps["benchmark"] or {}).items() if k in known}
    brief = {**deep, **dict(config.steps.get(name) or {})}
    for field_ in ("rounds", "min_calls", "min_seconds"):
        if isinstance(deep.get(field_), int | float) and isinstance(brief.get(field_), int | float):
            brief[field_] = min(brief[field_], deep[field_])
    return brief


def _check_shape(config: Config) -> None:
    """Refuses pipelines without the steps that every build ends with, and what is no mapping."""
    for name in REQUIRED:
        if name not in config.steps:
            raise ConfigError(f"the pipeline has no step {name!r}", fix=f"every pipeline needs {', '.join(REQUIRED)}")
    for name, spec in config.steps.items():
        if spec is not None and not isinstance(spec, dict):
            raise ConfigError(f"steps.{name} is {spec!r}", fix="it must map the stage's fields to values, or be {}")
    for name, candidate in config.candidate.items():
        runtime = candidate.runtime or candidate.backend
        if "." not in runtime and runtime not in DISTRIBUTIONS:
            raise unknown_name(f"runtime (candidate {name})", runtime, DISTRIBUTIONS)
    if config.baseline in config.candidates:
        raise ConfigError(
            f"{config.baseline} is the baseline, which is measured anyway and never selected",
            fix="leave it out of candidates",
        )


def _needs_candidates(name: str, spec: Mapping[str, Any] | None) -> bool:
    cls = stage_class(str((spec or {}).get("stage", name)))
    return (
        name == "evaluate"
        or CANDIDATES in cls.inputs.values()
        or bool({"benchmark", "select"} & set(cls.inputs.values()))
    )


def _add(
    plan: Plan, structural: dict[str, str], name: str, spec: dict[str, Any], backend: str | None, previous: str | None
) -> str:
    """Adds a step and returns its name, or that of an equal step that is already there."""
    cls = stage_class(str(spec.get("stage", name.rpartition(".")[2])), backend)
    stage = make_stage(cls, {k: v for k, v in spec.items() if k not in SPECIAL}, name)
    toolchain = spec.get("toolchain")
    if toolchain is not None and toolchain not in plan.config.toolchains:
        raise unknown_name("toolchain", str(toolchain), plan.config.toolchains)
    inputs: dict[str, str] = {}
    optional = set()
    for role, source in {**cls.inputs, **(spec.get("inputs") or {})}.items():
        if source == CANDIDATES:
            for candidate in plan.candidates.values():
                inputs[f"{role}/{candidate.id}"] = candidate.result
                optional.add(f"{role}/{candidate.id}")
            continue
        actual = previous if source == PREVIOUS else str(source)
        if actual is None or actual not in plan.steps:
            raise ConfigError(
                f"step {name} takes {role!r} from {actual or source!r}, which is no step before it"
                + did_you_mean(str(actual), plan.steps),
                fix=f"steps before it: {', '.join(plan.steps) or 'none'}",
            )
        inputs[role] = actual
    identity = encode([reference(cls), plain(stage), sorted(inputs.items()), toolchain]).decode()
    if identity in structural and previous is not None:
        plan.shared.setdefault(structural[identity], []).append(name)
        return structural[identity]
    structural[identity] = name
    plan.steps[name] = Step(name, stage, inputs, toolchain, optional=frozenset(optional))
    return name


def _add_candidate(plan: Plan, structural: dict[str, str], name: str, spec: Candidate) -> None:
    lookup.backend_module(spec.backend)
    if spec.after not in plan.steps:
        raise unknown_name(f"step (candidate {name}, after)", spec.after, plan.steps)
    previous, steps = spec.after, []
    for step, fields in spec.steps.items():
        previous = _add(plan, structural, f"{name}.{step}", {"stage": step, **(fields or {})}, spec.backend, previous)
        steps.append(previous)
    runtime = spec.runtime or spec.backend
    plan.candidates[name] = CandidatePlan(name, spec, runtime, previous, tuple(steps))


def _add_evaluations(plan: Plan, spec: dict[str, Any]) -> None:
    """One evaluation a split and candidate, all on demand; each but the baseline's is paired with the baseline's."""
    cls = stage_class(str(spec.get("stage", "evaluate")))
    extra = {k: v for k, v in spec.items() if k not in SPECIAL}
    for split in SPLITS:
        for candidate in plan.candidates.values():
            fields = {
                "split": split,
                "runtime": candidate.runtime,
                "artifact": candidate.spec.artifact,
                "options": dict(candidate.spec.options),
            }
            name = evaluation_name(split, candidate.id)
            inputs = {"model": candidate.result, "samples": "samples"}
            if candidate.id != plan.config.baseline:
                inputs["baseline"] = evaluation_name(split, plan.config.baseline)
            plan.steps[name] = Step(
                name, make_stage(cls, {**fields, **extra}, name), inputs, spec.get("toolchain"), on_demand=True
            )


def evaluation_name(split: str, candidate: str) -> str:
    """The name of an evaluation step."""
    return f"evaluate.{split}.{candidate}"


def make_stage(cls: type[Stage], fields: Mapping[str, Any], step: str) -> Stage:
    """A stage with its fields checked and typed.

    Raises:
        ConfigError: an unknown field, a wrong type, a field without a value.
    """
    known = [f.name for f in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"step {step} has no field {name!r}{did_you_mean(str(name), known)}",
                fix=f"known: {', '.join(known) or 'none'}",
            )
    try:
        return _typed(cls, json.dumps(plain(fields), ensure_ascii=False), step)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"step {step}: {error}", fix="check the values") from error


@functools.lru_cache(maxsize=10_000)
def _typed(cls: type[Stage], fields: str, step: str) -> Stage:
    """The stage with the JSON `fields`. Kept: plans of many models and targets hold mostly the same stages, and nobody
    writes to a stage.
    """
    try:
        return typed.make(cls, json.loads(fields))
    except typed.MissingValue as error:
        raise ConfigError(
            f"step {step} needs a value for {error.name!r}", fix=f"set steps.{step}.{error.name}=VALUE"
        ) from None
    except typed.TypeMismatch as error:
        raise ConfigError(f"step {step}: {error}", fix="check the value") from None


def check_tools(plan: Plan, names: list[str] | None = None) -> None:
    """Sees to it that what the steps (`names` and what they need; all) call is installed, before any step runs.

    Raises:
        MissingToolError: something lacks; the message names it and the line that installs it.
    """
    lacking: dict[str, str] = {}
    for name in plan.steps if names is None else plan.ancestors(names):
        step = plan.steps[name]
        if step.toolchain:
            foreign_identities(plan.config.toolchains[step.toolchain].python, ())
            continue
        for tool in step.stage.used_tools():
            if tool_version(tool) == "absent":
                lacking.setdefault(tool, step.name)
    if lacking:
        named = ", ".join(f"{tool} (for {step})" for tool, step in sorted(lacking.items()))
        raise MissingToolError(
            f"not installed: {named}",
            fix="pip install 'target-model-compiler[build]' (in a checkout: make setup), or leave those candidates out",
        )
