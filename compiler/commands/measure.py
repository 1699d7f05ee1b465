"""measure: measures a built artifact again on this host and keeps the figures as a dated observation.

The baseline is measured beside it where the local store still has it. The figures that the artifact was built with
stay as they are. To measure on another host, carry a bundle there and bring the result back:

  python -m compiler measure PATH --write-bundle DIR
  cd DIR && python -m compiler.runtime.measure . out          (there; needs numpy and the model's runtime)
  python -m compiler measure PATH --add DIR/out               (here)
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compiler.commands.arguments import parser
from compiler.errors import ConfigError
from compiler.outputs import check_output_folder
from compiler.terminal import need_tables


def run(arguments: list[str]) -> int:
    """Prints the figures beside those of the manifest and, last, the observation's folder."""
    options = parser("measure", __doc__ or "")
    options.add_argument("path", type=Path, help="a version's folder, or .../latest")
    options.add_argument("--all", action="store_true", help="every candidate that the local store still has")
    options.add_argument("--rounds", type=int, help="at least so many rounds (default 6; at most 20 are made)")
    options.add_argument("--seconds", type=float, help="seconds a candidate and round (default 1)")
    options.add_argument("--threads", type=int, help="threads a candidate (default: as it was built for)")
    options.add_argument("--samples", type=Path, help=".npy of uint8 RGB images, where the build's own are not here")
    options.add_argument("--sweep", action="store_true", help="batch x threads x streams: writes curves.json instead")
    options.add_argument("--max-batch", type=int, default=64, help="with --sweep: the largest batch tried (default 64)")
    options.add_argument("--memory-mb", type=float, help="with --sweep: the limit of a process (default: 4/5 of free)")
    options.add_argument("--write-bundle", type=Path, metavar="DIR", help="write the bundle, measure nothing")
    options.add_argument("--add", type=Path, metavar="OUT", help="add what the bundle's measurement wrote elsewhere")
    options.add_argument("--runtime", action="append", default=[], metavar="MODULE", help="allow a runtime of your own")
    options.add_argument("--json", action="store_true", help="print nothing but the observation")
    given = options.parse_args(arguments)
    if not given.json and given.write_bundle is None:
        need_tables()
    from compiler.observations import OBSERVATION, append, version_bundle
    from compiler.runtime.trust import check
    from compiler.runtime.verify import read_manifest

    folder, _ = read_manifest(given.path)
    if given.write_bundle is not None:
        check_output_folder(given.write_bundle)
    if given.add is not None:
        manifest = check(folder).manifest
        return _report(append(folder, manifest, given.add), manifest, given.json, OBSERVATION)
    with version_bundle(
        folder, _protocol(given), given.samples, given.all, given.write_bundle is not None, tuple(given.runtime)
    ) as (bundle, manifest):
        if given.write_bundle is not None:
            return _write_bundle(bundle, given.write_bundle)
        if given.sweep:
            return _sweep(bundle, folder, manifest, given)
        with tempfile.TemporaryDirectory(prefix="measured-") as temporary:
            _measure(bundle, Path(temporary), given.all)
            return _report(append(folder, manifest, Path(temporary)), manifest, given.json, OBSERVATION)


def _protocol(given: Any) -> dict[str, Any]:
    for name, value, least in (
        ("rounds", given.rounds, 1),
        ("seconds", given.seconds, 0),
        ("threads", given.threads, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}", fix=f"it must be at least {least}")
    found: dict[str, Any] = {}
    if given.rounds is not None:
        found |= {"rounds": given.rounds, "max_rounds": max(given.rounds, 20) if given.rounds >= 6 else given.rounds}
    if given.seconds is not None:
        found |= {"min_seconds": given.seconds, "min_calls": 100 if given.seconds >= 1 else 10}
    if given.threads is not None:
        found["threads"] = given.threads
    return found


def _measure(bundle: Path, out: Path, everything: bool) -> None:
    from compiler.progress import watcher
    from compiler.runtime.depths import measure_bundle
    from compiler.runtime.measure import measure
    from compiler.turns import turn

    with watcher() as watching:
        watching.planned(1)
        watching.started("measure", "asked for")

        def tell(done: int, total: int, what: str) -> None:
            watching.progressed("measure", done, total, what)

        began = time.monotonic()
        with turn(True, watching.note):
            (measure_bundle if everything else measure)(bundle, out, tell)
        watching.ended("measure", "executed", time.monotonic() - began)


def _sweep(bundle: Path, folder: Path, manifest: dict[str, Any], given: Any) -> int:
    from compiler.observations import append_curves
    from compiler.progress import watcher
    from compiler.report import print_curves
    from compiler.runtime import sweep
    from compiler.runtime.host import profile
    from compiler.turns import turn

    cores = int(profile()["cores"])
    counts = sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < cores} | {cores})
    protocol = {
        "max_batch": given.max_batch, "seconds": 0.5 if given.seconds is None else given.seconds,
        "memory_limit_mb": given.memory_mb, "latency_p95_ms": manifest["budget"].get("latency_p95_ms"),
        "threads": counts if given.threads is None else [given.threads], "streams": counts,
    }  # fmt: skip
    sweep.check(protocol)
    with watcher() as watching:
        watching.planned(1)
        watching.started("sweep", "asked for")
        began = time.monotonic()
        with turn(True, watching.note):
            found = sweep.sweep(bundle, protocol, lambda n, total, what: watching.progressed("sweep", n, total, what))
        watching.ended("sweep", "executed", time.monotonic() - began)
    file = append_curves(folder, found)
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    print_curves(found)
    print(file)
    return 0


def _write_bundle(bundle: Path, target: Path) -> int:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not empty", fix="give a folder that is empty or not there yet")
    try:
        shutil.copytree(bundle, target, dirs_exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error}"[:300], fix="choose another place") from None
    print(f"cd {target} && python -m compiler.runtime.measure . out", file=sys.stderr)
    print(target)
    return 0


def _report(observation: Path, manifest: dict[str, Any], as_json: bool, name: str) -> int:
    record = json.loads((observation / name).read_text())
    if as_json:
        print(json.dumps(record, indent=1))
        return 0
    from compiler.report import print_observation

    print_observation(record, manifest)
    print(observation)
    return 0
