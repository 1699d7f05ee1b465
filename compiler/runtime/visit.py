"""One visit: a fresh, pinned process that opens one candidate of a bundle and times its calls when it is told to.

    python -m compiler.runtime.visit BUNDLE CANDIDATE [OPTIONS]

OPTIONS is a JSON object that changes the candidate's own (`batch`, `threads`, `streams`).
Reads commands from standard input and answers on standard output, one JSON object a line: `open`, `warm`,
`burst` (times calls, one after another), `arrivals` (calls at a stated rate), `pipeline` (whole calls, preprocessing
included), `first` (opens the model and answers once), `device` (a GPU's own times).
It ends when its input does.
Between commands it sleeps, so that candidates can take turns many times a second without sharing a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compiler import reads
from compiler.runtime import gpu, sensors
from compiler.runtime.control_group import usable_cores
from compiler.runtime.names import ON_GPU, libraries_of

WARMUP_WINDOW = 25
WARMUP_AGREEMENT = 0.03
WARMUP_MAX_WINDOWS = 40
WARMUP_MAX_SECONDS = 5.0
SETTLE_SECONDS = 0.002
SETTLE_SKIPPED_ABOVE_S = 0.5
MAX_BURST_SECONDS = 2.0
REST_STEP_SECONDS = 0.002
REST_MAX_SECONDS = 0.3
RESTING_SHARE = 0.1
INPUTS = 16
DEVICE_SAMPLES = 4
WATCH_STEP_SECONDS = 0.05


class Visit:
    """The state of one visit; each public method answers one command."""

    def __init__(self, bundle: Path, candidate: str, options: dict[str, Any]) -> None:
        spec = json.loads((bundle / "bundle.json").read_text())
        self._bundle = bundle
        self._entry = next(c for c in spec["candidates"] if c["id"] == candidate)
        self._options = {**self._entry["options"], **options}
        cores = usable_cores()
        self._threads = min(cores, int(self._options.get("threads") or spec["protocol"]["threads"]))
        self._streams = int(self._options.get("streams") or 1)
        self._call: Callable[[Any], Any]
        self._inputs: list[list[Any]] = [[]]
        self._position = 0
        self._slow = False
        self._on_gpu = False
        self._gpu_free_before: float | None = None
        self._workers: list[ThreadPoolExecutor] = []

    def ready(self) -> dict[str, Any]:
        """Pins the process and imports the library, before anything is measured."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self._threads * self._streams])
        started = time.perf_counter_ns()
        import numpy  # noqa: F401 - imported here so that opening the model does not pay for it

        for name in libraries_of(self._entry["runtime"]):
            importlib.import_module(name)
        return {"import_ms": (time.perf_counter_ns() - started) / 1e6}

    def open(self) -> dict[str, Any]:
        """Opens the model and makes its first call."""
        from compiler.runtime.session import open_model

        options = {**self._options, "threads": self._threads}
        self._inputs = self._make_inputs(int(options.get("batch", 1)))
        if self._entry["runtime"] in ON_GPU:
            self._gpu_free_before = gpu.free_mb()
        before = _status_kb("VmRSS")
        started = time.perf_counter_ns()
        path = self._bundle / self._entry["file"]
        sessions = [open_model(self._entry["runtime"], path, options)]
        loaded = time.perf_counter_ns()
        sessions[0].run(self._inputs[0])
        first = time.perf_counter_ns()
        # each further stream has one thread for good, which opens its session too: ONNX Runtime records CUDA graphs
        # by thread, and no other stream may work while one is recorded
        self._workers = [ThreadPoolExecutor(1) for _ in range(1, self._streams)]
        for worker in self._workers:
            sessions.append(worker.submit(open_model, self._entry["runtime"], path, options).result())
            worker.submit(sessions[-1].run, self._inputs[0]).result()
        self._sessions = sessions
        self._rss_before = before
        gc.collect()
        gc.disable()  # a collection of ours is no latency of the model's
        self._on_gpu = hasattr(sessions[0], "device_times")
        told = {"device": True} if self._on_gpu else {}
        return {"load_ms": (loaded - started) / 1e6, "first_call_ms": (first - loaded) / 1e6, **told}

    def first(self) -> dict[str, Any]:
        """Opens the model and answers its first sample: `answered_at`, in seconds of CLOCK_MONOTONIC."""
        from compiler.runtime.preprocess import decode, encode
        from compiler.runtime.session import open_model

        options = {**self._options, "threads": self._threads}
        session = open_model(self._entry["runtime"], self._bundle / self._entry["file"], options)
        signature, batch = self._entry["signature"], int(options.get("batch", 1))
        decode(session.run([encode(self._images()[:1].repeat(batch, axis=0), signature)])[0], signature["outputs"][0])
        return {"answered_at": time.monotonic()}

    def pipeline(self, calls: int, seconds: float) -> dict[str, Any]:
        """Whole calls, preprocessing included: see `compiler.runtime.pipeline.time_whole_calls`; {} without inputs."""
        from compiler.runtime.pipeline import time_whole_calls

        if not self._entry["signature"]["inputs"]:
            return {}  # the frozen reference
        batch = int(self._options.get("batch", 1))
        return time_whole_calls(
            self._sessions[0], self._images(), self._entry["signature"], batch, calls, min(seconds, MAX_BURST_SECONDS)
        )

    def warm(self) -> dict[str, Any]:
        """Calls until three windows' medians agree, within a cap."""
        import statistics

        medians: list[float] = []
        deadline = time.monotonic() + WARMUP_MAX_SECONDS
        calls = 0
        while len(medians) < WARMUP_MAX_WINDOWS:
            times = self._time_calls(WARMUP_WINDOW, 0.0, WARMUP_MAX_SECONDS)
            calls += len(times)
            medians.append(statistics.median(times))
            last = medians[-3:]
            if len(last) == 3 and max(last) - min(last) <= WARMUP_AGREEMENT * min(last):
                break
            if time.monotonic() > deadline:
                break
        self._slow = medians[-1] / 1e9 > SETTLE_SKIPPED_ABOVE_S
        return {"warmup_calls": calls, "call_ms": medians[-1] / 1e6}

    def burst(self, calls: int, seconds: float) -> dict[str, Any]:
        """Times at least `calls` calls and `seconds` seconds, fewer calls where the model is slow.

        `times` are nanoseconds. A few calls before them are not counted: others have just had the caches.
        """
        hot = self._gpu_throttling()  # before the calls that do not count: asking takes long enough to let a GPU rest
        if not self._slow:
            self._time_calls(2, SETTLE_SECONDS, MAX_BURST_SECONDS)
        throttled, switches = sensors.throttling(), _switches()
        wall = time.monotonic()
        one = self._streams == 1
        times = self._time_calls(calls, seconds, MAX_BURST_SECONDS) if one else self._at_once(calls, seconds)
        return {
            "times": times,
            "seconds": time.monotonic() - wall,
            "switches": _switches() - switches,
            "void": sensors.throttling() != throttled or bool(hot + self._gpu_throttling()),
            "mhz": sensors.clock_mhz(),
        }

    def arrivals(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """Requests that arrive at random (exponential gaps, `rate` a second), whether or not the last is answered.

        `times` are nanoseconds from a request's arrival to its answer, waiting included: a client that waits for each
        answer before it asks again would hide what a queue costs (Tene's "coordinated omission").
        """
        import random

        gaps = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        run, count = self._sessions[0].run, len(self._inputs)
        times: list[int] = []
        due = time.perf_counter_ns()
        begin = due
        while due - begin < seconds * 1e9:
            wait = due - time.perf_counter_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            run(self._inputs[len(times) % count])
            now = time.perf_counter_ns()
            times.append(now - due)
            if now - begin > 3 * seconds * 1e9:
                break  # hopelessly behind
            due += int(gaps.expovariate(rate) * 1e9)
        return {"times": times, "seconds": (time.perf_counter_ns() - begin) / 1e9}

    def memory(self) -> dict[str, Any]:
        """Peak resident set, over the state before the model was opened and as a whole; CPU seconds used so far."""
        peak = _status_kb("VmHWM")
        return {
            "peak_memory_mb": max(0, peak - self._rss_before) / 1024,
            "process_memory_mb": peak / 1024,
            "cpu_s": time.process_time(),
            **self._gpu_memory(),
        }

    def device(self, calls: int, seconds: float) -> dict[str, Any]:
        """What the GPU did: `copy_in_ms`, `compute_ms`, `copy_out_ms` of each of `calls` calls by its own events, then,
        while calls go on for `seconds`, `samples` of its state; `tensor_cores`, and `gpu_memory_mb` as `memory` has it.
        """
        session: Any = self._sessions[0]
        times = session.device_times(self._inputs[0], calls)
        samples: list[dict[str, float]] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set() and (now := gpu.state()):
                samples.append(now)
                stop.wait(WATCH_STEP_SECONDS)

        watcher = threading.Thread(target=watch)
        watcher.start()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends or (len(samples) < DEVICE_SAMPLES and watcher.is_alive()):
            self._time_calls(1, 0.0, seconds)
        stop.set()
        watcher.join()
        cores = session.tensor_cores() if hasattr(session, "tensor_cores") else None
        throttled = list(self._gpu_throttling())
        return {**times, "samples": samples, "tensor_cores": cores, "throttling": throttled, **self._gpu_memory()}

    def _gpu_throttling(self) -> tuple[str, ...]:
        return gpu.throttling() if self._on_gpu else ()

    def _gpu_memory(self) -> dict[str, Any]:
        """`gpu_memory_mb`: this process's memory of the GPU; where the driver does not tell, by how much less is free
        than before the model was opened, which is right while nobody else begins or ends. Empty without a GPU.
        """
        if not self._on_gpu:
            return {}
        used, free = gpu.process_mb(os.getpid()), gpu.free_mb()
        if used is None and free is not None and self._gpu_free_before is not None:
            used = max(0.0, self._gpu_free_before - free)
        return {"gpu_memory_mb": used}

    def cpu(self) -> dict[str, Any]:
        """CPU seconds used so far."""
        return {"cpu_s": time.process_time()}

    def _make_inputs(self, batch: int) -> list[list[Any]]:
        """Real samples as input tensors; repeated where there are fewer than a batch takes."""
        import numpy as np

        from compiler.runtime.preprocess import encode

        if not self._entry["signature"]["inputs"]:
            return [[]]
        images = self._images()
        count = max(1, len(images) // batch)
        values = encode(images, self._entry["signature"])
        if batch > len(values):
            values = values[np.arange(batch) % len(values)]
        return [[np.ascontiguousarray(values[i * batch : (i + 1) * batch])] for i in range(count)]

    def _images(self) -> Any:
        """The bundle's real samples, uint8 (n, height, width, 3)."""
        from compiler.runtime.inert import LARGEST_ARRAYS, load_array

        return load_array(self._bundle / "samples.npy", LARGEST_ARRAYS)

    def _at_once(self, calls: int, seconds: float) -> list[int]:
        """The calls of all streams, each a session with a thread of its own, made at the same time."""
        how = (calls, seconds, MAX_BURST_SECONDS)
        others = zip(self._workers, self._sessions[1:], strict=True)
        waiting = [worker.submit(self._time_calls, *how, session) for worker, session in others]
        times = self._time_calls(*how)
        return [*times, *(t for one in waiting for t in one.result())]

    def _time_calls(self, calls: int, seconds: float, most_seconds: float, session: Any = None) -> list[int]:
        times: list[int] = []
        clock = time.perf_counter_ns
        run = (session or self._sessions[0]).run
        inputs, position = self._inputs, self._position
        count = len(inputs)
        begin = clock()
        while True:
            value = inputs[position % count]
            position += 1
            start = clock()
            run(value)
            end = clock()
            times.append(end - start)
            spent = (end - begin) / 1e9
            if (len(times) >= calls and spent >= seconds) or spent > most_seconds:
                self._position = position
                return times


def main(argv: list[str]) -> int:
    """Answers commands until there are none left."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    reads.watch()
    visit = Visit(Path(argv[0]), argv[1], json.loads(argv[2]) if len(argv) > 2 else {})
    answers.write(json.dumps(visit.ready()) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(visit, command.pop("do"))(**command)
        _rest()
        answers.write(json.dumps(answer) + "\n")
    return 0


def _end_with_parent() -> None:
    """Asks the kernel to end this process with its parent, and to take it first when memory runs out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def _rest() -> None:
    """Waits until this process's threads sleep: those of some pools spin for a while after their work is done.

    Who comes next would share its cores with them.
    """
    deadline = time.monotonic() + REST_MAX_SECONDS
    while time.monotonic() < deadline:
        used = time.process_time()
        time.sleep(REST_STEP_SECONDS)
        if time.process_time() - used < RESTING_SHARE * REST_STEP_SECONDS:
            return


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # some runtimes crash in their exit handlers, after everything was measured
