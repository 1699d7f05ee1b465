"""Measures what the compiler costs where no step runs: a no-op second build and `plan`, each as a whole process.

    python benchmarks/overhead.py             # the null backend: nothing but the compiler's own work
    python benchmarks/overhead.py target=rpi4 # any other configuration; its cold build comes first

Prints wall seconds (min, median, max of the runs after one warm-up), peak memory of the compiler's own process
(not of its workers), and which heavy libraries each verb has imported when it ends.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NULL_BUILD = ("--config-dir", str(ROOT / "tests" / "conf"), "target=nulltarget", "model=nullmodel")
RUNS = 7
SAMPLE_EVERY_S = 0.01
HEAVY = ("numpy", "torch", "tensorflow", "openvino", "onnxruntime", "nncf", "litert_torch", "sklearn")
LIST_MODULES = """
import contextlib, io, sys
from compiler.__main__ import main
with contextlib.redirect_stdout(io.StringIO()):
    main()
print(*sys.modules)
"""


def main() -> None:
    configuration = sys.argv[1:] or NULL_BUILD
    with tempfile.TemporaryDirectory() as folder:
        arguments = (*configuration, f"artifacts_dir={folder}")
        seconds, peak = cold_build(arguments)
        print(f"cold build    {seconds:.2f} s, peak memory {peak:.0f} MB (the compiler's process, without workers)")
        check_noop(arguments)
        for title, verb in (("no-op build", "build"), ("plan", "plan")):
            runs = [measure(verb, arguments) for _ in range(1 + RUNS)][1:]
            times = [seconds for seconds, _ in runs]
            print(
                f"{title:<13} min {min(times):.3f}  median {statistics.median(times):.3f}  max {max(times):.3f} s, "
                f"peak memory {max(peak for _, peak in runs):.0f} MB ({RUNS} runs)"
            )
        for title, verb in (("no-op build", "build"), ("plan", "plan")):
            print(f"{title:<13} heavy libraries imported: {', '.join(heavy_imports(verb, arguments)) or 'none'}")


def command(verb: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "compiler", verb, *arguments]


def cold_build(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Wall seconds, and the largest VmHWM seen of the process itself, in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command("build", arguments), cwd=ROOT, stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    peak_kb = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())  # absent once the process has ended
        peak_kb = max(peak_kb, int(found.group(1)) if found else 0)
        time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        sys.exit(f"the cold build ended with exit code {process.returncode}")
    return time.perf_counter() - started, peak_kb / 1024


def check_noop(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(command("build", arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    if "Nothing to do" not in done.stdout:
        sys.exit("the second build was no no-op")


def measure(verb: str, arguments: tuple[str, ...]) -> tuple[float, float]:
    """Wall seconds and peak resident memory in MB of one process.

    The kernel starts a child's peak at what this process holds, which is less than the compiler needs.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command(verb, arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{verb} ended with exit code {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def heavy_imports(verb: str, arguments: tuple[str, ...]) -> list[str]:
    """Those of `HEAVY` that the verb leaves in `sys.modules`."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, verb, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    return [name for name in HEAVY if name in loaded]


if __name__ == "__main__":
    main()
