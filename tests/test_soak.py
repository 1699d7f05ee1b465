"""Long tests, run by `make soak`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, Project, environment

PORTABLE = {
    "rpi4": ["samples", "export", "fuse", "calibrate", "tflite_fp32.convert", "tflite_fp16.quantize",
             "tflite_dynamic_int8.quantize", "tflite_int8.quantize"],
    "xeon": ["openvino_fp32.convert", "openvino_int8.quantize", "onnxruntime_int8.quantize"],
}  # fmt: skip


@pytest.mark.soak
def test_portable_steps_give_the_same_bytes_whatever_surrounds_them(tmp_path: Path) -> None:
    """One CPU or two, another folder, working folder, time zone, locale and home: equal results of equal steps."""
    surroundings = [
        ("first folder/artifacts", {0}, {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path)}),
        ("b", os.sched_getaffinity(0), {"TZ": "UTC", "LANG": "C.UTF-8"}),
    ]
    outputs: list[dict[str, Any]] = []
    for folder, cores, settings in surroundings:
        (tmp_path / folder).mkdir(parents=True)
        found: dict[str, Any] = {}
        for target in PORTABLE:
            done = subprocess.run(
                [sys.executable, "-m", "compiler", f"target={target}", *QUICK, "artifacts_dir=.", "--json"],
                cwd=tmp_path / folder, env={**environment(), **settings}, capture_output=True, text=True, check=True,
                preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
            )  # fmt: skip
            found |= {s["name"]: s["outputs"] for s in json.loads(done.stdout)["steps"]}
        outputs.append(found)
    names = [name for steps in PORTABLE.values() for name in steps]
    assert [name for name in names if outputs[0][name] != outputs[1][name]] == []


@pytest.mark.soak
def test_builds_interrupted_at_many_moments_all_go_on_to_the_same_end(project: Project) -> None:
    """SIGINT and SIGKILL at 40 moments of a build; the next build needs no help and what it finds verifies."""
    import signal
    import time

    killed = 0
    for moment in range(40):
        process = subprocess.Popen(
            [sys.executable, "-m", "compiler", *map(str, project.base), f"seed={moment}"],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(0.3 + 0.06 * moment)
        process.send_signal(signal.SIGKILL if moment % 2 else signal.SIGINT)
        killed += process.wait(timeout=30) != 0
        done = project.build(f"seed={moment}")
        assert done.code == 0, (moment, done.err)
    assert killed >= 20
