"""From the command line's overrides to a typed, checked configuration.

Hydra composes; a typed schema is merged onto the outcome, so that a user's own YAML is checked as ours is.
Hydra and OmegaConf are imported inside the functions that need them: `show`, `run` and `verify` do without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler import typed
from compiler.data.listing import LARGEST_CLASS_LIST
from compiler.errors import ConfigError, did_you_mean, unknown_name
from compiler.foreign_yaml import check_yaml
from compiler.limits import Between
from compiler.names import check_names
from compiler.overrides import as_text, check_nesting, check_override, conf_dir, expand_models, options, quoted
from compiler.registries.reference import parse as parse_reference
from compiler.runtime.verify import MANIFEST, SIDECARS
from compiler.schema import Candidate, Config, Match, Model, Splits

LARGEST_WEIGHTS = 64 << 30
MOST_JOBS = 10_000
LARGEST_SEED = 2**32 - 1
"""Of numpy's older generators."""
OBJECTIVES = ("latency", "throughput", "size")
POSITIVE = Between(0, above=True)
LIMITS = {
    "seed": Between(0, LARGEST_SEED),
    "data.split_seed": Between(0, LARGEST_SEED),
    "target.threads": Between(1),
    "target.cores": Between(1),
    "target.memory_mb": POSITIVE,
    "model.accuracy": Between(0, 100),
    "executor.jobs": Between(0, 1000),
    "executor.time_limit_s": Between(0.001, 1e9),
    "executor.memory_limit_mb": Between(0, 1e9),
    **{f"data.splits.{split.name}": Between(0) for split in dataclasses.fields(Splits)},
    **{f"budget.{name}": POSITIVE for name in (
        "latency_p95_ms", "latency_p99_ms", "first_answer_ms", "size_mb", "peak_memory_mb", "arrival_rate_per_s",
        "load_p99_ms",
    )},
    "budget.accuracy_drop": Between(-math.inf),
    "budget.accuracy_min": Between(-math.inf),
}  # fmt: skip
"""Key -> what its number must be, where it has one. A drop below zero asks for a gain; a metric may have any unit."""


def compose(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Config:
    """Composes, checks and types the configuration that `overrides` ask for.

    Raises:
        ConfigError: an unknown name or key, a wrong type, a missing value; with the nearest known name.
    """
    _check_config_dirs(config_dirs)
    overrides = [check_override(o, config_dirs) for o in expand_models(overrides, config_dirs)]
    if not any(o.startswith("target=") for o in overrides):
        raise ConfigError(
            "no target is named", fix=f"add target=NAME; known: {', '.join(options('target', config_dirs))}"
        )
    raw = _hydra_compose(overrides, config_dirs)
    return _typed(raw, config_dirs)


def revive(node: Mapping[str, Any]) -> Config:
    """The configuration that a manifest recorded, checked like a composed one.

    Raises:
        ConfigError: it is none that this version understands.
    """
    try:
        config = typed.make(Config, node)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"the recorded configuration is none of this version: {error}", fix="build with the version that wrote it"
        ) from None
    _check_values(config)
    return config


def expand_sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[list[str]]:
    """The jobs of `--multirun`: every combination of comma-separated values, in Hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        words = [as_text(word, sweep=True) for word in expand_models(overrides, config_dirs)]
        for word in words:
            check_nesting(word)
        parsed = OverridesParser.create().parse_overrides(words)
        _check_jobs(parsed)
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise _translated(error) from error
    return [list(job) for batch in batches for job in batch]


def _check_jobs(parsed: Sequence[Any]) -> None:
    """Refuses a sweep that Hydra would write out as more than MOST_JOBS combinations.

    Raises:
        ConfigError: with the key at which they become too many.
    """
    from hydra.core.override_parser.types import RangeSweep

    jobs = 1
    for override in parsed:
        if not override.is_discrete_sweep():
            continue
        value = override.value()
        if isinstance(value, RangeSweep):  # counted without making its values
            jobs *= max(0, math.ceil((float(value.stop or 0) - float(value.start or 0)) / float(value.step)))
        else:
            jobs *= sum(1 for _ in itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
        if jobs > MOST_JOBS:
            raise ConfigError(
                f"{override.key_or_group}: with it the sweep stands for more than {MOST_JOBS:,} builds",
                fix="give fewer values, in several commands",
            )


def search_path(config_dirs: Sequence[Path]) -> list[str]:
    """The override by which Hydra looks into the user's own folders, too."""
    folders = ",".join(quoted(f"file://{folder.resolve()}") for folder in config_dirs)
    return [f"hydra.searchpath=[{folders}]"] if config_dirs else []


@contextlib.contextmanager
def hydra_errors(config_dirs: Sequence[Path] = ()) -> Iterator[None]:
    """Turns what Hydra, OmegaConf and PyYAML raise while they compose into this project's errors.

    Raises:
        ConfigError: with the key, or the user's file that cannot be read.
    """
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _translated(error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(error, config_dirs) from None
    except (ValueError, TypeError) as error:  # Hydra's own, for an override of a group by what is no name
        raise ConfigError(
            str(error), fix="a group takes the name of one of its files; set single keys as GROUP.KEY"
        ) from error


def _hydra_compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra_errors(config_dirs), initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return hydra_compose("config", overrides=[*overrides, *search_path(config_dirs)])


def _typed(raw: Any, config_dirs: Sequence[Path]) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        _refuse_secrets(OmegaConf.to_container(raw, resolve=False))
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
    _check_artifacts_dir(config)
    _check_sizes(config)
    _check_signing(config)
    return config


def _refuse_secrets(node: Any, key: str = "") -> None:
    """The configuration goes into manifests, logs and keys as it is, so nothing may be read from the environment."""
    if isinstance(node, dict):
        for name, item in node.items():
            _refuse_secrets(item, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for item in node:
            _refuse_secrets(item, key)
    elif isinstance(node, str) and re.search(r"\$\{\s*oc\.env", node):
        raise ConfigError(
            f"{key} reads an environment variable", fix="manifests record the configuration: write the value out"
        )


def _unreadable(error: Exception, config_dirs: Sequence[Path]) -> ConfigError:
    """Names the user's YAML file that cannot be read."""
    import yaml

    for folder in config_dirs:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as wrong:
                first = " ".join(str(wrong).split())[:200]
                return ConfigError(f"{path} is not plain YAML: {first}", fix="correct the file; tags are not allowed")
    return ConfigError(f"a YAML file cannot be read: {error}", fix="correct it")


def _missing(node: Any, prefix: str = "") -> list[str]:
    """Keys whose value is `???`. Looked for before the schema is merged, whose defaults would fill them silently."""
    if isinstance(node, dict):
        return [
            key for name, item in node.items() for key in _missing(item, f"{prefix}.{name}" if prefix else str(name))
        ]
    return [prefix] if node == "???" else []


def _candidate(name: str, changes: dict[str, Any], config_dirs: Sequence[Path]) -> Any:
    """The candidate's file on its schema, with the command line's changes: no defaults list, so it costs little."""
    import yaml
    from omegaconf import OmegaConf

    try:
        own = OmegaConf.load(_candidate_file(name, config_dirs))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(error, config_dirs) from None
    if not isinstance(changes, dict) or not isinstance(changes.get("steps", {}), dict):
        raise ConfigError(
            f"candidate.{name} is {changes!r}", fix=f"change single keys: candidate.{name}.steps.STEP.FIELD=VALUE"
        )
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
    for key, limit in LIMITS.items():
        number = functools.reduce(getattr, key.split("."), config)
        if number is None:
            continue
        finite = isinstance(number, int) or math.isfinite(number)  # type: ignore[arg-type]
        expected = limit.broken(number) if finite else "a finite number"
        if expected:
            raise ConfigError(f"{key} is {str(number)[:40]}", fix=f"it must be {expected}")
    least = config.budget.accuracy_min
    if least is not None and least > 100 and ":" not in config.data.metric:
        raise ConfigError(f"budget.accuracy_min is {least}", fix="give percent, from 0 to 100")
    _check_match(config.target.match)
    _check_model(config.model)
    if (config.budget.load_p99_ms is None) != (config.budget.arrival_rate_per_s is None):
        raise ConfigError(
            "budget.load_p99_ms and budget.arrival_rate_per_s belong together", fix="give both, or neither"
        )
    _check_registry(config)
    _check_candidates(config)
    if not config.artifacts_dir.strip():
        raise ConfigError("artifacts_dir is empty", fix="name a folder")
    if not config.candidates:
        raise ConfigError("the list of candidates is empty", fix="name some: candidates=[tflite_fp32]")
    for what, name in (("target.name", config.target.name), ("model.name", config.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ConfigError(
                f"{what} {name[:200]!r} cannot name a folder",
                fix="use letters, digits, '.', '_' and '-', 100 of them at most",
            )


def _check_match(match: Match) -> None:
    for name in ("cpu_model", "gpu"):
        try:
            re.compile(getattr(match, name) or "")
        except re.error as error:
            raise ConfigError(
                f"target.match.{name} is not a regular expression: {error}", fix="escape what is meant as it stands"
            ) from None


def _check_model(model: Model) -> None:
    if model.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", model.sha256):
        raise ConfigError(
            f"model.sha256 {model.sha256!r} is no SHA-256", fix="it has 64 hexadecimal digits; see sha256sum"
        )
    if model.sha256 is not None and model.weights is None:
        raise ConfigError("model.sha256 is given without model.weights", fix="name the file, or leave the digest out")


def _check_registry(config: Config) -> None:
    if config.publish or config.registry:  # a manifest of before there were registries names none
        parse_reference(config.registry)


def _check_artifacts_dir(config: Config) -> None:
    """Of what is to be built here; a manifest may have recorded a folder of another machine."""
    folder = Path(config.artifacts_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write below {folder}: it is not a folder", fix="set artifacts_dir to another")


def _check_sizes(config: Config) -> None:
    """Before a file is hashed, which would take hours of one that has a size but no content."""
    for what, file, largest in (
        ("model.weights", config.model.weights, LARGEST_WEIGHTS),
        ("data.classes", config.data.classes, LARGEST_CLASS_LIST),
    ):
        if file is not None and Path(file).is_file() and (size := Path(file).stat().st_size) > largest:
            raise ConfigError(f"{what}: {file} has {size} bytes, more than {largest}", fix="check that it is the file")


def _check_signing(config: Config) -> None:
    """Before any work: what is wrong with it should not come out after an hour of building.

    Not of a configuration that a manifest recorded: its key stayed where the artifact was published.
    """
    for file in (config.signing.key, *config.signing.certificates):
        if config.publish and file is not None and not Path(file).is_file():
            raise ConfigError(f"signing: {file} is not there", fix="give the path of a file in PEM form")
    if config.signing.certificates and config.signing.key is None:
        raise ConfigError("signing.certificates is given without signing.key", fix="name the key that they belong to")


def _check_candidates(config: Config) -> None:
    for name, candidate in config.candidate.items():
        if Path(candidate.artifact).name != candidate.artifact:
            raise ConfigError(
                f"candidate.{name}.artifact is {candidate.artifact!r}", fix="give the name of a file, without a folder"
            )
        try:
            check_names([candidate.artifact, MANIFEST, *SIDECARS])
        except ValueError as error:
            raise ConfigError(
                f"candidate.{name}.artifact: {error}", fix="use letters, digits, '.', '_', '+' and '-'"
            ) from None
    for name in [config.baseline, *config.candidates]:
        if name not in config.candidate:
            raise unknown_name("candidate", name, config.candidate)


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
            try:
                check_yaml(path)
            except (ValueError, OSError) as error:
                raise ConfigError(
                    f"{path} cannot be read as configuration: {error}", fix="mend it, or move it out of the folder"
                ) from None


def register_resolvers() -> None:
    """`${host:cores}` and its like, and what a candidate may ask about the target."""
    from omegaconf import OmegaConf

    from compiler.runtime.host import profile

    if not OmegaConf.has_resolver("host"):
        OmegaConf.register_new_resolver("host", lambda name: profile()[name])
        OmegaConf.register_new_resolver("target_without_vnni", _without_vnni)
        OmegaConf.register_new_resolver("largest_batch", _largest_batch)
        OmegaConf.register_new_resolver(
            "batch_or_any", lambda *, _root_: None if _largest_batch(_root_=_root_) > 1 else 1
        )


def _without_vnni(*, _root_: Any) -> bool:
    """uint8 x int8 products saturate in 16 bits on x86 CPUs without VNNI: weights then use 7 bits."""
    target = _root_.target
    return bool(target.arch == "x86_64" and not any("vnni" in feature for feature in target.isa))


def _largest_batch(*, _root_: Any) -> int:
    """The largest batch that an engine must take: what the sweep tries; 1, which runs fastest, without one."""
    sweep = _root_.steps.get("sweep") or {}
    return int(sweep.get("max_batch", 64)) if _root_.objective == "throughput" else 1


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
    if "Ambiguous value for argument" in text:
        return ConfigError(
            f"{text.splitlines()[0].split(': ', 1)[-1]}: several values", fix="add --multirun to build each of them"
        )
    if "is not a ListConfig" in text or "ListConfig" in first:
        return ConfigError(f"{full_key or 'the key'} takes a list", fix=f"write {full_key or 'KEY'}=[a,b]")
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
