"""From a stage's name in the configuration to its class, and from a class to its name."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import re
from types import ModuleType

from compiler.errors import ConfigError, unknown_name
from compiler.stage import Stage

STAGES = "compiler.stages"
BACKENDS = "compiler.backends"
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def snake(name: str) -> str:
    """CamelCase to snake_case: `TfliteConvert` is `tflite_convert`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def backend_module(name: str) -> ModuleType:
    """The module of a backend: `compiler.backends.<name>`, or a dotted name for a private one.

    Raises:
        ConfigError: there is no such module, with the names that there are.
    """
    dotted = name if "." in name else f"{BACKENDS}.{name}"
    if not MODULE.fullmatch(name):
        raise unknown_name("backend", name, _children(BACKENDS))
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name and not (dotted == error.name or dotted.startswith(error.name + ".")):
            raise
        if "." in name:
            raise ConfigError(
                f"there is no Python module {name!r} for this backend",
                fix="put its folder on PYTHONPATH; the module must be importable where the build runs",
            ) from None
        raise unknown_name("backend", name, _children(BACKENDS)) from None


def backends() -> list[str]:
    """The names of the project's own backends."""
    return _children(BACKENDS)


def stage_class(name: str, backend: str | None = None) -> type[Stage]:
    """The class of the stage `name`: the backend's own if it has one, else the core's; `backend.stage` names one.

    Raises:
        ConfigError: nobody has such a stage, with the nearest name.
    """
    if "." in name:
        backend, _, name = name.rpartition(".")
    own = _stages_of(backend_module(backend)) if backend else {}
    if name in own:
        return own[name]
    if name in _children(STAGES):
        core = _stages_of(importlib.import_module(f"{STAGES}.{name}"))
        if name in core:
            return core[name]
    raise unknown_name("stage", name, [*own, *_children(STAGES)])


def reference(cls: type[Stage]) -> str:
    """How a worker finds the class again: `module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def load(ref: str) -> type[Stage]:
    """The class that `reference` named."""
    module, _, name = ref.partition(":")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, Stage)):
        raise ConfigError(f"{ref} is not a stage", fix="a stage is a dataclass that inherits compiler.stage.Stage")
    return cls


def _stages_of(module: ModuleType) -> dict[str, type[Stage]]:
    return {
        snake(name): value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Stage)
        and value.__module__ == module.__name__
        and dataclasses.is_dataclass(value)
        and not getattr(value, "__abstractmethods__", None)
    }


@functools.cache
def _children(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return sorted(info.name for info in pkgutil.iter_modules(locations) if not info.name.startswith("_"))
