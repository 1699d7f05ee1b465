"""TFLite's two quantizers fail on different networks: where one does, the other is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler import launch
from compiler.backends import tflite
from compiler.conversion import Conversion
from compiler.errors import StepError

OTHER = {"tensorflow": "ai_edge_quantizer", "ai_edge_quantizer": "tensorflow"}


@pytest.mark.parametrize("quantizer", OTHER)
@pytest.mark.parametrize("failure", [RuntimeError("op 7 has no int8\nkernel"), StepError("other answers", fix="none")])
def test_quantizer_that_cannot_make_the_file_names_the_other(
    quantizer: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(Conversion, "run", fail)
    with pytest.raises(StepError) as failed:
        tflite.Quantize(recipe="int8", quantizer=quantizer).run({}, tmp_path)
    assert f"steps.quantize.quantizer={OTHER[quantizer]}" in failed.value.fix
    assert str(failure).splitlines()[0] in failed.value.what


def test_uneven_channels_and_other_recipes_name_no_quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StepError("other answers", fix="equalize")

    monkeypatch.setattr(Conversion, "run", fail)
    row = {"layer": "stem", "largest": 900.0, "median": 1.0}
    (tmp_path / "calibration.json").write_text(json.dumps({"uneven": [row]}))
    for recipe, inputs in (("int8", {"calibration": tmp_path}), ("dynamic_int8", {})):
        with pytest.raises(StepError) as failed:
            tflite.Quantize(recipe=recipe).run(inputs, tmp_path)
        assert failed.value.fix == "equalize"


@pytest.mark.parametrize("quantizer", OTHER)
def test_crash_of_the_runtime_names_the_other_quantizer(quantizer: str, tmp_path: Path) -> None:
    step = tflite.Quantize(recipe="int8", quantizer=quantizer)
    job = launch.Job(
        "tflite_int8.quantize", "x:Y", {}, {}, {}, (), (), "python", 1.0, 1.0, 1, after_crash=step.after_crash()
    )
    with pytest.raises(StepError, match="killed by SIGSEGV") as failed:
        launch._judge(job, tmp_path, -11, ["Fatal Python error"])
    assert f"steps.quantize.quantizer={OTHER[quantizer]}" in failed.value.fix
    assert "quantizer=" not in tflite.Quantize(recipe="dynamic_int8").after_crash()
