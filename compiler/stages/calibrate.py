"""Calibrate: an ordered, hashed calibration set, and histograms of every activation of the fused ONNX on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from compiler.conversion import SIGNATURE
from compiler.disk import write_array
from compiler.errors import StepError
from compiler.limits import Between
from compiler.stage import Stage, report_progress, write_json
from compiler.uneven import RECORD, ChannelRanges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclasses.dataclass(kw_only=True)
class Calibrate(Stage):
    """Writes `samples.npy` (uint8, in order), `histograms.npz` (per float tensor: int64 counts and the range they span)
    and `calibration.json`.

    Two passes over the samples, one for the ranges and one for the counts, so memory does not grow with the
    number of samples. Both are of finite values; `infinite` names the tensors that hold infinities besides, as the
    scores of masked attention do: no grid of int8 has a place for those. `uneven` in the record names the layers whose
    channels differ too much for one scale.
    Quantizers that bring their own calibration take the same samples.
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": "fuse", "samples": "samples"}
    numeric: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")

    bins: Annotated[int, Between(128, 1 << 20)] = 2048

    def preload(self) -> tuple[str, ...]:
        """What it imports."""
        return ("onnx", "onnxruntime")

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. Raises StepError for a tensor that holds NaN, and names it."""
        import numpy as np

        signature = json.loads((inputs["model"] / SIGNATURE).read_text())
        images = np.load(inputs["samples"] / "calibration.npy", mmap_mode="r", allow_pickle=False)
        write_array(out / "samples.npy", images)
        names, session, channels = _observed(inputs["model"] / "model.onnx")
        low = dict.fromkeys(names, np.inf)
        high = dict.fromkeys(names, -np.inf)
        total = 2 * len(images)
        order = hashlib.sha256()
        infinite: set[str] = set()
        for done, (image, values) in enumerate(_activations(session, names, images, signature)):
            order.update(image.tobytes())
            for name, value in values.items():
                finite = finite_values(name, value)
                channels.add(name, value)
                if finite.size < value.size:
                    infinite.add(name)
                if finite.size:
                    low[name] = min(low[name], float(finite.min()))
                    high[name] = max(high[name], float(finite.max()))
            report_progress(done + 1, total, "samples")
        for name in names:
            if low[name] > high[name]:  # no finite value at all
                low[name] = high[name] = 0.0
        counts = {name: np.zeros(self.bins, np.int64) for name in names}
        for done, (_, values) in enumerate(_activations(session, names, images, signature)):
            for name, value in values.items():
                counts[name] += histogram(finite_values(name, value), self.bins, low[name], high[name])
            report_progress(len(images) + done + 1, total, "samples")
        np.savez(
            out / "histograms.npz",
            names=np.array(names),
            low=np.array([low[n] for n in names], np.float64),
            high=np.array([high[n] for n in names], np.float64),
            counts=np.stack([counts[n] for n in names]),
            infinite=np.array([n for n in names if n in infinite], np.str_),
        )
        record: dict[str, Any] = {
            "samples": len(images), "order_sha256": order.hexdigest(), "tensors": len(names), "bins": self.bins,
        }  # fmt: skip
        if infinite:
            record["infinite"] = [name for name in names if name in infinite]
        if uneven := channels.uneven():
            record["uneven"] = uneven
        write_json(out / RECORD, record)
        return record


def finite_values(name: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of the tensor `name` that are not infinite, of any shape.

    Raises:
        StepError: there is NaN among them.
    """
    import numpy as np

    finite = np.isfinite(value)
    if finite.all():
        return value
    if np.isnan(value).any():
        raise StepError(
            f"the tensor {name} of the float model is NaN on calibration samples, so it has no range",
            fix="look in the model for a division by zero or a difference of infinities before that tensor",
        )
    return value[finite]


def infinite_tensors(calibration: Path) -> set[str]:
    """The tensors that held an infinity on a calibration sample."""
    import numpy as np

    with np.load(calibration / "histograms.npz", allow_pickle=False) as stored:
        return {str(name) for name in stored["infinite"]} if "infinite" in stored else set()


def histogram(value: NDArray[np.float32], bins: int, low: float, high: float) -> NDArray[np.int64]:
    """Counts of `value` in `bins` equal bins from `low` to `high`; all in the first where these are next to equal.

    Untrained networks have activations so alike that their range has no room for so many distinct edges.
    """
    import numpy as np

    if (
        high - low <= bins * np.finfo(np.float64).eps * max(abs(low), abs(high))
        or high - low < np.finfo(np.float64).tiny * bins
    ):
        counts = np.zeros(bins, np.int64)
        counts[0] = value.size
        return counts
    return np.histogram(value.astype(np.float64), bins=bins, range=(low, high))[0].astype(np.int64)


def _observed(path: Path) -> tuple[list[str], Any, ChannelRanges]:
    """The float tensors of the graph, in graph order, a session that returns them all, and what observes channels."""
    import onnx
    import onnxruntime

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    graph = model.graph
    known = {v.name: v for v in [*graph.value_info, *graph.output]}
    names = [
        name
        for node in graph.node
        for name in node.output
        if name in known and known[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    given = {v.name for v in graph.output}
    graph.output.extend(known[name] for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # every tensor has to exist to be observed, so nothing may be fused away
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1  # the order of sums must not depend on the machine's cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [graph.input[0].name, *names], session, ChannelRanges(graph.node)


def _activations(
    session: Any, names: list[str], images: NDArray[np.uint8], signature: Mapping[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]]:
    from compiler.runtime.preprocess import encode

    for i in range(len(images)):
        value = encode(images[i : i + 1], signature)
        outputs = session.run(names[1:], {names[0]: value})
        yield images[i], {names[0]: value, **dict(zip(names[1:], outputs, strict=True))}


def ranges(calibration: Path, method: str, percentile: float) -> dict[str, tuple[float, float]]:
    """(low, high) per tensor: the extremes (`minmax`), or what leaves (100 - percentile)/2 % outside on each side.

    Source of the percentile rule: Wu et al., 2020, "Integer Quantization for Deep Learning Inference", section 5.1,
    applied to both tails because activations are quantized asymmetrically.
    """
    import numpy as np

    result: dict[str, tuple[float, float]] = {}
    with np.load(calibration / "histograms.npz", allow_pickle=False) as stored:
        rows = zip(stored["names"], stored["low"], stored["high"], stored["counts"], strict=True)
        for name, low, high, counts in rows:
            if method == "minmax" or counts.sum() == 0:
                result[str(name)] = (float(low), float(high))
                continue
            edges = np.linspace(low, high if high > low else low + 1e-6, len(counts) + 1)
            share = np.cumsum(counts) / counts.sum()
            cut = (100.0 - percentile) / 200.0
            first = int(np.searchsorted(share, cut, side="right"))
            last = int(np.searchsorted(share, 1.0 - cut, side="left"))
            result[str(name)] = (float(edges[first]), float(edges[min(last + 1, len(counts))]))
    return result
