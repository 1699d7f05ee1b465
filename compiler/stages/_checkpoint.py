"""Reads checkpoints as data: safetensors, or PyTorch files without any code in them, recognised by their content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError
from compiler.stages._file_kinds import OTHER, PROGRAM, SAFETENSORS, SCRIPT, imported_names, kind_of

PLAIN = ("torch.", "collections.", "_codecs.", "numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.dtype")
"""Prefixes of what a pickle of tensors, dictionaries and numbers imports; anything else is an object of some class."""
NOT_WEIGHTS = ("optim", "sched", "scaler", "loss", "callback", "rng", "hyper_param")
"""Parts of keys below which the tensors are not the network's."""
DEEPEST = 4
SHOWN = 8


@dataclass(frozen=True)
class TensorSet:
    """Tensors by name; `key` is where they lie in the checkpoint, such as `state_dict`, or empty for the whole."""

    key: str
    tensors: Mapping[str, Any]


def read_sets(path: Path) -> list[TensorSet]:
    """Every set of named tensors in the file at `path`: the plain ones first, then averages (EMA).

    Raises:
        ConfigError: the file is missing, damaged, of another kind, or holds anything but tensors and plain values.
    """
    try:
        kind, words = kind_of(path)
    except OSError as error:
        raise ConfigError(
            f"the checkpoint {path} cannot be read: {error.strerror}", fix="check model.weights"
        ) from None
    if kind == SAFETENSORS:
        return [TensorSet("", _read_safetensors(path))]
    if kind in (SCRIPT, PROGRAM, OTHER):
        raise _another_kind(path, kind, words)
    content = _read_torch(path)
    found = list(_sets_in(content, "", 0))
    if not found:
        raise ConfigError(
            f"the checkpoint {path} holds no named tensors: it is {_described(content)}",
            fix="save model.state_dict(), best as safetensors",
        )
    return sorted(
        found, key=lambda each: (any(word in each.key.lower() for word in ("ema", "avg", "average")), each.key)
    )


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
        names = imported_names(path)
        text = str(error).lower()
        if "weights_only" in text or "unsupported global" in text or "unsupported operand" in text:
            raise _with_code(path, names) from None
        raise _damaged(path, error) from None


def _with_code(path: Path, names: list[str]) -> ConfigError:
    """The error for a pickle that needs code: a whole network, NumPy values, or objects of a training framework."""
    foreign = [name for name in names if not name.startswith(PLAIN)]
    numbers = [name for name in names if name.startswith("numpy")]
    if not foreign and numbers:
        what = f"holds NumPy values ({', '.join(numbers[:3])}) next to the weights"
        read = "checkpoint"
    else:
        what = f"holds Python objects ({', '.join(foreign[:4]) or 'of unknown classes'}), whose code is never run here"
        read = "checkpoint  # a network: checkpoint.state_dict(); a dictionary: checkpoint['state_dict']"
    return ConfigError(
        f"the checkpoint {path} {what}",
        fix="save model.state_dict() alone; if you trust the file, the lines above do so",
        details=[
            "import torch",
            f"checkpoint = torch.load({path.name!r}, map_location='cpu', weights_only=False)  # runs the file's code",
            f"state = {read}",
            "state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} or "
            "next(v for v in state.values() if isinstance(v, dict))",
            f"torch.save(state, {path.stem + '-state.pt'!r})",
        ],
    )


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
    what = f"is {words}" if words else "is of a kind that is not known"
    return ConfigError(
        f"the checkpoint {path} {what}; it is corrupt, or not a checkpoint of PyTorch",
        fix="give safetensors, or what torch.save(model.state_dict(), FILE) writes; or save or fetch the file again",
    )


def _damaged(path: Path, error: Exception) -> ConfigError:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ConfigError(f"the checkpoint {path} is corrupt: {first[:200]}", fix="save or fetch it again")


def _sets_in(content: Any, key: str, depth: int) -> Iterator[TensorSet]:
    """The sets below `content`, which lies at `key`; entries that are not tensors do not belong to a set."""
    import torch

    if not isinstance(content, dict) or depth > DEEPEST:
        return
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors and all(isinstance(name, str) for name in tensors):
        if isinstance(content, dict) and len(tensors) == len(content):
            yield TensorSet(key, content)  # the very dictionary, which may hold its modules' versions
        else:
            yield TensorSet(key, tensors)
    for name, value in content.items():
        if isinstance(name, str) and not any(word in name.lower() for word in NOT_WEIGHTS):
            yield from _sets_in(value, f"{key}.{name}" if key else name, depth + 1)


def _described(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(str(name)[:40] for name in list(content)[:SHOWN])
        return f"a dictionary with the keys {names or 'of none'}"
    return f"a {type(content).__name__}"
