"""What every runtime offers: `open(path, options) -> Session`, `Session.run(arrays) -> arrays`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.errors import ConfigError, MissingToolError, unknown_name
from compiler.runtime.names import DISTRIBUTIONS, MAX_BATCH, module_of

Array = NDArray[Any]


class Session(Protocol):
    """An opened model. Inputs and outputs are in the order, dtype and layout of the model's signature."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference; copying in and out is part of it. The returned arrays belong to the caller."""
        ...

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """`inputs` and `outputs`: lists of `name`, `dtype`, `shape`, and `scale`, `zero_point` where quantized."""
        ...


def open_model(runtime: str, path: Path, options: Mapping[str, Any]) -> Session:
    """Opens the model at `path` with the runtime of that name (a module beside this one, or a dotted module).

    `options` holds `threads` (int), `batch` (int; without it 1, or what the file fixes) and what else the runtime
    knows.

    Raises:
        MissingToolError: the library that the format needs is not installed.
        ConfigError: there is no such runtime, or the model cannot run at the batch.
    """
    if "." not in runtime and runtime not in DISTRIBUTIONS:
        raise unknown_name("runtime", runtime, DISTRIBUTIONS)
    module = importlib.import_module(module_of(runtime))
    try:
        session: Session = module.open(path, options)
    except ModuleNotFoundError as error:
        raise MissingToolError(
            f"the {runtime} runtime needs the Python package {error.name!r}",
            fix=f"pip install 'target-model-compiler[{runtime}]'",
        ) from error
    return session


def tensor(
    name: str, dtype: Any, shape: Sequence[Any], scale: float | None = None, zero: int | None = None, batch: int = 1
) -> dict[str, Any]:
    """One entry of a signature. A dimension without a number is the batch's: files that take any leave it open."""
    sizes = [batch if n is None or isinstance(n, str) else int(n) for n in shape]
    entry: dict[str, Any] = {"name": name, "dtype": np.dtype(dtype).name, "shape": sizes}
    if scale:
        entry |= {"scale": float(scale), "zero_point": int(zero or 0)}
    return entry


def batch_of(options: Mapping[str, Any]) -> int | None:
    """The batch that `options` ask for, None where they ask for none.

    Raises:
        ConfigError: it is not a whole number from 1 to MAX_BATCH.
    """
    batch = options.get("batch")
    if batch is None:
        return None
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch is {batch!r}", fix=f"give a whole number from 1 to {MAX_BATCH}")
    return batch


def settle(path: Path, found: Any, wanted: int | None) -> int:
    """The batch to run at, where the first dimension of the model's input is `found`: a number, or anything else where
    the file leaves it open.

    Raises:
        ConfigError: the file fixes another batch than is wanted.
    """
    if not isinstance(found, int):
        return wanted or 1
    if wanted not in (None, found):
        raise fixed_batch(path, found, wanted)
    return found


def fixed_batch(path: Path, found: int, wanted: int | None, details: Sequence[str] = ()) -> ConfigError:
    """The error for a model that runs at one batch only."""
    return ConfigError(
        f"{path.name} runs at batch {found} only, not at {wanted}",
        fix=f"leave the batch at {found}, choose a candidate of another format, or build again from a network whose "
        "forward holds no batch as a number",
        details=details,
    )


def check_range(path: Path, batch: int, limits: Sequence[int]) -> None:
    """Refuses a batch below the first of `limits` or above the second: the model was compiled for those between.

    Raises:
        ConfigError: it lies outside.
    """
    if not limits[0] <= batch <= limits[1]:
        raise ConfigError(
            f"{path.name} runs at batches {limits[0]} to {limits[1]}, not at {batch}",
            fix="choose a batch in between, or build it again with another min_batch or max_batch",
        )


def wrong_shape(given: Sequence[int], opened: Sequence[int], kind: str = "", wanted: str = "") -> ConfigError:
    """The error for an input of another shape, or of another type, than the model was opened for."""
    if list(given) != list(opened):
        return ConfigError(
            f"an input of shape {tuple(given)} for a model opened at {tuple(opened)}",
            fix="give whole batches, or open the model at another batch",
        )
    return ConfigError(f"an input of type {kind} for a model that takes {wanted}", fix="convert it before")
