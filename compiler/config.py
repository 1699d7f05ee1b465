"""From the command line's overrides to a typed, checked configuration.

Hydra composes; a typed schema is merged onto the outcome, so that a user's own YAML is checked as ours is.
Hydra and OmegaConf are imported inside the functions that need them: `show`, `run` and `verify` do without.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler import typed
from compiler.errors import ConfigError, unknown_name
from compiler.foreign_yaml import check_yaml
from compiler.hydra_errors import hydra_errors, translated, unreadable
from compiler.overrides import as_text, check_nesting, check_override, conf_dir, expand_models, options, quoted
from compiler.resolvers import register_resolvers
from compiler.schema import Candidate, Config
from compiler.values import check_for_build, check_values

MOST_JOBS = 10_000
"""Of one `--multirun`."""


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
    check_values(config)
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
        raise translated(error) from error
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
            if not float(value.step):
                raise ConfigError(f"{override.key_or_group}: the step of its range is 0", fix="give another step")
            # an empty range makes no job at all, but the values of the others are still written out
            jobs *= max(1, math.ceil((float(value.stop or 0) - float(value.start or 0)) / float(value.step)))
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
        raise translated(error) from error
    assert isinstance(config, Config)
    check_values(config)
    check_for_build(config)
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
        raise unreadable(error, config_dirs) from None
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
