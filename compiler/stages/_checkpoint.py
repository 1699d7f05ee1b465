"""Reads checkpoints as data: safetensors, or PyTorch files without any code in them, recognised by their content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError
from compiler.stages._file_kinds import NUMPY_ARCHIVE, OTHER, PROGRAM, REMEDIES, SAFETENSORS, SCRIPT, kind_of
from compiler.stages._pickle_contents import Contents, contents_of

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
"""Keys under which training scripts save the network's weights, likelier ones first."""
_NETWORK = "(model|net|network|weights|state)?"
AVERAGES = re.compile(f"{_NETWORK}(ema|swa|avg|averaged?){_NETWORK}")
"""Words of keys of averaged weights: whole words, since `schema` and `semantic` are none."""
NOT_WEIGHTS = re.compile(
    "optim(izers?)?|sched(ulers?)?|(grad)?scalers?|loss(es)?|callbacks?|rng|hyper|hyperparam(eter)?s?"
)
"""Words of keys below which the tensors are not the network's."""
WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
DEEPEST = 4
SHOWN = 8


@dataclass(frozen=True)
class TensorSet:
    """Tensors by name; `keys` lead to where they lie in the checkpoint, such as `("state_dict",)`; none for the whole.

    `prefix` is what was removed from their names, where only those below the keys that begin with it are meant.
    """

    keys: tuple[str, ...]
    tensors: Mapping[str, Any]
    prefix: str = ""

    @property
    def key(self) -> str:
        """The keys as one name; empty for the whole checkpoint."""
        return ".".join(self.keys)

    def place(self) -> str:
        """Key and prefix in words; empty for the whole file."""
        return " ".join(([self.key] if self.key else []) + ([f"({self.prefix}*)"] if self.prefix else []))

    def expression(self, path: Path) -> str:
        """Python that reads the set from the file at `path`, named as seen from its folder."""
        if kind_of(path)[0] == SAFETENSORS:
            content = f"safetensors.torch.load_file({path.name!r})"
        else:
            keys = "".join(f"[{key!r}]" for key in self.keys)
            content = f"torch.load({path.name!r}, weights_only=True){keys}"
        if not self.prefix:
            return content
        cut, start = f"k.removeprefix({self.prefix!r})", f"k.startswith({self.prefix!r})"
        return f"{{{cut}: v for k, v in {content}.items() if {start}}}"


def read_sets(path: Path) -> list[TensorSet]:
    """Every set of named tensors in the file at `path`: the plain ones first, then averages (EMA).

    Raises:
        ConfigError: the file is missing, damaged, of another kind, or holds anything but tensors and plain values.
    """
    if check_kind(path) == SAFETENSORS:
        return [TensorSet((), _read_safetensors(path))]
    content = _read_torch(path)
    found = list(_sets_in(content, ()))
    if not found:
        raise ConfigError(
            f"the checkpoint {path} holds no named tensors: it is {_described(content)}",
            fix="save model.state_dict(), best as safetensors",
        )
    return sorted(found, key=lambda each: likelihood(each.key))


def check_kind(path: Path) -> str:
    """Return what kind of checkpoint the file at `path` is, from its first bytes: SAFETENSORS or TORCH.

    Raises:
        ConfigError: it is another, or cannot be read.
    """
    try:
        kind, words = kind_of(path)
    except OSError as error:
        raise ConfigError(
            f"the checkpoint {path} cannot be read: {error.strerror}", fix="check model.weights"
        ) from None
    if kind in (SCRIPT, PROGRAM, OTHER):
        raise _another_kind(path, kind, words)
    return kind


def likelihood(key: str) -> tuple[bool, int, str]:
    """Sorts where weights are looked for: averages last, the usual keys first. Keys that differ only in the last entry
    are equally likely.
    """
    first = key.partition(".")[0]
    return is_average(key), WRAPPERS.index(first) if first in WRAPPERS else len(WRAPPERS) * (key != ""), key


def is_average(key: str) -> bool:
    """Whether the key is one of averaged weights."""
    return _has_word(key, AVERAGES)


def read_metadata(path: Path) -> dict[str, str]:
    """What weights were trained on, where the entry `training` of a safetensors header says so; else empty.

    Raises:
        ConfigError: it is a damaged safetensors file.
    """
    try:
        if kind_of(path)[0] != SAFETENSORS:
            return {}
    except OSError:
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("training")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    try:
        record = json.loads(text) if text else {}
    except ValueError:
        return {}  # somebody else's entry of that name
    return {str(k): str(v) for k, v in record.items()} if isinstance(record, dict) else {}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_torch(path: Path) -> Any:
    """The content of a PyTorch file, none of its code run."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a hostile file
        text = str(error).lower()
        if "weights_only" in text or "unsupported global" in text or "unsupported operand" in text:
            raise _with_code(path, contents_of(path)) from None
        raise _damaged(path, error) from None


def _with_code(path: Path, contents: Contents) -> ConfigError:
    """The error for a pickle that needs code: a whole network, NumPy values, or objects of a training framework."""
    calls, foreign = contents.calls(), contents.foreign()
    if calls:
        return ConfigError(
            f"the checkpoint {path} calls {_listed(calls)} when it is opened, whose code is never run here",
            fix="weights need no such call: do not open the file; fetch another from where you trust",
        )
    networks = list(contents.networks())
    found = f"; found: {_described(contents.root)}" if isinstance(contents.root, dict) else ""
    if networks:
        keys, name = networks[0]
        place = f" under {'.'.join(keys)!r}" if keys else ""
        what = f"holds a whole pickled network{place} ({name}), whose code is never run here"
    elif foreign:
        what = f"holds Python objects ({_listed(foreign)}), whose code is never run here"
    else:
        numbers = sorted(name for name in contents.names if name.startswith("numpy"))
        what = f"holds {'NumPy values' if numbers else 'Python objects'} next to the weights"
        what += f" ({_listed(numbers)})" if numbers else ", whose code is never run here"
    lines = _saving_lines(path, contents)
    return ConfigError(
        f"the checkpoint {path} {what}{found}",
        fix="save model.state_dict() alone" + ("; if you trust the file, the lines above do so" if lines else ""),
        details=lines,
    )


def _saving_lines(path: Path, contents: Contents) -> list[str]:
    """Lines of Python that save the likeliest weights in the file; none where no weights were found in it."""
    places = [(keys, ".state_dict()") for keys, _ in contents.networks()]
    places += [(keys, "") for keys in contents.tensors() if not any(map(_is_other, keys))]
    if not places:
        return []
    keys, call = min(places, key=lambda place: likelihood(".".join(place[0])))
    weights = f"checkpoint{''.join(f'[{key!r}]' for key in keys)}{call}"
    opened = f"torch.load({path.name!r}, map_location='cpu', weights_only=False)"
    if contents.plain:
        opened = f"pickle.load(open({path.name!r}, 'rb'))"
    return [
        "import pickle, torch" if contents.plain else "import torch",
        f"checkpoint = {opened}  # runs the file's code",
        f"state = {{k: v for k, v in {weights}.items() if isinstance(v, torch.Tensor)}}",
        f"torch.save(state, {path.stem + '-state.pt'!r})",
    ]


def _is_other(key: str) -> bool:
    """Whether what lies under `key` is not the network's."""
    return _has_word(key, NOT_WEIGHTS)


def _has_word(key: str, words: re.Pattern[str]) -> bool:
    """Whether a whole word of `key`, written with underscores, dots or capitals, is one of `words`."""
    return any(words.fullmatch(word.lower()) for word in WORD.findall(key))


def _listed(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:4]) + (" ..." if len(names) > 4 else "")


def _another_kind(path: Path, kind: str, words: str) -> ConfigError:
    target = path.stem + "-state.pt"
    if kind == SCRIPT:
        return ConfigError(
            f"the checkpoint {path} is a TorchScript program, whose code is never run here",
            fix="save its state dict and the network's source instead; if you trust the file, the lines above do so",
            details=["import torch", f"torch.save(torch.jit.load({path.name!r}).state_dict(), {target!r})"],
        )
    if kind == PROGRAM:
        return ConfigError(
            f"the checkpoint {path} is a program that torch.export wrote, not a state dict",
            fix="save its state dict; if you trust the file, the lines above do so",
            details=["import torch", f"torch.save(torch.export.load({path.name!r}).state_dict, {target!r})"],
        )
    return ConfigError(
        f"the checkpoint {path} {f'is {words}' if words else 'is corrupt, or of a kind that is not known'}",
        fix=REMEDIES.get(words, "give safetensors, or what torch.save(model.state_dict(), FILE) writes"),
        details=_lines_for_numpy(path) if words == NUMPY_ARCHIVE else (),
    )


def _lines_for_numpy(path: Path) -> list[str]:
    """Lines of Python that make a state dict of an archive of NumPy arrays, which need no trust."""
    return [
        "import numpy, torch",
        f"state = {{k: torch.from_numpy(v) for k, v in numpy.load({path.name!r}, allow_pickle=False).items()}}",
        f"torch.save(state, {path.stem + '-state.pt'!r})",
    ]


def _damaged(path: Path, error: Exception) -> ConfigError:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ConfigError(f"the checkpoint {path} is corrupt: {first[:200]}", fix="save or fetch it again")


def _sets_in(content: Any, keys: tuple[str, ...]) -> Iterator[TensorSet]:
    """The sets below `content`, to which `keys` lead; entries that are not tensors do not belong to a set."""
    import torch

    if not isinstance(content, dict) or len(keys) > DEEPEST:
        return
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors and all(isinstance(name, str) for name in tensors):
        if isinstance(content, dict) and len(tensors) == len(content):
            yield TensorSet(keys, content)  # the very dictionary, which may hold its modules' versions
        else:
            yield TensorSet(keys, tensors)
    for name, value in content.items():
        if isinstance(name, str) and not _is_other(name):
            yield from _sets_in(value, (*keys, name))


def _described(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(str(name)[:40] for name in list(content)[:SHOWN])
        return f"a dictionary with the keys {names or 'of none'}"
    return f"a {type(content).__name__}"
