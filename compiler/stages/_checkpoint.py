"""Reads checkpoints as data: safetensors, or PyTorch files without any code in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def load_state(path: Path) -> dict[str, Any]:
    """The state dict (name -> torch tensor) in the file at `path`.

    A state dict inside `state_dict`, `model` or `model_state_dict` is found, and the prefix that
    DataParallel puts before names is removed.

    Raises:
        ConfigError: the file is corrupt, of an unknown kind, or holds anything but tensors.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"the checkpoint {path} is corrupt: {error}", fix="save or fetch it again") from None
    elif path.suffix in SUFFIXES:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            text = str(error)
            if "weights_only" in text.lower() or "unsupported global" in text.lower() or "Unsupported operand" in text:
                first = next(
                    (line.strip() for line in text.splitlines() if "GLOBAL" in line or "global" in line.lower()), ""
                )
                raise ConfigError(
                    f"the checkpoint {path} holds code, which is never run ({first[:200]})",
                    fix="save model.state_dict() alone, best as safetensors; trust no file that brings code",
                ) from None
            raise ConfigError(
                f"the checkpoint {path} is corrupt: {text.splitlines()[0][:200] if text else type(error).__name__}",
                fix="save or fetch it again",
            ) from None
    else:
        raise ConfigError(f"the checkpoint {path} has an unknown suffix", fix=f"use one of {', '.join(SUFFIXES)}")
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(f"the checkpoint {path} is not a state dict", fix="save model.state_dict()")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    tensors: dict[str, Any] = state
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What weights were trained on, where the entry `training` of a safetensors header says so; else empty."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("training")
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"the checkpoint {path} is corrupt: {error}", fix="save or fetch it again") from None
    try:
        record = json.loads(text) if text else {}
    except ValueError:
        return {}  # somebody else's entry of that name
    return {str(k): str(v) for k, v in record.items()} if isinstance(record, dict) else {}
