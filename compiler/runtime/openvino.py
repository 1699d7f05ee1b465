"""OpenVINO IR (`.xml` with its `.bin`) on the CPU, one stream, latency hint; the execution precision is always set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ConfigError
from compiler.runtime.session import Array, tensor

PRECISIONS = ("f32", "bf16", "f16")


class OpenvinoSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino

        core = openvino.Core()
        self._model = core.compile_model(
            str(path),
            "CPU",
            {
                # unset, OpenVINO runs fp32 graphs in bfloat16 where the CPU has it
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        executed = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        if executed != precision:
            raise ConfigError(
                f"OpenVINO executes this model in {executed} here, not in {precision}",
                fix="this CPU lacks the precision: take another candidate",
            )
        self._request = self._model.create_infer_request()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference."""
        self._request.infer(list(inputs), share_inputs=False)
        return [np.array(tensor_.data) for tensor_ in self._request.output_tensors]

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names are the graph's own."""
        return {
            "inputs": [tensor(p.get_any_name(), p.element_type.to_dtype(), p.shape) for p in self._model.inputs],
            "outputs": [tensor(p.get_any_name(), p.element_type.to_dtype(), p.shape) for p in self._model.outputs],
        }


def open(path: Path, options: Mapping[str, Any]) -> OpenvinoSession:
    """Opens an IR. `options`: `threads`, `INFERENCE_PRECISION_HINT` (f32, bf16 or f16; required).

    Raises:
        ConfigError: the precision hint is missing or unknown.
    """
    precision = options.get("INFERENCE_PRECISION_HINT")
    if precision not in PRECISIONS:
        raise ConfigError(
            f"INFERENCE_PRECISION_HINT is {precision!r}",
            fix=f"set it to one of {', '.join(PRECISIONS)} in the candidate's options",
        )
    return OpenvinoSession(path, int(options.get("threads", 1)), precision)
