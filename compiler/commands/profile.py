"""profile: per-operator time of the baseline and of the selected artifact of a built version.

Both are run here, each in a fresh process pinned to the target's threads. The version itself is not changed: the
profile goes to .observations/VERSION/profile-TIME/ beside it. docs/profiling.md says what it holds.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compiler.commands.arguments import parser
from compiler.errors import CompilerError, ConfigError, IntegrityError, StepError, from_json
from compiler.runtime.names import DISTRIBUTIONS
from compiler.runtime.verify import check_selected, read_manifest
from compiler.terminal import need_tables

PROFILE = "profile.json"
CALLS = 30
MOST_CALLS = 1000
TIME_LIMIT_S = 600
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def run(arguments: list[str]) -> int:
    """Prints the tables, the sentence and, last, the path of profile.json; with --json only the JSON."""
    options = parser("profile", __doc__ or "")
    options.add_argument("path", type=Path, help="a version's folder, or .../latest")
    options.add_argument("--calls", type=int, default=CALLS, help=f"profiled calls (default {CALLS})")
    options.add_argument("--json", action="store_true", help="print nothing but profile.json")
    options.add_argument("--runtime", action="append", default=[], metavar="MODULE", help="allow a module of your own")
    options.add_argument("--samples", type=Path, metavar="FILE", help=".npy: uint8 RGB images, if the store has none")
    given = options.parse_args(arguments)
    if not given.json:
        need_tables()
    if not 1 <= given.calls <= MOST_CALLS:
        raise ConfigError(f"--calls is {given.calls}", fix=f"give a number from 1 to {MOST_CALLS}")
    folder, manifest = read_manifest(given.path)
    check_selected(manifest, given.path)

    from compiler.observations import HOME, store_of, version_bundle
    from compiler.turns import turn

    # what a build on this host wrote names its user's own code; anybody else's manifest must be allowed to
    allowed = tuple(given.runtime) if store_of(folder, manifest) is None else None
    bundled = version_bundle(folder, samples=given.samples, runtimes=tuple(given.runtime))
    with bundled as (bundle, manifest), turn(True, lambda what: print(what, file=sys.stderr, flush=True)):
        file, profile = profile_bundle(bundle, manifest, folder.parent / HOME / folder.name, given.calls, allowed)
    if given.json:
        print(json.dumps(profile, indent=1))
        return 0
    from compiler.profilers.report import print_profile

    print_profile(profile)
    print(file)
    return 0


def profile_bundle(
    bundle: Path, manifest: dict[str, Any], observations: Path, calls: int, allowed: tuple[str, ...] | None = ()
) -> tuple[Path, dict[str, Any]]:
    """Profiles the baseline, if the bundle has it, and the selected candidate; returns the file and what it holds.

    The folder `profile-<time>` appears in `observations` when it is complete. `allowed` are the modules of the user's
    own that a manifest may ask for (None: all): it is data, and names no code by itself.

    Raises:
        IntegrityError: the selected candidate asks for code that was not allowed.
        StepError: the selected candidate could not be profiled at all.
    """
    from compiler.profilers import report
    from compiler.runtime import host

    spec = json.loads((bundle / "bundle.json").read_text())
    entries = {str(entry["id"]): entry for entry in spec["candidates"]}
    selected, baseline = str(manifest["selected"]), str(spec["baseline"])
    if selected not in entries:
        raise IntegrityError(f"the bundle lacks the selected candidate {selected!r}", fix="build the version again")
    left_out: dict[str, str] = {}
    now = datetime.datetime.now(datetime.UTC)
    try:
        observations.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".profile-", dir=observations))
    except OSError as error:
        raise ConfigError(f"cannot write to {observations}: {error.strerror}", fix="make the folder writable") from None
    try:
        rows = []
        for name in dict.fromkeys((baseline, selected)):
            if name not in entries:
                left_out[name] = "the local store does not have it: build again to profile it"
                continue
            try:
                _check_allowed(entries[name], allowed)
                record = _one(bundle, entries[name], int(spec["protocol"]["threads"]), work, calls)
            except CompilerError as error:
                if name == selected:
                    raise
                left_out[name] = "; ".join(filter(None, [error.what, error.fix]))
                continue
            rows.append(report.candidate(record, "artifact" if name == selected else "baseline"))
        profile = {
            "schema_version": report.SCHEMA_VERSION,
            **{name: manifest[name] for name in ("model", "target", "version", "digest")},
            "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "host": host.describe(),
            "baseline": baseline if any(row["role"] == "baseline" for row in rows) else None,
            "selected": selected,
            "left_out": left_out,
            "candidates": rows,
            "sentence": report.sentence(rows[-1]),
        }
        (work / PROFILE).write_text(json.dumps(profile, indent=1, ensure_ascii=False) + "\n")
        work.chmod(0o755)
        return _publish(work, observations, f"profile-{now:%Y%m%dT%H%M%SZ}") / PROFILE, profile
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, observations: Path, name: str) -> Path:
    """Gives a finished profile its name; of two in one second the later gets a number behind it."""
    for number in range(1000):
        target = observations / (f"{name}-{number}" if number else name)
        try:
            work.rename(target)
        except OSError:
            if not target.exists():
                raise
        else:
            return target
    raise StepError(f"there are too many profiles named {name} in {observations}", fix="remove some")


def _check_allowed(entry: dict[str, Any], allowed: tuple[str, ...] | None) -> None:
    """A bundle is data: it may choose among our runtimes and networks, and never name other code to be imported."""
    name, runtime = str(entry["id"]), str(entry["runtime"])
    module, own, _ = str(entry["options"].get("architecture", "")).partition(":")
    if not NAME.fullmatch(name):
        raise IntegrityError(f"the candidate {name!r} is not run: its name is no file name", fix="build it again")
    code = (module if own else "") if runtime in DISTRIBUTIONS else runtime
    if code and allowed is not None and code not in allowed:
        raise IntegrityError(f"{name} needs code that is not ours, {code}", fix=f"allow it yourself: --runtime {code}")


def _one(bundle: Path, entry: dict[str, Any], threads: int, work: Path, calls: int) -> dict[str, Any]:
    """Runs `compiler.profilers.one` and takes what it wrote."""
    name = str(entry["id"])
    count = str(entry["options"].get("threads") or threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "compiler.profilers.one", str(bundle.absolute()), name, str(work.absolute())]
    try:
        process = subprocess.run(
            [*command, str(calls)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=TIME_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StepError(f"profiling {name} took more than {TIME_LIMIT_S} s", fix="give fewer --calls") from None
    written = work / f"{name}.json"
    if process.returncode != 0 or not written.is_file():
        raise StepError(
            f"profiling {name} failed with exit code {process.returncode}",
            fix="the lines above say what happened in its process",
            details=process.stdout.decode(errors="replace").splitlines()[-12:],
        )
    record: dict[str, Any] = json.loads(written.read_text())
    written.unlink()
    if "error" in record:
        raise from_json(record)
    return record
