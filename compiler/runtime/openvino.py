"""OpenVINO IR (`.xml` with its `.bin`) on the CPU, one stream, latency hint; the execution precision is always set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ConfigError
from compiler.runtime.session import Array, batch_of, fixed_batch, settle, tensor, wrong_shape

PRECISIONS = ("f32", "bf16", "f16")


class OpenvinoSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int, precision: str, batch: int | None, streams: int) -> None:
        import openvino

        _check_ir(path)
        core = openvino.Core()
        model = core.read_model(str(path))
        first = model.inputs[0].partial_shape[0]
        wanted = settle(path, None if first.is_dynamic else int(first.get_length()), batch)
        if first.is_dynamic:
            try:  # a static shape before compilation: an open batch then costs nothing
                model.reshape({port: [wanted, *list(port.partial_shape)[1:]] for port in model.inputs})
            except RuntimeError as error:
                raise fixed_batch(path, 1, wanted, str(error).splitlines()[:2]) from error
        self._model = core.compile_model(
            model,
            "CPU",
            {
                # unset, OpenVINO runs fp32 graphs in bfloat16 where the CPU has it
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                # several models in one process would all be pinned to the same cores
                **({"ENABLE_CPU_PINNING": False} if streams > 1 else {}),
            },
        )
        executed = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        if executed != precision:
            raise ConfigError(
                f"OpenVINO executes this model in {executed} here, not in {precision}",
                fix="this CPU lacks the precision: take another candidate",
            )
        self._request = self._model.create_infer_request()
        # bound once: handing arrays to `infer` costs more than copying them, a sixth of a small network's call
        self._inputs = [t.data for t in self._request.input_tensors]
        self._outputs = list(self._request.output_tensors)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference."""
        for bound, value in zip(self._inputs, inputs, strict=True):
            if bound.shape != value.shape:
                raise wrong_shape(value.shape, bound.shape)
            np.copyto(bound, value, casting="no")
        self._request.infer()
        return [np.array(output.data) for output in self._outputs]

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the graph's own."""
        return {
            "inputs": [tensor(p.get_any_name(), p.element_type.to_dtype(), p.shape) for p in self._model.inputs],
            "outputs": [tensor(p.get_any_name(), p.element_type.to_dtype(), p.shape) for p in self._model.outputs],
        }


def _check_ir(path: Path) -> None:
    """The library tries all its formats on a file, by what is in it; an IR is XML without definitions of its own.

    Raises:
        ConfigError: the file is something else.
    """
    with path.open("rb") as stream:
        start = stream.read(4096).lstrip()
    if not start.startswith((b"<?xml", b"<net")) or b"<!" in start:
        raise ConfigError(f"{path.name} is no OpenVINO IR", fix="build or fetch it again")


def open(path: Path, options: Mapping[str, Any]) -> OpenvinoSession:
    """Opens an IR.

    `options`: `threads`, `batch`, `streams` (how many of it work at once), `INFERENCE_PRECISION_HINT` (f32, bf16 or
    f16; required).

    Raises:
        ConfigError: the precision hint is missing or unknown, or the IR fixes another batch.
    """
    precision = options.get("INFERENCE_PRECISION_HINT")
    if precision not in PRECISIONS:
        raise ConfigError(
            f"INFERENCE_PRECISION_HINT is {precision!r}",
            fix=f"set it to one of {', '.join(PRECISIONS)} in the candidate's options",
        )
    return OpenvinoSession(
        path, int(options.get("threads", 1)), precision, batch_of(options), int(options.get("streams") or 1)
    )
