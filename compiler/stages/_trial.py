"""A network is tried before anything is made of it: what it takes, what it returns, and that it answers alike.

What is wrong with a network shows here in its own words and with its own line. A converter would fail on it later, or
be blamed for it.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compiler.conversion import MAX_BATCH_ERROR, same
from compiler.errors import CompilerError, ConfigError
from compiler.user_code import calling_line, defined_at, own_line, shown

COUNTS = ("no", "one", "two", "three", "four", "five")
NO_MEMORY = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
CHANNELS = 3
"""Of the pictures that data is made of."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was seen of a network: `logits`, float32 (1, classes), of the first sample; whether it answers each sample
    in a batch as it does alone; and whether it writes into its input.
    """

    logits: Any
    any_batch: bool
    changes_input: bool


def try_network(model: Any, example: Any) -> Trial:
    """Calls the module with each sample of `example`, float32 (batch, ...), alone, again, and with all together.

    A network that changes its input is given a copy from then on, here and whenever it is called.

    Raises:
        ConfigError: forward does not take one picture, fails, returns no (batch, classes) tensor, or answers the same
            picture differently each time.
    """
    import torch

    from compiler.runtime.pytorch import feed_copies

    _check_signature(model)
    with torch.no_grad():
        given = example[:1].clone()
        version = given._version
        logits = _call(model, given)
        _check_output(model, logits)
        logits = logits.clone()  # it may be a view of what the next call changes
        changes = given._version != version or not torch.equal(given, example[:1])
        if changes:
            feed_copies(model)
        if not torch.isfinite(logits).all():
            return Trial(logits, False, changes)  # the weights are at fault, which is for the caller to say
        rows = [example[n : n + 1] for n in range(len(example))]
        alone = torch.cat([_call(model, row.clone()).clone() for row in rows])
        again = torch.cat([_call(model, row.clone()).clone() for row in rows])
        first = torch.cat([logits, alone[1:]])
        if not (_alike(alone, again) and _alike(alone, first)):
            raise _unsteady(model, rows[0])
        return Trial(logits, runs_batches(model, example, alone), changes)


def runs_batches(model: Any, example: Any, alone: Any) -> bool:
    """Whether the network answers each sample of `example`, float32 (batch, ...), in a batch as it does `alone`.

    `alone`: float32 (batch, classes).
    """
    import torch

    try:
        with torch.no_grad():
            together = model(example.clone())
    except Exception:  # the user's own code: whatever it raises, it does not take a batch
        return False
    return isinstance(together, torch.Tensor) and _alike(alone, together)


def _alike(some: Any, others: Any) -> bool:
    return same(some.float().numpy(), others.float().numpy(), MAX_BATCH_ERROR["fp32"])


def _check_signature(model: Any) -> None:
    """Raises ConfigError where forward cannot be called with one picture alone."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return  # not a Python function: calling it will tell
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    required += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    takes_one = positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(required) <= 1 and takes_one and not any(p.name in required for p in parameters if p.kind is p.KEYWORD_ONLY):
        return
    count = COUNTS[len(required)] if len(required) < len(COUNTS) else str(len(required))
    named = f" ({', '.join(required)})" if required else ""
    raise ConfigError(
        f"forward takes {count} input{'' if len(required) == 1 else 's'}{named}; one image is supported{_at(model)}",
        fix="wrap the network in a module whose forward takes one image and sets the other inputs itself",
    )


def _call(model: Any, value: Any) -> Any:
    """The answer to `value`, float32 (1, ...). Raises ConfigError with the user's line where the network fails."""
    try:
        return model(value)
    except (CompilerError, MemoryError):
        raise
    except Exception as error:
        if (isinstance(error, OSError) and error.errno in NO_MEMORY) or "can't allocate memory" in str(error):
            raise
        traceback.print_exc()
        line = own_line(error)
        took = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        raise ConfigError(
            f"the network does not take the data's pictures {took}: {type(error).__name__}: {_words(error)}"
            f"{f' ({line})' if line else _at(model)}",
            fix=_advice(model),
            details=_quoted(error),
        ) from error


def _advice(model: Any) -> str:
    """What to do with a network that fails on a picture: by the channels of its first convolution."""
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if first is None or first.in_channels == CHANNELS:
        return "correct that line; forward is given one float32 batch of pictures, as the training was"
    has = f"its first convolution takes {first.in_channels} channel{'s' * (first.in_channels != 1)}, pictures have 3"
    if first.in_channels == 1:
        return f"{has}: wrap it so that forward begins with x = x.mean(1, keepdim=True)"
    return f"{has}: wrap it so that forward makes them of the three"


def _check_output(model: Any, output: Any) -> None:
    """Raises ConfigError where `output` is no (1, classes) tensor of real numbers."""
    import torch

    if isinstance(output, torch.Tensor) and output.ndim == 2 and len(output) == 1 and output.is_floating_point():
        return
    raise ConfigError(
        f"the network does not return one (batch, classes) tensor but {_described(output)}{_at(model)}",
        fix="wrap it so that forward returns the logits only, float32 (batch, classes)",
    )


def _described(output: Any) -> str:
    import torch

    if isinstance(output, torch.Tensor):
        dtype = str(output.dtype).removeprefix("torch.")
        return f"{'an' if dtype.startswith('int') else 'a'} {dtype} tensor of shape {tuple(output.shape)}"
    if isinstance(output, dict):
        return f"a {type(output).__name__} with {', '.join(map(str, list(output)[:6]))}"
    if isinstance(output, (tuple, list)):
        parts = [_described(part) for part in output[:4]]
        return f"a {type(output).__name__} of {len(output)}: {'; '.join(parts)}{' ...' if len(output) > 4 else ''}"
    return "nothing (None)" if output is None else f"a {type(output).__name__}"


def _unsteady(model: Any, row: Any) -> ConfigError:
    """The error for a network that answers `row`, float32 (1, ...), differently each time, with its cause if found."""
    what = "the network answers the same picture differently each time"
    before = _state(model)
    drawn: list[str | None] = []
    answers = []
    for _ in range(2):
        with _seeded(), _random_calls(drawn):
            answers.append(_call(model, row.clone()).clone())
    changed = sorted(name for name, value in _state(model).items() if name not in before or before[name] != value)
    if _alike(*answers):
        line = next((line for line in drawn if line), None)
        return ConfigError(
            f"{what}: it draws random numbers (dropout or noise) in eval mode{f' ({line})' if line else _at(model)}",
            fix="draw them in training only: functional.dropout(x, p, training=self.training), if self.training: ...",
        )
    names = f": {', '.join(changed[:4])} changed in between" if changed else ""
    return ConfigError(
        f"{what}: its answer depends on earlier calls{names}{_at(model)}",
        fix="forward must compute from its input and the weights alone: let it change nothing in eval mode",
    )


@contextmanager
def _seeded() -> Iterator[None]:
    """Every generator that a network may draw from starts alike."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield


@contextmanager
def _random_calls(lines: list[str | None]) -> Iterator[None]:
    """Adds the user's line of each call that draws from PyTorch's generators."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                lines.append(calling_line(sys._getframe()))
            return func(*args, **(kwargs or {}))

    with Seen():
        yield


def _state(model: Any) -> dict[str, Any]:
    """What the module and its parts remember, by name, in a form that can be compared: tensors, numbers and texts."""
    import torch

    def plain(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return repr(value)
        return hashlib.sha256(value.detach().cpu().reshape(-1).view(torch.uint8).numpy()).digest()

    kinds = (torch.Tensor, bool, int, float, str, list, tuple)
    found = {}
    for prefix, module in model.named_modules():
        values = {**vars(module), **module._buffers, **module._parameters}
        for name, value in values.items():
            if isinstance(value, kinds):
                found[f"{prefix}.{name}".lstrip(".")] = plain(value)
    return found


def _at(model: Any) -> str:
    """ " (file:line, in forward)" where the user defines the network's forward, or ""."""
    line = defined_at(model.forward)
    return f" ({line})" if line else ""


def _words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else "(no message)"


def _quoted(error: BaseException) -> list[str]:
    """The source lines of the last calls, the network's own among them."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return [f"{shown(frame.filename)}:{frame.lineno}: {frame.line}" for frame in frames]
