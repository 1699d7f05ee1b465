"""What the benchmarks of the measurement share: one real artifact, built once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compiler.bundle import SAMPLE_COUNT

ROOT = Path(__file__).resolve().parent.parent


def build(target: str, candidate: str, file: str, folder: Path) -> tuple[Path, dict[str, Any], Any]:
    """The default model's artifact `file`, its signature, and samples, uint8 (n, height, width, 3)."""
    artifacts = folder / "artifacts"
    done = subprocess.run(
        [sys.executable, "-m", "compiler", f"target={target}", "model=mobilenetv3", f"candidates=[{candidate}]",
         f"artifacts_dir={artifacts}", "steps.benchmark.rounds=1", "steps.benchmark.min_seconds=0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    version = Path(done.stdout.strip().splitlines()[-1]).parent
    samples = next(artifacts.glob(".store/objects/*/*/selection.npy"))
    return version / file, json.loads((version / "signature.json").read_text()), np.load(samples)[:SAMPLE_COUNT]
