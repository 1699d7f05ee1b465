"""Measures the candidates of a bundle against each other, in interleaved rounds of fresh processes.

    python -m compiler.runtime.measure BUNDLE [OUT] [--runtime MODULE ...]

OUT (by default BUNDLE/out) gets `measurement.json` and `latencies.npz`: every timed call in nanoseconds, int64, an
array `<candidate>/<round>` and, as `<candidate>/<round>/bursts`, how many calls each of its bursts has.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import CompilerError, MissingToolError, StepError
from compiler.runtime import host, noise
from compiler.runtime.bundle import REFERENCE, identity, read
from compiler.runtime.pipeline import PARTS
from compiler.runtime.rounds import Depth, Seen, TooLittleMemory, run_round

if TYPE_CHECKING:
    from compiler.runtime.statistics import Rounds, Samples

RESULT = "measurement.json"
DEVICE_TIMES = ("copy_in_ms", "compute_ms", "copy_out_ms")
RAW = "latencies.npz"
Progress = Callable[[int, int, str], None]


@dataclass
class Record:
    """All that was seen, round by round."""

    rounds: list[dict[str, Seen]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    alone: bool = False


def measure(
    bundle: Path,
    out: Path,
    progress: Progress | None = None,
    only: list[str] | None = None,
    protocol: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs rounds until what is to be decided is certain, or the limit is reached; writes OUT and returns the result.

    `only` restricts it to some candidates; `protocol` is followed in place of the bundle's own.

    Raises:
        StepError: the baseline, the reference or every candidate failed.
        IntegrityError: the bundle is damaged.
    """
    spec = read(bundle)
    protocol = spec["protocol"] = protocol or spec["protocol"]
    names = [e["id"] for e in spec["candidates"] if only is None or e["id"] in (*only, REFERENCE, spec["baseline"])]
    shuffler = random.Random(protocol["seed"])  # noqa: S311 - an order, not a secret
    depth = Depth(int(protocol["min_calls"]), float(protocol["min_seconds"]))
    least, most = int(protocol["rounds"]), max(int(protocol["rounds"]), int(protocol["max_rounds"]))
    record = Record()
    tell = progress or (lambda _done, _total, _what: None)
    idle = noise.NOT_WATCHED
    if depth.seconds > 0:
        idle = noise.watch(bundle, REFERENCE, lambda what: tell(0, least, what))
    open_questions: list[str] = []
    began = time.monotonic()
    while len(record.rounds) < most:
        number = len(record.rounds)
        total = least if number < least else most
        names = _one_round(bundle, spec, names, depth, shuffler, record, lambda what: tell(number, total, what))  # noqa: B023
        if len(record.rounds) >= least:
            open_questions = undecided(spec, Data(spec, record))
            if not open_questions or time.monotonic() - began > float(protocol.get("max_seconds") or math.inf):
                break
    _write_raw(record, out / RAW)
    result = evaluate(spec, record, idle) | {"undecided": open_questions}
    (out / RESULT).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


def _one_round(
    bundle: Path,
    spec: Mapping[str, Any],
    names: list[str],
    depth: Depth,
    shuffler: random.Random,
    record: Record,
    report: Callable[[str], None],
) -> list[str]:
    """Adds a round to `record`; returns the candidates that are left."""
    title = f"round {len(record.rounds) + 1}, "
    try:
        seen, failed = run_round(bundle, spec, names, depth, shuffler, record.alone, lambda what: report(title + what))
    except TooLittleMemory:
        record.alone = True
        seen, failed = run_round(bundle, spec, names, depth, shuffler, True, lambda what: report(title + what))
    for name, error in failed.items():
        if isinstance(error, MissingToolError):
            record.absent[name] = error.what
        elif name in (REFERENCE, spec["baseline"]):
            raise error
        else:
            record.failed[name] = " | ".join([error.what, *error.details[-3:]])
    left = [name for name in names if name in seen]
    if not [name for name in left if name != REFERENCE]:
        what = "; ".join(f"{n}: {w}" for n, w in {**record.failed, **record.absent}.items())
        kind = MissingToolError if record.absent and not record.failed else StepError
        raise kind(f"no candidate could be measured: {what}", fix="see the reasons, candidate by candidate")
    for earlier in record.rounds:
        for name in failed:
            earlier.pop(name, None)
    record.rounds.append(seen)
    return left


class Data:
    """The record as arrays: latencies in milliseconds, and log-ratios of speed a sample between two candidates."""

    def __init__(self, spec: Mapping[str, Any], record: Record) -> None:
        import numpy as np

        self.record = record
        left = [e["id"] for e in spec["candidates"] if e["id"] in record.rounds[-1]]
        self.names = [name for name in left if name != REFERENCE]
        self.batch = {e["id"]: int(e["options"].get("batch") or 1) for e in spec["candidates"]}
        self.samples_at_once = {
            e["id"]: self.batch[e["id"]] * int(e["options"].get("streams") or 1) for e in spec["candidates"]
        }
        valid = [
            [t for t in range(len(next(iter(seen.values())).bursts)) if not _void(seen, t)] for seen in record.rounds
        ]
        self.kept = [i for i, turns in enumerate(valid) if turns]
        if not self.kept:
            raise StepError(
                "the machine slowed itself down during every burst (heat or power): nothing valid was measured",
                fix="cool it, or give it a better power supply, and run again",
            )
        self.rounds: dict[str, Rounds] = {
            name: [
                [np.asarray(record.rounds[i][name].bursts[t], np.float64) / 1e6 for t in valid[i]] for i in self.kept
            ]
            for name in record.rounds[-1]
        }
        wanted = str(spec["baseline"])
        self.against = wanted if wanted in self.names else self.names[0]

    def logs(self, slower: str, faster: str) -> Samples:
        """By how much `faster` is faster than `slower` for one sample: one logarithm a round."""
        from compiler.runtime import statistics

        per_sample = math.log(self.samples_at_once[faster] / self.samples_at_once[slower])
        return statistics.log_ratios(self.rounds[slower], self.rounds[faster]) + per_sample


def _void(seen: Mapping[str, Seen], turn: int) -> bool:
    return any(s.facts["void"] >> turn & 1 for s in seen.values())


def undecided(spec: Mapping[str, Any], data: Data) -> list[str]:
    """What selection must know and more rounds may still tell; empty when everything is certain.

    Which candidate is the fastest (or that it cannot be told from the next within what is worth claiming), that it is
    faster than the baseline at all, and on which side of the latency bounds its p95 and p99 lie.
    """
    from compiler.runtime import statistics

    wanted = spec["decisions"]
    speed = {name: statistics.paired_ratio(data.logs(data.against, name))[0] for name in data.names}
    raced = [name for name in data.names if name != data.against] or data.names
    best = max(raced, key=lambda name: (speed[name], name))
    questions = []
    for other in data.names:
        if other == best or (wanted["objective"] == "size" and other != data.against):
            continue
        ratio, interval = statistics.paired_ratio(data.logs(other, best))
        if not statistics.settled(ratio, interval):
            questions.append(f"whether {best} is faster than {other}")
    for name, quantile in (("p95", 0.95), ("p99", 0.99)):
        bound = wanted.get(f"latency_{name}_ms")
        if bound is not None:
            ((low, high),) = statistics.bootstrap_quantiles(data.rounds[best], (quantile,), best)
            if low <= bound < high:
                questions.append(f"whether {name} of {best} is within {bound:g} ms")
    return questions


def evaluate(spec: Mapping[str, Any], record: Record, idle: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that follows from the raw record: a pure function of it, but for the description of this host."""
    import numpy as np

    from compiler.runtime import statistics

    data = Data(spec, record)
    entries = {e["id"]: e for e in spec["candidates"]}
    drift = statistics.drift(data.rounds[REFERENCE]) if REFERENCE in data.rounds else 0.0
    cores = host.profile()["cores"]
    result: dict[str, Any] = {
        "schema_version": 1,
        "bundle": identity(dict(spec)),
        "artifacts": {name: spec["files"][entries[name]["file"]] for name in data.names},
        "host": host.describe(),
        "protocol": spec["protocol"],
        "idle": dict(idle),
        "alone": record.alone,
        "reference_drift": round(drift, 4),
        "reference_ms": _reference_ms(data),
        "temperature_c": _range([r.facts["temperature_c"] for seen in record.rounds for r in seen.values()]),
        "load_average": _range([r.facts["load_average"] for seen in record.rounds for r in seen.values()]),
        "speedup_reference": data.against,
        "failed": record.failed,
        "absent": record.absent,
        "candidates": {},
        "pairs": [],
    }
    for name in data.names:
        facts = [record.rounds[i][name].facts for i in data.kept]
        beside = [record.rounds[i].get(REFERENCE, record.rounds[i][name]).facts for i in data.kept]
        reasons = noise.reasons(data.rounds[name], facts, drift, idle, beside)
        figures = statistics.summarize(data.rounds[name], name)
        speedup, interval = statistics.paired_ratio(data.logs(data.against, name))
        options = entries[name]["options"]
        result["candidates"][name] = {
            "latency_ms": figures | {
                "batch": data.batch[name],
                "threads": min(cores, int(options.get("threads") or spec["protocol"]["threads"])),
                "streams": int(options.get("streams") or 1),
                "stable": not reasons,
                "unstable_reasons": reasons,
            },
            "speedup": round(speedup, 4),
            "speedup_ci95": [round(v, 4) for v in interval] if interval else None,
            "speedup_rounds": [round(float(np.exp(v)), 4) for v in data.logs(data.against, name)],
            "throughput_per_s": round(1000.0 * data.samples_at_once[name] / float(figures["mean"]), 2),  # type: ignore[arg-type]
            **{
                key: round(float(np.median([f[key] for f in facts])), 3)
                for key in ("import_ms", "load_ms", "first_call_ms", "peak_memory_mb", "process_memory_mb")
            },
            **({"pipeline_ms": whole_calls([f["pipeline"] for f in facts])} if facts[0]["pipeline"] else {}),
            "involuntary_switches": int(np.median([f["switches"] for f in facts])),
            "warmup_calls": int(np.median([f["warmup_calls"] for f in facts])),
            **({"gpu": on_gpu([f["device"] for f in facts])} if all("device" in f for f in facts) else {}),
        }  # fmt: skip
    for i, first in enumerate(data.names):
        for second in data.names[i + 1 :]:
            ratio, interval = statistics.paired_ratio(data.logs(second, first))
            result["pairs"].append(
                {"first": first, "second": second, "speedup": round(ratio, 5),
                 "ci95": [round(v, 5) for v in interval] if interval else None,
                 "claim": statistics.claim(ratio, interval)}
            )  # fmt: skip
    result["facts"] = [
        {name: {k: v for k, v in seen.facts.items() if k not in ("mhz", "device")} for name, seen in r.items()}
        for r in record.rounds
    ]
    return result


def whole_calls(seen: list[Mapping[str, float]]) -> dict[str, float]:
    """`preprocessing`, `model`, `postprocessing`, `total`, `total_p95` of a whole call in ms: medians over rounds."""
    import numpy as np

    return {
        name.removesuffix("_ms"): float(f"{np.median([one[name] for one in seen]):.6g}")
        for name in (*PARTS, "total_p95_ms")
    }


def on_gpu(seen: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What the GPU did under one candidate, from each round's answer to `device`.

    `copy_in_ms`, `compute_ms` and `copy_out_ms` are medians of all calls; `utilization` (percent), `gpu_mhz` and
    `temperature_c` medians while calls ran; `memory_mb` the most of the GPU's memory that its process had;
    `tensor_cores` whether they ran; `throttling` the reasons for which the GPU was slowed down at the end of a round.
    What is not known is None.
    """
    import numpy as np

    def median(values: list[float], digits: int) -> float | None:
        return round(float(np.median(values)), digits) if values else None

    samples = [sample for one in seen for sample in one["samples"]]
    memory_mb = [one["gpu_memory_mb"] for one in seen if one["gpu_memory_mb"] is not None]
    cores = {one["tensor_cores"] for one in seen}
    return {
        **{name: median([t for one in seen for t in one[name]], 6) for name in DEVICE_TIMES},
        **{
            name: median([sample[name] for sample in samples if name in sample], 2)
            for name in ("utilization", "gpu_mhz", "temperature_c")
        },
        "memory_mb": round(max(memory_mb), 2) if memory_mb else None,
        "tensor_cores": cores.pop() if len(cores) == 1 else None,
        "throttling": sorted({reason for one in seen for reason in one["throttling"]}),
    }


def _range(values: list[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [round(min(known), 2), round(max(known), 2)] if known else None


def _reference_ms(data: Data) -> float | None:
    """Median latency of the frozen reference: by it two measurements know whether the machine was equally fast."""
    import numpy as np

    from compiler.runtime import statistics

    if REFERENCE not in data.rounds:
        return None
    return round(float(np.median(statistics.flatten(data.rounds[REFERENCE]))), 6)


def _write_raw(record: Record, path: Path) -> None:
    import numpy as np

    arrays = {}
    for i, seen in enumerate(record.rounds):
        for name, visit in seen.items():
            arrays[f"{name}/{i}"] = np.concatenate([np.asarray(b, np.int64) for b in visit.bursts])
            arrays[f"{name}/{i}/bursts"] = np.asarray([len(b) for b in visit.bursts], np.int64)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


class _Rounds:
    """Says on standard error when another round begins."""

    def __init__(self) -> None:
        self._last = -1

    def tell(self, done: int, total: int, what: str) -> None:
        """See `Progress`."""
        if done != self._last:
            self._last = done
            print(f"round {done + 1} of {total}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Command line: measures and prints the result."""
    from compiler.runtime.bundle import check_code
    from compiler.runtime.depths import measure_bundle

    allowed = []
    while "--runtime" in argv[:-1]:
        place = argv.index("--runtime")
        allowed.append(argv[place + 1])
        argv = argv[:place] + argv[place + 2 :]
    if not argv or argv[0] in ("-h", "--help") or len(argv) > 2:
        print(__doc__)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    bundle = Path(argv[0])
    out = Path(argv[1]) if len(argv) > 1 else bundle / "out"
    try:
        check_code(read(bundle), tuple(allowed))
        out.mkdir(parents=True, exist_ok=True)
        result = measure_bundle(bundle, out, _Rounds().tell)
    except CompilerError as error:
        for line in (*error.details, f"try: {error.fix}", f"error: {error.what}"):
            print(line, file=sys.stderr)
        return error.exit_code
    print(json.dumps(result, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
