"""How often the measurement is wrong: the same artifact against itself, and against itself with a planted slowdown.

    python benchmarks/error_rates.py [--pairs 300] [--load-pairs 40] [--threads N] [--seconds 0.05] [--out FILE]

Builds TFLite fp32 of the default model once. A measurement then races six copies of it and one that a private runtime
makes about 3 % slower, by the protocol of a build with shorter visits; each gives three independent pairs of equals and
one of unequals. Prints, on a machine left alone and beside background work:

- false wins: pairs of equals for which a win is claimed (at most 1 % wanted);
- covered: pairs of equals whose 95 % interval holds 1 (at least 95 % wanted);
- found: planted slowdowns that are claimed (at least 95 % wanted);
- flagged: figures marked unstable; beside background work a wrong claim counts only if neither side was flagged.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # the visits import the planted runtime

from benchmarks.common import build
from compiler import bundle
from compiler.runtime.measure import measure

SLOWDOWN = 0.027
"""Of a call, which the planted runtime computes longer; with what that disturbs about 3 % (see the median effect)."""
EQUALS = (("a", "b"), ("c", "d"), ("e", "f"))
UNEQUAL = ("a", "slow")


def one(folder: Path, file: Path, signature: dict[str, Any], images: Any, protocol: dict[str, Any]) -> dict[str, Any]:
    """One measurement of seven candidates."""
    runtimes = {name: ("tflite", {}) for name in "abcdef"}
    runtimes["slow"] = ("benchmarks.planted_slowdown", {"slowdown": SLOWDOWN})
    entries = [bundle.Entry(n, r, [file], file.name, o, signature) for n, (r, o) in runtimes.items()]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here, out = Path(name) / "bundle", Path(name) / "out"
        here.mkdir()
        out.mkdir()
        bundle.write(here, entries, images, protocol, "a", {"objective": "latency"})
        return measure(here, out)


class Tally:
    """Counts over measurements."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ("measurements", "equals", "false_wins", "false_wins_not_flagged", "covered", "planted", "found",
             "found_or_flagged", "figures", "flagged", "rounds"), 0,
        )  # fmt: skip
        self.deviations: list[float] = []
        self.effects: list[float] = []
        self.reasons: collections.Counter[str] = collections.Counter()

    def add(self, result: dict[str, Any]) -> None:
        c = self.counts
        stable = {name: row["latency_ms"]["stable"] for name, row in result["candidates"].items()}
        pairs = {frozenset((p["first"], p["second"])): p for p in result["pairs"]}
        c["measurements"] += 1
        c["rounds"] += len(result["facts"])
        c["figures"] += len(stable)
        c["flagged"] += sum(not value for value in stable.values())
        for row in result["candidates"].values():
            self.reasons.update(re.sub(r"[\d.]+", "N", r) for r in row["latency_ms"]["unstable_reasons"])
        for first, second in EQUALS:
            pair = pairs[frozenset((first, second))]
            wrong = pair["claim"] in ("faster", "slower")
            c["equals"] += 1
            c["false_wins"] += wrong
            c["false_wins_not_flagged"] += wrong and stable[first] and stable[second]
            c["covered"] += pair["ci95"][0] <= 1.0 <= pair["ci95"][1]
            self.deviations.append(abs(pair["speedup"] - 1))
        pair = pairs[frozenset(UNEQUAL)]
        found = pair["claim"] == ("faster" if pair["first"] == "a" else "slower")
        c["planted"] += 1
        c["found"] += found
        c["found_or_flagged"] += found or not (stable["a"] and stable["slow"])
        self.effects.append(pair["speedup"] if pair["first"] == "a" else 1 / pair["speedup"])

    def summary(self) -> dict[str, Any]:
        c = self.counts
        return {
            **c,
            "false_win_percent": round(100 * c["false_wins"] / c["equals"], 2),
            "covered_percent": round(100 * c["covered"] / c["equals"], 2),
            "found_percent": round(100 * c["found"] / c["planted"], 2),
            "flagged_percent": round(100 * c["flagged"] / c["figures"], 2),
            "median_deviation_percent": round(100 * float(np.median(self.deviations)), 3),
            "p95_deviation_percent": round(100 * float(np.quantile(self.deviations, 0.95)), 3),
            "median_effect_percent": round(100 * (float(np.median(self.effects)) - 1), 3),
            "reasons": dict(sorted(self.reasons.items())),
            "rounds_each": round(c["rounds"] / c["measurements"], 2),
        }


def spin() -> None:
    """Background work: computes for half a second, rests for a tenth."""
    while True:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            pass
        time.sleep(0.1)


def campaign(pairs: int, work: int, arguments: tuple[Any, ...], title: str) -> dict[str, Any]:
    """Measures until there are so many pairs of equals, beside `work` busy processes."""
    busy = [multiprocessing.Process(target=spin, daemon=True) for _ in range(work)]
    for process in busy:
        process.start()
    tally = Tally()
    began = time.monotonic()
    try:
        while tally.counts["equals"] < pairs:
            folder, file, signature, images, protocol = arguments
            protocol = {**protocol, "seed": tally.counts["measurements"]}
            tally.add(one(folder, file, signature, images, protocol))
            if tally.counts["measurements"] % 5 == 0:
                print(f"{title}: {tally.summary()}", file=sys.stderr, flush=True)
    finally:
        for process in busy:
            process.kill()
    return {"busy_processes": work, "seconds": round(time.monotonic() - began, 1), **tally.summary()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--load-pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    protocol = {
        "threads": given.threads, "rounds": 6, "max_rounds": 20, "min_calls": 100, "min_seconds": given.seconds,
        "depth": "confirm",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        arguments = (Path(name), *build("rpi4", "tflite_fp32", "model.tflite", Path(name)), protocol)
        found = {"protocol": protocol, "planted_slowdown": SLOWDOWN}
        found["alone"] = campaign(given.pairs, 0, arguments, "alone")
        cores = len(os.sched_getaffinity(0))
        for work in (max(1, cores // 2), cores) if given.load_pairs else ():
            found[f"beside {work} busy"] = campaign(given.load_pairs // 2, work, arguments, f"beside {work} busy")
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
