"""From the command line's overrides to a typed, checked configuration.

Hydra composes; a typed schema is merged onto the outcome, so that a user's own YAML is checked as ours is.
Hydra and OmegaConf are imported inside the functions that need them: `show`, `run` and `verify` do without.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, did_you_mean, unknown_name

GROUPS = ("target", "model", "data", "budget", "pipeline")
OBJECTIVES = ("latency", "size")
TORCHVISION = "torchvision"


@dataclass
class Match:
    """How to tell on a host that it is the target; what is null is not asked for."""

    cpu_model: str | None = None
    """Regular expression found in the CPU's model name."""


@dataclass
class Target:
    """The hardware an artifact is for."""

    name: str
    description: str = ""
    arch: str = "x86_64"
    isa: list[str] = field(default_factory=list)
    """CPU features that may be relied on, in /proc/cpuinfo's spelling."""
    cores: int = 1
    memory_mb: int = 1024
    threads: int = 1
    match: Match = field(default_factory=Match)
    candidates: list[str] = field(default_factory=list)


@dataclass
class Model:
    """Where the network comes from."""

    name: str
    architecture: str
    weights: str | None = None
    sha256: str | None = None
    num_classes: int | None = None


@dataclass
class Splits:
    """Samples per split; null takes the rest."""

    train: int | None = 0
    calibration: int | None = 100
    selection: int | None = 100
    report: int | None = None


@dataclass
class Data:
    """Where the samples come from and how they become the network's input."""

    dataset: str
    root: str | None = None
    classes: str | None = None
    num_classes: int | None = None
    resize: int = 256
    crop: int = 224
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    layout: str = "NCHW"
    splits: Splits = field(default_factory=Splits)
    split_seed: int = 0


@dataclass
class Budget:
    """What an artifact must meet; null is not asked for."""

    latency_p95_ms: float | None = None
    accuracy_drop: float | None = None
    accuracy_min: float | None = None
    accuracy_gate: str = "point"
    size_mb: float | None = None
    peak_memory_mb: float | None = None


@dataclass
class Executor:
    """How steps are run."""

    jobs: int = 0
    time_limit_s: float = 3600.0


@dataclass
class Toolchain:
    """An environment of its own for steps that cannot live in ours."""

    python: str


@dataclass
class Candidate:
    """A backend at a precision with a quantization recipe: a chain of steps behind a step of the pipeline."""

    backend: str
    """Module in `compiler.backends` (or a dotted module of your own) whose stages the steps may name."""
    precision: str
    artifact: str
    """File that is opened, in the result of the last step."""
    after: str = "fuse"
    runtime: str | None = None
    """Module in `compiler.runtime`, or a dotted one; null: named like the backend."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the runtime is told besides the number of threads."""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """In order; each takes the result of the one before."""


@dataclass
class Config:
    """The whole of a build's configuration."""

    target: Target
    model: Model
    data: Data
    budget: Budget
    candidates: list[str]
    baseline: str
    steps: dict[str, Any]
    candidate: dict[str, Candidate] = field(default_factory=dict)
    objective: str = "latency"
    evaluate: str = "on_demand"
    seed: int = 0
    strict: bool = False
    artifacts_dir: str = "artifacts"
    executor: Executor = field(default_factory=Executor)
    toolchains: dict[str, Toolchain] = field(default_factory=dict)


@functools.cache
def conf_dir() -> Path:
    """The project's own YAML: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def options(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Names of a group's YAML files, the user's own included."""
    names = {path.stem for folder in (conf_dir(), *config_dirs) for path in (folder / group).glob("*.yaml")}
    return sorted(names)


def compose(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Config:
    """Composes, checks and types the configuration that `overrides` ask for.

    Raises:
        ConfigError: an unknown name or key, a wrong type, a missing value; with the nearest known name.
    """
    _check_config_dirs(config_dirs)
    overrides = [_check_override(o, config_dirs) for o in _expand_models(overrides, config_dirs)]
    if not any(o.startswith("target=") for o in overrides):
        raise ConfigError(
            "no target is named", fix=f"add target=NAME; known: {', '.join(options('target', config_dirs))}"
        )
    raw = _hydra_compose(overrides, config_dirs)
    return _typed(raw, config_dirs)


def expand_sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[list[str]]:
    """The jobs of `--multirun`: every combination of comma-separated values, in Hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(_expand_models(overrides, config_dirs))
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise _translated(error) from error
    return [list(job) for batch in batches for job in batch]


def _hydra_compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    extra = (
        [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in config_dirs)}]"]
        if config_dirs
        else []
    )
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return hydra_compose("config", overrides=[*overrides, *extra])
    except (HydraException, OmegaConfBaseException) as error:
        raise _translated(error) from error


def _typed(raw: Any, config_dirs: Sequence[Path]) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        for key in _missing(OmegaConf.to_container(raw, resolve=False)):
            raise ConfigError(f"{key} has no value", fix=f"add {key}=VALUE")
        changes: Any = OmegaConf.to_container(raw.candidate)
        merged = OmegaConf.merge(
            OmegaConf.structured(Config), OmegaConf.masked_copy(raw, [key for key in raw if key != "candidate"])
        )
        names = list(dict.fromkeys([merged.baseline, *merged.candidates]))
        OmegaConf.set_struct(merged, False)
        for name in names:
            merged.candidate[name] = _candidate(name, changes.pop(name, {}), config_dirs)
        for name in changes:
            raise unknown_name("candidate in this build", str(name), names)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _translated(error) from error
    assert isinstance(config, Config)
    _check_values(config)
    return config


def _missing(node: Any, prefix: str = "") -> list[str]:
    """Keys whose value is `???`. Looked for before the schema is merged, whose defaults would fill them silently."""
    if isinstance(node, dict):
        return [
            key for name, item in node.items() for key in _missing(item, f"{prefix}.{name}" if prefix else str(name))
        ]
    return [prefix] if node == "???" else []


def _candidate(name: str, changes: dict[str, Any], config_dirs: Sequence[Path]) -> Any:
    """The candidate's file on its schema, with the command line's changes: no defaults list, so it costs little."""
    from omegaconf import OmegaConf

    own = OmegaConf.load(_candidate_file(name, config_dirs))
    base = OmegaConf.merge(OmegaConf.structured(Candidate), own)
    for step in changes.get("steps", {}):
        if step not in base.steps:
            raise unknown_name(f"step of candidate {name}", str(step), [str(s) for s in base.steps])
    return OmegaConf.merge(base, changes)


def _candidate_file(name: str, config_dirs: Sequence[Path]) -> Path:
    for folder in (*config_dirs, conf_dir()):
        path = folder / "candidate" / f"{name}.yaml"
        if path.is_file():
            return path
    raise unknown_name("candidate", name, options("candidate", config_dirs))


def _check_values(config: Config) -> None:
    for what, value, known in (
        ("objective", config.objective, OBJECTIVES),
        ("evaluate", config.evaluate, ("on_demand", "all")),
        ("budget.accuracy_gate", config.budget.accuracy_gate, ("point", "upper")),
        ("data.layout", config.data.layout, ("NCHW", "NHWC")),
    ):
        if value not in known:
            raise unknown_name(what, value, known)
    if not config.candidates:
        raise ConfigError("the list of candidates is empty", fix="name some: candidates=[tflite_fp32]")
    for what, name in (("target.name", config.target.name), ("model.name", config.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(f"{what} {name!r} cannot name a folder", fix="use letters, digits, '.', '_' and '-'")


def _check_config_dirs(config_dirs: Sequence[Path]) -> None:
    for folder in config_dirs:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder} is not a folder", fix="check the path")
        for path in folder.rglob("*.yaml"):
            relative = path.relative_to(folder)
            if (conf_dir() / relative).exists():
                raise ConfigError(
                    f"{path} has the name of one of the project's own files, which would hide it",
                    fix="rename your file, or override single keys on the command line",
                )


def _check_override(override: str, config_dirs: Sequence[Path]) -> str:
    """Refuses unknown options and top-level keys with the nearest name.

    Dotted keys are opened for values that no YAML file mentions: the schemas say what is known.
    """
    key, separator, value = override.partition("=")
    if not separator and not override.startswith("~"):
        raise ConfigError(
            f"{override!r} is not KEY=VALUE", fix="for example target=rpi4; see --help for verbs and flags"
        )
    if key in GROUPS:
        if not value:
            raise ConfigError(f"{key}= has no value", fix=f"known: {', '.join(options(key, config_dirs))}")
        if re.fullmatch(r"[\w./-]+", value) and value not in options(key, config_dirs):
            raise _unknown_option(key, value, config_dirs)
        return override
    bare = key.lstrip("+~")
    known = [f.name for f in dataclasses.fields(Config)]
    if bare.partition(".")[0].partition("@")[0] not in (*known, "hydra"):
        raise ConfigError(f"unknown key {bare!r}{did_you_mean(bare, known)}", fix=f"known: {', '.join(known)}")
    return f"++{override}" if "." in key and bare == key and not key.startswith("hydra.") else override


def _unknown_option(group: str, value: str, config_dirs: Sequence[Path]) -> ConfigError:
    known = options(group, config_dirs)
    if group != "model":
        return unknown_name(group, value, known)
    near = did_you_mean(value, [*known, *_torchvision_names()])
    return ConfigError(
        f"unknown model {value!r}{near}", fix=f"known: {', '.join(known)}, and every classifier of torchvision"
    )


def _expand_models(overrides: Iterable[str], config_dirs: Sequence[Path]) -> list[str]:
    """`model=efficientnet_b0`, a name only torchvision knows, becomes the three overrides that it stands for."""
    result = []
    for override in overrides:
        key, _, value = override.partition("=")
        theirs = key == "model" and re.fullmatch(r"\w+", value) and value not in options("model", config_dirs)
        if theirs and value in _torchvision_names():
            result += [f"model={TORCHVISION}", f"model.name={value}"]
        else:
            result.append(override)
    return result


@functools.cache
def _torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classifiers, read from its source: importing it would take seconds."""
    import importlib.util

    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(spec.submodule_search_locations[0]) / "models"
    found = set()
    for path in folder.glob("*.py"):
        found.update(re.findall(r"^@register_model\(\).*?^def (\w+)\(", path.read_text(), re.S | re.M))
    return tuple(sorted(found))


def register_resolvers() -> None:
    """`${host:cores}` and its like, and what a candidate may ask about the target."""
    from omegaconf import OmegaConf

    from compiler.runtime.host import profile

    if not OmegaConf.has_resolver("host"):
        OmegaConf.register_new_resolver("host", lambda name: profile()[name])
        OmegaConf.register_new_resolver("target_without_vnni", _without_vnni)


def _without_vnni(*, _root_: Any) -> bool:
    """uint8 x int8 products saturate in 16 bits on x86 CPUs without VNNI: weights then use 7 bits."""
    target = _root_.target
    return bool(target.arch == "x86_64" and not any("vnni" in feature for feature in target.isa))


def _translated(error: Exception) -> ConfigError:
    """Hydra's and OmegaConf's errors in this project's form."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error)
    full_key = str(getattr(cause, "full_key", None) or "")
    key_match = re.search(r"Key '([^']+)'", str(cause)) or re.search(r"Could not override '([^']+)'", text)
    first = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if "not in struct" in text or "not in struct" in str(cause) or "not in '" in str(cause):
        name = full_key or (key_match.group(1) if key_match else first)
        leaf = name.rpartition(".")[2]
        known = _known_keys(cause)
        fix = f"known here: {', '.join(known)}" if known else "compare with the files in conf/"
        return ConfigError(f"unknown key {name!r}{did_you_mean(leaf, known)}", fix=fix)
    if "MissingMandatoryValue" in type(cause).__name__ or "Missing mandatory value" in text:
        name = full_key or first.rpartition(":")[2].strip()
        return ConfigError(f"{name} has no value", fix=f"add {name}=VALUE")
    where = f"{full_key}: " if full_key and full_key not in first else ""
    return ConfigError(f"{where}{first}", fix="check the override or the YAML file that sets it")


def _known_keys(cause: BaseException) -> list[str]:
    parent = getattr(cause, "parent_node", None)
    if parent is not None and hasattr(parent, "keys"):
        return sorted(str(key) for key in parent.keys())  # noqa: SIM118 - an OmegaConf node, not a dict
    object_type = getattr(cause, "object_type", None)
    if object_type is not None and dataclasses.is_dataclass(object_type):
        return [f.name for f in dataclasses.fields(object_type)]
    return []
