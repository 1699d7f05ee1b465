"""Measures the candidates of a bundle against each other, in interleaved rounds of fresh processes.

    python -m compiler.runtime.measure BUNDLE OUT

A bundle is a folder: `bundle.json` (protocol and candidates), `samples.npy` (real samples, uint8 (n, height, width,
3)) and the candidates' files. OUT gets `measurement.json` and `latencies.npz` (nanoseconds, one array a round and
candidate).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.errors import StepError
from compiler.runtime import host

REFERENCE = "reference"
VISIT_TIME_LIMIT_S = 600
UNSTABLE_DRIFT = 0.03
NOISY_STEAL_SHARE = 0.01
NOISY_OTHERS_SHARE = 0.05
LEAST_TELLING_S = 0.1


def measure(bundle: Path, out: Path, progress: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:
    """Runs every round and writes OUT; returns what `measurement.json` holds.

    Raises:
        StepError: a visit failed; the message names the candidate.
    """
    import numpy as np

    spec = json.loads((bundle / "bundle.json").read_text())
    protocol = spec["protocol"]
    names = [c["id"] for c in spec["candidates"]]
    shuffler = random.Random(protocol["seed"])  # noqa: S311 - an order, not a secret
    rounds = int(protocol["rounds"])
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    times: dict[str, list[Any]] = {name: [] for name in names}
    done = 0
    failed: dict[str, str] = {}
    total = rounds * len(names)
    for current in range(rounds):
        for name in shuffler.sample(names, len(names)):
            if progress:
                progress(done, total, f"round {current + 1} of {rounds}, {name}")
            done += 1
            try:
                record, latencies = _visit(bundle, name, 1 if name == REFERENCE else int(protocol["threads"]))
            except StepError as error:
                if name in (REFERENCE, spec["baseline"]):
                    raise
                failed[name] = " | ".join([error.what, *error.details[-3:]])
                continue
            seen[name].append(record)
            times[name].append(latencies)
        for name in [n for n in names if n in failed]:
            names.remove(name)
            del times[name], seen[name]
    np.savez_compressed(
        out / "latencies.npz", **{f"{name}/{i}": values for name in names for i, values in enumerate(times[name])}
    )
    result = {"failed": failed} | _evaluate(
        spec, seen, {name: [v / 1e6 for v in arrays] for name, arrays in times.items()}
    )
    (out / "measurement.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


def _visit(bundle: Path, name: str, threads: int) -> tuple[dict[str, Any], Any]:
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="visit-") as folder:
        out = Path(folder) / "seen.json"
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }  # fmt: skip
        try:
            process = subprocess.run(
                [sys.executable, "-m", "compiler.runtime.visit", str(bundle), name, str(out)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=VISIT_TIME_LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise StepError(
                f"measuring {name} took more than {VISIT_TIME_LIMIT_S} s", fix="leave this candidate out"
            ) from None
        if process.returncode != 0 or not out.exists():
            raise StepError(
                f"measuring {name} failed with exit code {process.returncode}",
                fix="leave this candidate out, or run the visit by hand with the command above",
                details=process.stdout.decode(errors="replace").splitlines()[-12:],
            )
        return json.loads(out.read_text()), np.load(out.with_suffix(".npy"), allow_pickle=False)


def _evaluate(
    spec: dict[str, Any], seen: dict[str, list[dict[str, Any]]], times: dict[str, list[Any]]
) -> dict[str, Any]:
    import numpy as np

    from compiler.runtime import statistics

    protocol, baseline = spec["protocol"], spec["baseline"]
    machine = host.describe()
    drift = statistics.drift(times[REFERENCE]) if REFERENCE in times else 0.0
    result: dict[str, Any] = {
        "host": machine,
        "protocol": protocol,
        "reference_drift": round(drift, 4),
        "candidates": {},
    }
    for name in (n for n in times if n != REFERENCE):
        figures = statistics.summarize(times[name], name)
        reasons = []
        spread = statistics.block_spread(times[name])
        if spread > statistics.UNSTABLE_SPREAD:
            reasons.append(f"blocks of calls differ by {spread:.1%} (median absolute deviation)")
        if drift > UNSTABLE_DRIFT:
            reasons.append(f"the reference drifted by {drift:.1%} between rounds")
        seconds = sum(s["seconds"] for s in seen[name])
        others = sum(s["others_cpu_share"] * s["seconds"] for s in seen[name]) / seconds
        # /proc/stat counts in hundredths of a second: less than a tenth of a second tells nothing
        if others > NOISY_OTHERS_SHARE and others * seconds > LEAST_TELLING_S:
            reasons.append(f"other processes used {others:.0%} of the host while it was measured")
        steal = sum(s["stolen_ticks"] for s in seen[name]) / os.sysconf("SC_CLK_TCK") / max(seconds, 1e-9)
        if steal > NOISY_STEAL_SHARE:
            reasons.append(f"the hypervisor took {steal:.1%} of the time")
        speedup, interval = statistics.paired_ratio(times[baseline], times[name], name)
        result["candidates"][name] = {
            "latency_ms": figures
            | {"batch": 1, "threads": int(protocol["threads"]), "stable": not reasons, "unstable_reasons": reasons},
            "speedup": round(speedup, 4),
            "speedup_ci95": [round(v, 4) for v in interval] if interval else None,
            "throughput_per_s": round(1000.0 / float(figures["mean"]), 2),  # type: ignore[arg-type]
            **{
                key: round(float(np.median([s[key] for s in seen[name]])), 3)
                for key in ("load_ms", "first_call_ms", "peak_memory_mb", "process_memory_mb")
            },
            "involuntary_switches": int(np.median([s["involuntary_switches"] for s in seen[name]])),
        }
    return result


def main(argv: list[str]) -> int:
    """Command line: measures and prints the result."""
    out = Path(argv[1])
    out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(measure(Path(argv[0]), out), indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
