"""What publishing and pulling cost: 2 GB against a plain copy and skopeo, and the memory it takes.

python benchmarks/registry.py [MB]     needs docker-registry and skopeo (Debian packages) for the whole table

Each line is a process of its own, three times; the table shows the median seconds and the most memory. What is copied
is random bytes in one file. The registry runs on this machine, so its own time is in the figures; the disk's cache is
not emptied.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from registry_server import Server

TIMES = 3
WORK = """
import sys
from pathlib import Path
from compiler.registries import connect
from compiler.registries.reference import parse
from compiler.registries.transfer import Layer, fetch, resolve, send
verb, place, path = sys.argv[1:]
reference = parse(place)
if verb == "send":
    send(connect(reference, writing=True), [Layer("large.bin", "application/octet-stream", Path(path))], {}, ["latest"])
else:
    registry = connect(reference)
    Path(path).mkdir()
    fetch(registry, resolve(registry, reference), Path(path), {})
"""
COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and megabytes (peak resident) of a process.

    The peak is the kernel's own mark, read while the process runs: what `wait4` reports begins with that of the parent.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    assert process.returncode == 0, (command, process.stderr and process.stderr.read())
    return seconds, peak * 1024 / 1e6


def row(name: str, command: list[str], size: int, clean: Callable[[], object] = lambda: None) -> None:
    """Runs it, prints its line."""
    seen = []
    for _ in range(TIMES):
        clean()
        seen.append(timed(command))
    seconds = statistics.median(s for s, _ in seen)
    print(f"{name:<44} {seconds:7.2f} s {size / seconds / 1e6:7.0f} MB/s {max(m for _, m in seen):6.0f} MB", flush=True)


def main() -> None:
    """Prints the table."""
    size = int(float(sys.argv[1]) if len(sys.argv) > 1 else 2000) * 1_000_000
    with tempfile.TemporaryDirectory(prefix="registry-") as temporary:
        folder = Path(temporary)
        large = folder / "large.bin"
        with large.open("wb") as stream:
            for _ in range(size // 1_000_000):
                stream.write(os.urandom(1_000_000))
        print(f"{size / 1e9:g} GB in one file; median of {TIMES}, peak memory of the process itself")
        copy, layout, out = folder / "copy.bin", folder / "layout", folder / "out"
        python = [sys.executable, "-c"]

        def remove(*paths: Path) -> Callable[[], object]:
            return lambda: [shutil.rmtree(p) if p.is_dir() else p.unlink(missing_ok=True) for p in paths]

        row("plain copy", [*python, COPY, str(large), str(copy)], size, remove(copy))
        copy.unlink()
        ours = f"file:{layout}"
        row("publish to a layout", [*python, WORK, "send", ours, str(large)], size, remove(layout))
        row("publish to a layout, all of it is there", [*python, WORK, "send", ours, str(large)], size)
        row("pull from a layout", [*python, WORK, "fetch", ours, str(out)], size, remove(out))
        remove(out)()
        with_skopeo(folder, layout, large, out, size, remove, python)


def with_skopeo(
    folder: Path, layout: Path, large: Path, out: Path, size: int, remove: Callable[..., Callable[[], object]],
    python: list[str],
) -> None:  # fmt: skip
    """The lines that need a registry."""
    if shutil.which("docker-registry") is None or shutil.which("skopeo") is None:
        print("apt-get install docker-registry skopeo: for the lines with a registry")
        return
    with Server(folder / "server") as server:
        there, storage = server.reference("large"), server.root
        row("publish to a registry", [*python, WORK, "send", there, str(large)], size, remove(storage))
        row("publish to a registry, all of it is there", [*python, WORK, "send", there, str(large)], size)
        row("pull from a registry", [*python, WORK, "fetch", there, str(out)], size, remove(out))
        remove(out)()
        plain = f"docker://{server.host}/large:latest"
        away = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", plain]
        back = ["skopeo", "copy", "-q", "--src-tls-verify=false", plain, f"oci:{out}:latest"]
        row("skopeo, layout to registry", away, size, remove(storage))
        row("skopeo, registry to layout", back, size, remove(out))


if __name__ == "__main__":
    main()
