"""What a whole call takes: preprocessing, the model, postprocessing, each on its own and in total.

The latency that candidates are compared by is the model's alone. A user waits for the whole call, and on a small
network preparing the input can take longer than running it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = ("preprocessing_ms", "model_ms", "postprocessing_ms", "total_ms")
CALLS_SHARE = 0.2
"""Of a round's calls and seconds: enough for a median, which is all that is taken of it."""


def time_whole_calls(
    session: Any, images: NDArray[np.uint8], signature: Mapping[str, Any], batch: int, calls: int, seconds: float
) -> dict[str, float]:
    """Medians in milliseconds of at least `calls` whole calls and `seconds` seconds: `PARTS`, and `total_p95_ms`.

    `images`: uint8 (n, height, width, 3), taken `batch` at a time, one batch after another.
    """
    import numpy as np

    from compiler.runtime.preprocess import decode, encode

    output = signature["outputs"][0]
    groups = [np.arange(i, i + batch) % len(images) for i in range(0, max(len(images) - batch, 0) + 1, batch)]
    raw = [np.ascontiguousarray(images[group]) for group in groups]
    clock = time.perf_counter
    times: list[tuple[float, ...]] = []
    began = clock()
    while len(times) < calls or clock() - began < seconds:
        source = raw[len(times) % len(raw)]
        start = clock()
        values = encode(source, signature)
        encoded = clock()
        answers = session.run([values])
        answered = clock()
        decode(answers[0], output)
        end = clock()
        times.append((encoded - start, answered - encoded, end - answered, end - start))
    columns = 1e3 * np.asarray(times).T
    medians = {name: float(np.median(column)) for name, column in zip(PARTS, columns, strict=True)}
    return medians | {"total_p95_ms": float(np.quantile(columns[-1], 0.95))}
