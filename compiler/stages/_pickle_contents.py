"""What a pickle would build, read off its opcodes: nothing is imported, and nothing in it is called.

It is for words only, where PyTorch's safe loader refuses a file: the classes it names, the keys it has, where its
tensors lie. A file whose opcodes make no sense is described as far as it was followed.
"""

from __future__ import annotations

import io
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGEST = 64 << 20
"""Bytes of a pickle that are read."""
MOST_OPCODES = 2_000_000
"""Of one pickle: a state dict takes some 30 a tensor."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles in a file of the format before PyTorch 1.6; the fourth is the object."""
LEGACY_OBJECT = 3
DEEPEST = 4

PLAIN = (
    "torch.", "collections.OrderedDict", "collections.defaultdict", "_codecs.encode", "numpy.core.", "numpy._core.",
    "numpy.dtype", "numpy.ndarray", "numpy.random.",
)  # fmt: skip
"""Prefixes of what a pickle of tensors, dictionaries and numbers names; anything else is of some class."""
HARMLESS = {
    "builtins": {
        "set", "frozenset", "list", "dict", "tuple", "slice", "complex", "bytearray", "bytes", "object", "int",
        "float", "str", "bool", "range",
    },
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "argparse": {"Namespace"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "types": {"SimpleNamespace"},
    "functools": {"partial"},
    "copyreg": {"_reconstructor"},
    "_codecs": {"encode"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "uuid": {"UUID"},
}  # fmt: skip
"""Names of Python's own library that a training script's settings bring: no weights need a call of any other."""
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""What protocol 2, which torch.save writes, calls them."""

MARK, TENSOR = object(), object()


@dataclass(frozen=True)
class Named:
    """Something that the pickle would import."""

    name: str


@dataclass
class Made:
    """What a call of `by` would return; `state` is what would be set on it."""

    by: str
    state: Any = None


@dataclass
class Contents:
    """What the pickle of a file would build.

    `root`: dicts, lists, plain values, `TENSOR`, `Made`; None where it could not be followed. `names`: all imports.
    `plain`: `pickle.dump` wrote it, not `torch.save`.
    """

    root: Any = None
    plain: bool = False
    names: set[str] = field(default_factory=set)

    def foreign(self) -> list[str]:
        """Names that are neither PyTorch's nor NumPy's nor plain Python values."""
        return sorted(name for name in self.names if not name.startswith(PLAIN) and not _is_harmless(name, "builtins"))

    def calls(self) -> list[str]:
        """Names of Python's own library that no weights need: functions that a hostile file would have called."""
        return sorted(
            name
            for name in self.names
            if name.partition(".")[0] in (*sys.stdlib_module_names, "builtins")
            and not any(_is_harmless(name, module) for module in HARMLESS)
        )

    def networks(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Where whole modules lie, and their classes."""
        for keys, value in _walk(self.root):
            if isinstance(value, Made) and _is_module(value):
                yield keys, value.by

    def tensors(self) -> Iterator[tuple[str, ...]]:
        """Where dictionaries of named tensors lie."""
        for keys, value in _walk(self.root):
            if isinstance(value, dict) and any(v is TENSOR and isinstance(k, str) for k, v in value.items()):
                yield keys


def contents_of(path: Path) -> Contents:
    """Follow the pickle in the PyTorch file, or plain pickle, at `path`."""
    contents = Contents()
    try:
        stream = io.BytesIO(_pickle_in(path))
        root = _follow(stream, contents.names)
        if isinstance(root, int) and root == LEGACY_MAGIC:
            for _ in range(LEGACY_OBJECT):
                root = _follow(stream, contents.names)
        elif not zipfile.is_zipfile(path):
            contents.plain = True
        contents.root = root
    except Exception:  # noqa: S110 - hostile or damaged: what was found so far is told
        pass
    return contents


def _is_harmless(name: str, module: str) -> bool:
    return name.removeprefix(f"{module}.") in HARMLESS[module] and name.startswith(f"{module}.")


def _is_module(made: Made) -> bool:
    return isinstance(made.state, dict) and "_modules" in made.state and "_parameters" in made.state


def _walk(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every dictionary and object below `root`, once each, with the keys that lead to it; outer ones first."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
    for keys, value in waiting:
        if id(value) in seen:  # a hostile pickle may hold itself, or one part a thousand times
            continue
        seen.add(id(value))
        yield keys, value
        if isinstance(value, dict) and len(keys) < DEEPEST:
            waiting += [
                ((*keys, name), below)
                for name, below in value.items()
                if isinstance(name, str) and isinstance(below, (dict, Made))
            ]


def _pickle_in(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(LARGEST)
    with zipfile.ZipFile(path) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(entry) as file:
            return file.read(LARGEST)


def _follow(stream: io.BytesIO, names: set[str]) -> Any:
    """The skeleton of the next pickle of `stream`; what it would import is added to `names` as it is met.

    Raises:
        ValueError, LookupError, TypeError: it is damaged, too long, or no pickle.
    """
    machine = _Machine(names)
    for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MOST_OPCODES:
            raise ValueError("too long")
        if code.name == "STOP":
            break
        machine.step(code, argument)
    return machine.stack[-1]


class _Machine:
    """The pickle machine's stack and memo, with calls left undone."""

    def __init__(self, names: set[str]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names = names
        self._own: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.stack.append(MARK),
            "POP": lambda _: self._drop(),
            "POP_MARK": lambda _: self._drop_to_mark(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
            "MEMOIZE": lambda _: self.memo.update({len(self.memo): self.stack[-1]}),
            "GLOBAL": lambda text: self._import(*str(text).split(" ", 1)),
            "STACK_GLOBAL": self._stack_global,
            "INST": self._inst,
            "OBJ": self._obj,
            "REDUCE": lambda _: self._call(1),
            "NEWOBJ": lambda _: self._call(1),
            "NEWOBJ_EX": lambda _: self._call(2),
            "BUILD": self._build,
            "PERSID": lambda _: self.stack.append(Made("storage")),
            "BINPERSID": self._persistent,
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "DICT": lambda _: self.stack.append(_pairs(self._discard())),
            "SETITEM": lambda _: self._set(self._take(2)),
            "SETITEMS": lambda _: self._set(self._discard()),
            "APPEND": lambda _: self._drop(),  # what lists and sets hold is not needed
            "APPENDS": lambda _: self._drop_to_mark(),
            "ADDITEMS": lambda _: self._drop_to_mark(),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            **{f"EMPTY_{kind}": lambda _: self.stack.append([]) for kind in ("LIST", "SET")},
            **{kind: lambda _: self.stack.append(tuple(self._discard())) for kind in ("TUPLE", "LIST", "FROZENSET")},
            **{f"TUPLE{n}": lambda _, n=n: self.stack.append(tuple(self._take(n))) for n in (1, 2, 3)},  # type: ignore[misc]
            **{f"EXT{n}": lambda _: self.stack.append(Made("an extension")) for n in (1, 2, 4)},
            **{kind: lambda _: None for kind in ("PROTO", "FRAME", "READONLY_BUFFER")},
            **{f"{size}PUT": self._put for size in ("", "BIN", "LONG_BIN")},
            **{f"{size}GET": lambda n: self.stack.append(self.memo[n]) for size in ("", "BIN", "LONG_BIN")},
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
        }

    def step(self, code: Any, argument: Any) -> None:
        """Do one opcode."""
        if code.name in self._own:
            self._own[code.name](argument)
        else:  # a number, text, bytes or None
            self.stack.append(argument)

    def _put(self, number: Any) -> None:
        self.memo[number] = self.stack[-1]

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _drop(self) -> None:
        self._take(1)

    def _discard(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        place = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is MARK)
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def _drop_to_mark(self) -> None:
        self._discard()

    def _replace(self, count: int, value: Any) -> None:
        self._take(count)
        self.stack.append(value)

    def _import(self, module: str, name: str) -> None:
        full = f"{OLD_MODULES.get(module, module)}.{name}"
        self.names.add(full)
        self.stack.append(Named(full))

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        self._import(str(module), str(name))

    def _inst(self, text: Any) -> None:
        self._discard()
        self._import(*str(text).split(" ", 1))
        self._replace(1, Made(self.stack[-1].name))

    def _obj(self, _: Any) -> None:
        taken = self._discard()
        self.stack.append(Made(taken[0].name if taken and isinstance(taken[0], Named) else "?"))

    def _call(self, arguments: int) -> None:
        called, *given = self._take(1 + arguments)
        name = called.name if isinstance(called, Named) else "?"
        if name in ("collections.OrderedDict", "collections.defaultdict"):
            self.stack.append({})
        elif name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_")):
            self.stack.append(TENSOR)
        elif name == "copyreg._reconstructor" and isinstance(given[0], tuple) and isinstance(given[0][0], Named):
            self.stack.append(Made(given[0][0].name))
        else:
            self.stack.append(Made(name))

    def _persistent(self, _: Any) -> None:
        """A storage; before PyTorch 1.6 also a module's class, next to its source."""
        (given,) = self._take(1)
        is_class = isinstance(given, tuple) and len(given) > 1 and given[0] == "module" and isinstance(given[1], Named)
        self.stack.append(given[1] if is_class else Made("storage"))

    def _build(self, _: Any) -> None:
        (state,) = self._take(1)
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    kept = (int, float, str, bool, bytes, type(None))
    return {key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, kept)}
