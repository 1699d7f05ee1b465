"""OpenVINO int8: `mean_minmax` is NNCF's own rule, `minmax` keeps what one sample alone reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from compiler.backends.openvino import Quantize
from compiler.conversion import SIGNATURE
from compiler.runtime.preprocess import encode

ENTRY = {"name": "x", "dtype": "float32", "shape": [1, 3, 16, 16], "layout": "NCHW"}
SIGNATURE_OF_X: dict[str, Any] = {
    "inputs": [ENTRY], "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 4], "layout": "NC"}],
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "trained": True,
}  # fmt: skip


def _network() -> openvino.Model:
    """A convolution, a depthwise one, whose input has a range for each channel, and a linear layer."""
    draw = np.random.default_rng(3)
    x = ops.parameter([-1, 3, 16, 16], np.float32, "x")
    first = ops.relu(
        ops.convolution(x, draw.normal(size=(8, 3, 3, 3)).astype(np.float32), [2, 2], [1, 1], [1, 1], [1, 1])
    )
    kernels = draw.normal(size=(8, 1, 1, 3, 3)).astype(np.float32)
    deep = ops.relu(ops.group_convolution(first, kernels, [1, 1], [1, 1], [1, 1], [1, 1]))
    pooled = ops.reduce_mean(deep, np.array([2, 3]), keep_dims=False)
    y = ops.matmul(pooled, draw.normal(size=(8, 4)).astype(np.float32), False, False)
    y.output(0).set_names({"y"})
    x.output(0).set_names({"x"})
    return openvino.Model([y], [x], "small")


def _ranges(path: Path) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Lower and upper ends of the activations' FakeQuantize operations, in the order of the graph."""
    found = []
    for op in openvino.Core().read_model(str(path)).get_ordered_ops():
        if op.get_type_name() == "FakeQuantize" and op.input_value(0).get_node().get_type_name() != "Constant":
            found.append(tuple(op.input_value(i).get_node().data.reshape(-1).copy() for i in (1, 2)))
    return found


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Inputs of `quantize`: seven dim pictures and one with all the contrast that there is."""
    for name in ("model", "calibration"):
        (tmp_path / name).mkdir()
    openvino.save_model(_network(), str(tmp_path / "model/model.xml"), compress_to_fp16=False)
    (tmp_path / "model" / SIGNATURE).write_text(json.dumps(SIGNATURE_OF_X))
    draw = np.random.default_rng(4)
    images = draw.integers(120, 136, (8, 16, 16, 3)).astype(np.uint8)
    images[5] = draw.integers(0, 256, (16, 16, 3))
    np.save(tmp_path / "calibration/samples.npy", images)
    return {"model": tmp_path / "model", "calibration": tmp_path / "calibration"}


def _converted(inputs: dict[str, Path], out: Path, ranges: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    out.mkdir()
    Quantize(ranges=ranges).convert(inputs, out)
    return _ranges(out / "model.xml")


def test_mean_minmax_is_what_nncf_does_by_itself(inputs: dict[str, Path], tmp_path: Path) -> None:
    images = np.load(inputs["calibration"] / "samples.npy")
    dataset = nncf.Dataset(range(8), lambda i: encode(images[i : i + 1], SIGNATURE_OF_X))
    read = openvino.Core().read_model(str(inputs["model"] / "model.xml"))
    alone = nncf.quantize(read, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=8)
    openvino.save_model(alone, str(tmp_path / "alone.xml"), compress_to_fp16=False)
    expected, found = _ranges(tmp_path / "alone.xml"), _converted(inputs, tmp_path / "out", "mean_minmax")
    assert len(expected) == len(found) >= 3
    for one, other in zip(expected, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_ranges_by_channel_are_the_extremes_by_both_rules_and_one_for_a_tensor_differs(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """A mean over samples in the ranges by channel spoils every network with depthwise convolutions."""
    extremes, means = (_converted(inputs, tmp_path / name, name) for name in ("minmax", "mean_minmax"))
    by_channel = [number for number, (low, _) in enumerate(extremes) if low.size == 8]
    assert by_channel
    for number, ((_, wide), (_, narrow)) in enumerate(zip(extremes, means, strict=True)):
        if number in by_channel:
            assert np.array_equal(wide, narrow)
        else:
            assert narrow.max() < 0.7 * wide.max()
