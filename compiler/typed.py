"""Dataclasses from plain JSON values, checked field by field: stages, and configurations that manifests recorded.

Hydra and OmegaConf compose and check what people write; this takes what is composed already, so that a host which
finishes a build needs neither. Nothing is interpolated: what a manifest says stays text.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from compiler.errors import did_you_mean
from compiler.limits import Limit

MISSING = "???"
TRUE = ("true", "yes", "on", "y", "1")
FALSE = ("false", "no", "off", "n", "0")
T = TypeVar("T")


class TypeMismatch(ValueError):
    """A value is not of its field's type, or beyond its limits; `args[0]` says which and what was expected."""


class MissingValue(TypeMismatch):
    """A field without a default has no value; `name` is the field's, with dots where it is nested."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has no value")
        self.name = name


def make(cls: Callable[..., T], values: Mapping[str, Any], where: str = "") -> T:
    """`cls`, a dataclass, with the fields `values` (JSON types); lists become the tuples and lists that it names.

    `where` is what stands before a field's name in an error.

    Raises:
        TypeMismatch: a field is unknown, or its value of another type.
        MissingValue: one without a default is left out.
    """
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise TypeMismatch(f"there is no field {f'{where}{name}'!r}{did_you_mean(str(name), fields)}")
    given = {}
    for name, field in fields.items():
        if name in values and values[name] != MISSING:
            given[name] = convert(hints[name], values[name], f"{where}{name}")
        elif name in values or (field.default is field.default_factory is dataclasses.MISSING):
            raise MissingValue(f"{where}{name}")
    return cls(**given)


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` says. Numbers and truth may be written as text, as YAML and command lines do.

    Raises:
        TypeMismatch: it is none.
    """
    if hint is Any:
        return value
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _limited(inner[0], inner[1:], value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return convert(next(arg for arg in inner if arg is not type(None)), value, where)
    if value is None:
        raise TypeMismatch(f"{where} is null, and must be {_said(hint)}")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise TypeMismatch(f"{where} is {value!r}, and must map names to values"[:300])
        return make(hint, value, f"{where}.")
    if origin in (dict, Mapping) or hint is dict:
        return _mapping(inner, value, where)
    if origin in (list, tuple) or hint in (list, tuple):
        return _sequence(origin or hint, inner, value, where)
    return _scalar(hint, value, where)


def _limited(hint: Any, limits: tuple[Any, ...], value: Any, where: str) -> Any:
    found = convert(hint, value, where)
    for limit in limits:
        if isinstance(limit, Limit) and (expected := limit.broken(found)):
            raise TypeMismatch(f"{where} is {found!r}, and must be {expected}"[:300])
    return found


def _mapping(inner: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeMismatch(f"{where} is {value!r}, and must map names to values"[:300])
    kind = inner[1] if inner else Any
    return {str(name): convert(kind, item, f"{where}.{name}") for name, item in value.items()}


def _sequence(origin: Any, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeMismatch(f"{where} is {value!r}, and must be a list"[:300])
    kinds = inner or (Any,)
    if origin is tuple and len(kinds) > 1 and kinds[1] is not Ellipsis:
        if len(value) != len(kinds):
            count = f"{len(value)} value{'' if len(value) == 1 else 's'}"
            raise TypeMismatch(f"{where} has {count}, and must have {len(kinds)}")
        return tuple(convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    found = [convert(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    return tuple(found) if origin is tuple else found


def _scalar(hint: Any, value: Any, where: str) -> Any:
    wrong = TypeMismatch(f"{where} is {value!r}, and must be {_said(hint)}"[:300])
    try:
        if hint is bool:
            return _truth(value)
        if hint is int and isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
        if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isnan(number):
                raise wrong
            return number
        if hint is str and isinstance(value, str | int | float):
            return str(value)
        if hint is Path and isinstance(value, str | Path):
            return Path(value)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return hint(value)
    except (ValueError, OverflowError):
        raise wrong from None
    raise wrong


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in (*TRUE, *FALSE):
        raise ValueError
    return text in TRUE


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _said(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
