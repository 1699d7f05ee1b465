"""Whether ONNX Runtime's graph optimizations keep what a Q/DQ model computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLES = 16
FUSER = "QDQSelectorActionTransformer"
"""The optimization that makes int8 operators of Q/DQ pairs; in attention it was seen to compute something else."""
WORSE = 2.0
"""How many times further from the float model the optimized answers may be than those without optimizations."""
NEGLIGIBLE = 0.1
"""Distance from the float model, as a share of the outputs' spread, below which no comparison is made."""


def spoiled_by(model: Path, inputs: Mapping[str, Path]) -> str | None:
    """Return the name of the optimization that changes what the Q/DQ file `model` computes, or None.

    Judged by the distance from the float model's answers on the first samples: without optimizations it is what int8
    costs, and int8 kernels, which round elsewhere, come as near.
    """
    import numpy as np

    from compiler.conversion import PROBE, SIGNATURE, probe_images
    from compiler.runtime.preprocess import encode

    signature = json.loads((inputs["model"] / SIGNATURE).read_text())
    values = encode(probe_images(inputs["samples"])[:SAMPLES], signature)
    reference = np.load(inputs["model"] / PROBE, allow_pickle=False)[: len(values)].astype(np.float64)
    spread = float(np.sqrt(np.square(reference - reference.mean(axis=0)).mean()))

    def distance(*, optimized: bool, without: tuple[str, ...] = ()) -> float:
        outputs = _answers(model, values, optimized, without)
        error = float(np.sqrt(np.square(outputs - reference).mean()))
        return error if np.isfinite(error) else float("inf")

    fused = distance(optimized=True)
    if fused <= NEGLIGIBLE * spread:
        return None
    limit = WORSE * distance(optimized=False)
    if fused <= limit:
        return None
    return FUSER if distance(optimized=True, without=(FUSER,)) <= limit else "another than " + FUSER


def _answers(
    model: Path, values: NDArray[np.float32], optimized: bool, without: tuple[str, ...]
) -> NDArray[np.float64]:
    """The first output, (n, classes), for `values`, (n, ...), one sample at a time as the files are judged."""
    import numpy as np
    import onnxruntime

    from compiler.runtime.onnxruntime import DIMENSION, session_options

    options = session_options(1, DIMENSION, 1)
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: values[i : i + 1]})[0] for i in range(len(values))]
    return np.concatenate(rows).astype(np.float64)
