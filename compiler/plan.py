"""The steps of a build with their edges, computed from configuration alone; running nothing."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler import lookup
from compiler.canonical import digest, encode, plain
from compiler.config import Candidate, Config
from compiler.errors import ConfigError, IntegrityError, did_you_mean, unknown_name
from compiler.keys import Memo, content_digest, foreign_versions, interpreter, source_closure, tool_version
from compiler.lookup import reference, stage_class
from compiler.runtime.host import describe
from compiler.stage import CANDIDATES, PREVIOUS, Stage

SPECIAL = ("stage", "inputs", "toolchain")
SPLITS = ("selection", "report")
KEY_VERSION = 1


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
    own_fields: dict[str, dict[str, Any]] = {
        "benchmark": {"candidates": table, "baseline": config.baseline},
        "select": {
            "budget": plain(config.budget),
            "objective": config.objective,
            "baseline": config.baseline,
            "trained": True,
        },
        "package": {"artifact": ""},
    }
    for name, spec in late.items():
        if name == "evaluate":
            _add_evaluations(plan, dict(spec or {}))
        else:
            _add(plan, structural, name, {**own_fields.get(name, {}), **dict(spec or {})}, None, None)
    return plan


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
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [f.name for f in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"step {step} has no field {name!r}{did_you_mean(str(name), known)}",
                fix=f"known: {', '.join(known) or 'none'}",
            )
    try:
        values = plain(fields)
    except TypeError as error:
        raise ConfigError(f"step {step}: {error}", fix="check the values") from error
    try:
        node = OmegaConf.merge(OmegaConf.structured(cls), values)
        for name in OmegaConf.missing_keys(node):
            raise ConfigError(f"step {step} needs a value for {name!r}", fix=f"set steps.{step}.{name}=VALUE")
        stage = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        raise ConfigError(f"step {step}: {f'{key}: ' if key else ''}{first}", fix="check the value's type") from error
    assert isinstance(stage, Stage)
    return stage


# -- keys --------------------------------------------------------------------------------------------------------------


class KeyMaker:
    """Makes key documents for the steps of one build."""

    def __init__(self, config: Config, memo: Memo) -> None:
        self._config = config
        self._memo = memo
        self._host: str | None = None

    def document(self, step: Step, inputs: Mapping[str, str]) -> dict[str, Any]:
        """What the step's key is the digest of. `inputs` maps roles to the digests of the results that fill them."""
        tools = sorted(set(step.stage.used_tools()))
        python = self.python(step)
        if python is None:
            versions = {name: tool_version(name) for name in tools}
            runs_on = interpreter()
        else:
            versions, runs_on = foreign_versions(python, tuple(tools))
        document: dict[str, Any] = {
            "key_version": KEY_VERSION,
            "stage": reference(type(step.stage)),
            "fields": {f.name: self._field(step.stage, f.name) for f in dataclasses.fields(step.stage)},
            "inputs": dict(sorted(inputs.items())),
            "source": self.modules(step),
            "tools": versions,
            "interpreter": runs_on,
        }
        if step.stage.on_host:
            self._host = self._host or describe()["fingerprint"]
            document["host"] = self._host
        return document

    def modules(self, step: Step) -> dict[str, str]:
        """The first-party modules behind a step and the digests of their source."""
        roots = ("compiler.worker", type(step.stage).__module__, *step.stage.dynamic_modules())
        return source_closure(roots, self._memo)

    def python(self, step: Step) -> str | None:
        """The interpreter of the step's toolchain, or None for ours."""
        return self._config.toolchains[step.toolchain].python if step.toolchain else None

    def save(self) -> None:
        """Keeps what was read for the next run."""
        self._memo.save()

    def _field(self, stage: Stage, name: str) -> Any:
        """A path counts by its content, everything else by its value."""
        value = plain(getattr(stage, name))
        if value is None or not is_path_field(type(stage), name):
            return value
        path = resolve_path(str(value))
        found = content_digest(path, self._memo)
        wanted = getattr(stage, "sha256", None) if name == "weights" else None
        if wanted and wanted != found:
            raise IntegrityError(
                f"the checkpoint {path} has the SHA-256 {found}, the configuration says {wanted}",
                fix="fetch the file again, or set model.sha256 to the digest of the file that you trust",
            )
        return {"content": found}


def key_of(document: Mapping[str, Any]) -> str:
    """The key of a step: the digest of its document."""
    return digest(document)


def is_path_field(cls: type[Stage], name: str) -> bool:
    """Whether a field names something outside the store."""
    hint = typing.get_type_hints(cls)[name]
    return hint is Path or Path in typing.get_args(hint)


def resolve_path(value: str) -> Path:
    """Where a path of the configuration lies: `zoo://` is the project's own weights, else from the working folder."""
    if value.startswith("zoo:/"):
        return Path(__file__).resolve().parent / "zoo" / value.removeprefix("zoo:").lstrip("/")
    return Path(value).expanduser().absolute()


def explain(document: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    """One line: why a step with this key document runs, given the document it had last."""
    if last is None:
        return "first run"
    for title, name in (("field", "fields"), ("tool", "tools")):
        new, old = _leaves(document[name]), _leaves(last[name])
        for key in sorted({*new, *old}):
            if new.get(key) != old.get(key):
                if key.endswith(".content") and key in new and key in old:
                    return f"the content of {key.removesuffix('.content')} changed"
                return f"{title} {key}: {_short(old.get(key))} -> {_short(new.get(key))}"
    for role in sorted({*document["inputs"], *last["inputs"]}):
        if document["inputs"].get(role) != last["inputs"].get(role):
            return f"input {role} changed"
    for module in sorted({*document["source"], *last["source"]}):
        if document["source"].get(module) != last["source"].get(module):
            return f"source of {module} changed"
    for name in ("interpreter", "host", "stage", "key_version"):
        if document.get(name) != last.get(name):
            return f"{name} changed: {_short(last.get(name))} -> {_short(document.get(name))}"
    return "result missing or damaged"


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        k: v for name, item in node.items() for k, v in _leaves(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
