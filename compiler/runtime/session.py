"""What every runtime offers: `open(path, options) -> Session`, `Session.run(arrays) -> arrays`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.errors import MissingToolError, unknown_name
from compiler.runtime.names import DISTRIBUTIONS, module_of

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

    `options` holds `threads` (int) and what else the runtime knows.

    Raises:
        MissingToolError: the library that the format needs is not installed.
        ConfigError: there is no such runtime.
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
    name: str, dtype: Any, shape: Sequence[int], scale: float | None = None, zero: int | None = None
) -> dict[str, Any]:
    """One entry of a signature."""
    entry: dict[str, Any] = {"name": name, "dtype": np.dtype(dtype).name, "shape": [int(n) for n in shape]}
    if scale:
        entry |= {"scale": float(scale), "zero_point": int(zero or 0)}
    return entry
