"""The words of the command line, before Hydra reads them: unknown ones are answered with the nearest known one."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, did_you_mean, unknown_name
from compiler.schema import Config

GROUPS = ("target", "model", "data", "budget", "pipeline")
TORCHVISION = "torchvision"
DEEPEST = 32
"""Hydra's parser needs many frames of Python's stack for each bracket."""


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


def quoted(value: str) -> str:
    """A value as Hydra's grammar takes any text: in quotes. Backslashes count only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def as_text(override: str, sweep: bool = False) -> str:
    """The override with its value quoted, where the schema says that the key holds text.

    Hydra's grammar would read `1e5` as a number, and refuse `=`, spaces, `~` and letters outside ASCII. Quoted values,
    `null`, and in a `sweep` comma-separated ones stay as they are.
    """
    key, _, value = override.partition("=")
    if (
        not value
        or value[0] in "'\""
        or value == "null"
        or (sweep and "," in value)
        or not _holds_text(key.lstrip("+"))
    ):
        return override
    return f"{key}={quoted(value)}"


@functools.cache
def _holds_text(key: str) -> bool:
    """Whether the schema's field of this dotted key is a text: `str`, or `str` and None."""
    kind: Any = Config
    for name in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return False
    return kind is str or (str in typing.get_args(kind) and typing.get_origin(kind) is types.UnionType)


def check_override(override: str, config_dirs: Sequence[Path]) -> str:
    """Refuses unknown options and top-level keys with the nearest name.

    Dotted keys are opened for values that no YAML file mentions: the schemas say what is known.
    """
    check_nesting(override)
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
    if (text := as_text(override)) != override:
        override = text
    elif bare == key and value and not re.fullmatch(r"[\x20-\x7e]*", value) and value[0] not in "'\"[{":
        override = f"{key}={quoted(value)}"  # Hydra's grammar knows ASCII only, file systems know more
    return f"++{override}" if "." in key and bare == key and not key.startswith("hydra.") else override


def check_nesting(override: str) -> None:
    """Refuses what Hydra's parser, which calls itself for every bracket, could not end.

    Brackets in quotes count as well: nobody needs so many.

    Raises:
        ConfigError: more than DEEPEST brackets are open at once.
    """
    depth = 0
    for character in override:
        depth += (character in "([{") - (character in ")]}")
        if depth > DEEPEST:
            raise ConfigError(
                f"{override.partition('=')[0]} has a value with more than {DEEPEST} brackets in one another",
                fix="write fewer",
            )


def _unknown_option(group: str, value: str, config_dirs: Sequence[Path]) -> ConfigError:
    known = options(group, config_dirs)
    if group != "model":
        return unknown_name(group, value, known)
    near = did_you_mean(value, [*known, *_torchvision_names()])
    return ConfigError(
        f"unknown model {value!r}{near}", fix=f"known: {', '.join(known)}, and every classifier of torchvision"
    )


def expand_models(overrides: Iterable[str], config_dirs: Sequence[Path]) -> list[str]:
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
