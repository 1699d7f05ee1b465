"""Compares our latency of an OpenVINO IR with that of OpenVINO's own benchmark_app, on the same file, in one run.

    python benchmarks/against_benchmark_app.py [--turns 8] [--seconds 2]

The two take turns in random order, each in a fresh process pinned alike, with the same threads, one stream and the same
precision. benchmark_app times the inference request alone; ours copies the input in and the output out as well, because
that is part of a call. So a third figure is taken: our own call without the copies. Prints the medians and, turn by
turn, their ratio.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from benchmarks.common import build
from compiler import bundle
from compiler.runtime.visitor import Visitor


def theirs(model: Path, threads: int, seconds: float, side: int, folder: Path) -> float:
    """benchmark_app's median latency in ms."""
    cores = ",".join(str(c) for c in sorted(os.sched_getaffinity(0))[:threads])
    done = subprocess.run(
        ["taskset", "-c", cores, str(Path(sys.executable).with_name("benchmark_app")), "-m", str(model), "-d", "CPU",
         "-api", "sync", "-hint", "none", "-nthreads", str(threads), "-nstreams", "1", "-infer_precision", "f32",
         "-t", str(max(1, round(seconds))), "-shape", f"[1,3,{side},{side}]"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    match = re.search(r"Median:\s+([\d.]+) (us|ms)", done.stdout)
    assert match, done.stdout
    return float(match.group(1)) / (1000 if match.group(2) == "us" else 1)


def ours(folder: Path, name: str, threads: int, seconds: float) -> float:
    """Our median latency in ms."""
    with Visitor(folder, name, threads) as visitor:
        visitor.ready()
        visitor.ask("open")
        visitor.ask("warm")
        times = [t for _ in range(10) for t in visitor.ask("burst", calls=10, seconds=seconds / 10)["times"]]
    return float(np.median(times)) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, signature, images = build("host", "openvino_fp32", "model.xml", folder)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        files = [model, model.with_suffix(".bin")]
        entries = [
            bundle.Entry("whole call", "openvino", files, model.name, options, signature),
            bundle.Entry("without copies", "benchmarks.without_copies", files, model.name, options, signature),
        ]
        protocol = {"threads": given.threads, "seed": 0}
        (folder / "bundle").mkdir()
        bundle.write(folder / "bundle", entries, images, protocol, "whole call", {})
        seen: dict[str, list[float]] = {"whole call": [], "without copies": [], "benchmark_app": []}
        shuffler = random.Random(0)
        for turn in range(given.turns):
            for who in shuffler.sample(sorted(seen), 3):
                if who == "benchmark_app":
                    value = theirs(model, given.threads, given.seconds, images.shape[1], folder)
                else:
                    value = ours(folder / "bundle", who, given.threads, given.seconds)
                seen[who].append(value)
            line = ", ".join(f"{who} {values[-1]:.4f}" for who, values in sorted(seen.items()))
            print(f"turn {turn + 1}: {line} ms", file=sys.stderr, flush=True)
    for who in ("whole call", "without copies"):
        ratios = [a / b for a, b in zip(seen[who], seen["benchmark_app"], strict=True)]
        print(
            f"{who}: median {statistics.median(seen[who]):.4f} ms, benchmark_app "
            f"{statistics.median(seen['benchmark_app']):.4f} ms, ratio turn by turn: median "
            f"{statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
