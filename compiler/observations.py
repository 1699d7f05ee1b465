"""A finished version measured again: its bundle, and the dated observations beside it.

Observations lie in `<artifacts_dir>/<model>/<target>/.observations/<version>/<UTC time>/`; a version is never changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compiler import bundle
from compiler.bundle import Entry
from compiler.canonical import file_digest
from compiler.disk import write_atomically
from compiler.errors import ConfigError, IntegrityError
from compiler.foreign_json import read_json
from compiler.runtime.inert import describe_arrays, load_array
from compiler.runtime.measure import RAW, RESULT
from compiler.runtime.names import check_id
from compiler.runtime.trust import check
from compiler.runtime.verify import MANIFEST, SIDECARS, check_selected, read_manifest
from compiler.stages._measurement import artifact_files, entry_of, images_of
from compiler.store import Result, Store
from compiler.store.records import read_sealed

HOME = ".observations"
OBSERVATION = "observation.json"
LARGEST_RESULT = 256 << 20
LARGEST_FIGURE = 1e15
DEFAULT_PROTOCOL = {
    "rounds": 6, "max_rounds": 20, "min_calls": 100, "min_seconds": 1.0, "max_seconds": 240.0,
    "seed": 0,
}  # fmt: skip


def store_of(folder: Path, manifest: Mapping[str, Any]) -> Store | None:
    """The store of the build that wrote the version in `folder` here; None where it came from elsewhere.

    A manifest is data; that this very one was written by a build on this host is what its store remembers.
    """
    if len(folder.parents) < 3:
        return None
    artifacts = folder.parents[2]
    place = f"{manifest['model']}/{manifest['target']}/{manifest['version']}"
    records = artifacts / ".store" / "versions"
    if folder.relative_to(artifacts).as_posix() != place or not records.is_dir():
        return None
    wanted = {"version": place, "manifest": file_digest(folder / MANIFEST)}
    if any(read_sealed(record) == wanted for record in records.glob("*.json")):
        return Store(artifacts / ".store")
    return None


@contextlib.contextmanager
def version_bundle(
    path: Path,
    protocol: Mapping[str, Any] | None = None,
    samples: Path | None = None,
    everything: bool = False,
    with_runtime: bool = False,
    runtimes: tuple[str, ...] = (),
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A bundle of the version at `path`, gone at the end, and its manifest; every file verified first.

    It holds the selected artifact and, where the local store still has them, the baseline, or with `everything` all
    candidates. `samples` (.npy, uint8 (n, height, width, 3)) is needed where the store does not have the build's.

    Raises:
        ConfigError: nothing is there, nothing was selected, or there are no samples.
        IntegrityError: something does not match its digest.
    """
    chosen = _open(path, runtimes, everything)
    manifest, results = chosen.manifest, chosen.results
    threads = int(chosen.row["options"]["threads"])
    entries = [chosen.entry(chosen.row["id"], threads)]
    for row in manifest["candidates"]:
        wanted = row["id"] == manifest["baseline"] or everything
        result = results.get(row["result"])
        if row["id"] != chosen.row["id"] and wanted and result is not None:
            spec = {
                "runtime": row["runtime"], "options": _untuned(row["options"], threads),
                "artifact": _artifact(manifest, row["id"]),
            }  # fmt: skip
            if (result.path / spec["artifact"]).is_file():
                entries.append(entry_of(row["id"], spec, result.path))
    images = _images(samples, results.get("samples"))
    follow = {**DEFAULT_PROTOCOL, "threads": threads, "depth": "confirm", **(protocol or {})}
    with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
        bundle.write(
            Path(temporary), entries, images, follow, manifest["baseline"], {"objective": "latency"}, with_runtime
        )
        yield Path(temporary), manifest


@contextlib.contextmanager
def pair_bundle(
    first: Path, second: Path, samples: Path | None = None, runtimes: tuple[str, ...] = ()
) -> Iterator[Path]:
    """A bundle of the artifacts of two versions, named `A` (the baseline of the measurement) and `B`.

    Raises:
        ConfigError: a version selects nothing, or there are no samples that fit both.
        IntegrityError: something does not match its digest.
    """
    one, two = _open(first, runtimes), _open(second, runtimes)
    threads = int(one.row["options"]["threads"])
    entries = [one.entry("A", threads), two.entry("B", threads)]
    images = _images(samples, one.results.get("samples") or two.results.get("samples"))
    follow = {**DEFAULT_PROTOCOL, "threads": threads, "depth": "confirm"}
    with tempfile.TemporaryDirectory(prefix="bundle-") as temporary:
        bundle.write(Path(temporary), entries, images, follow, "A", {"objective": "latency"})
        yield Path(temporary)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A version's selected artifact, verified; `results` of the build that the local store still has."""

    folder: Path
    manifest: dict[str, Any]
    row: dict[str, Any]
    options: dict[str, Any]
    results: dict[str, Result]

    def entry(self, name: str, threads: int) -> Entry:
        manifest = self.manifest
        model = next(file["path"] for file in manifest["files"] if file["role"] == "model")
        signature = {
            **manifest["signature"], "preprocessing": manifest["preprocessing"], "labels": manifest["labels"],
        }  # fmt: skip
        files = [f for f in artifact_files(self.folder, model) if f.name not in SIDECARS]
        return Entry(name, self.row["runtime"], files, model, _untuned(self.options, threads), signature)


def _open(path: Path, runtimes: tuple[str, ...], everything: bool = False) -> _Chosen:
    from compiler.runtime import claims
    from compiler.runtime.loader import allowed_options

    folder, _ = read_manifest(path)
    manifest = check(folder).manifest
    check_selected(manifest, path)
    row = next(c for c in manifest["candidates"] if c["id"] == manifest["selected"])
    claims.check(manifest)
    store = store_of(folder, manifest)
    if store is None:
        claims.check_format(row["runtime"], next(f["path"] for f in manifest["files"] if f["role"] == "model"))
    options = dict(row["options"]) if store else allowed_options(row, runtimes)
    beside = [c["result"] for c in manifest["candidates"] if everything or c["id"] == manifest["baseline"]]
    results = _results(store, manifest, dict.fromkeys(["samples", *beside])) if store else {}
    return _Chosen(folder, manifest, row, options, results)


def append(folder: Path, manifest: Mapping[str, Any], out: Path, when: datetime | None = None) -> Path:
    """Adds what a measurement wrote into `out` as an observation of the version in `folder`; returns its folder.

    The result may come from a device: it is data, of which only the files it must have are taken.

    Raises:
        ConfigError: there is no measurement in `out`.
        IntegrityError: it is none, or one of another artifact.
    """
    for name in (RESULT, RAW):
        if not (out / name).is_file():
            raise ConfigError(f"there is no {name} in {out}", fix="give the folder that the measurement wrote")
        if (out / name).is_symlink():  # it could lead to any file of this machine
            raise IntegrityError(f"{name} in {out} is a link", fix="fetch the files themselves")
        if (out / name).stat().st_size > LARGEST_RESULT:
            raise IntegrityError(f"{name} in {out} is larger than a measurement is", fix="measure again")
    result = _read_result(out / RESULT, str(manifest["selected"]))
    try:
        if any(dtype != "int64" for _, dtype in describe_arrays(out / RAW, LARGEST_RESULT).values()):
            raise ValueError("it holds other than times")
    except ValueError as error:
        raise IntegrityError(
            f"{out / RAW} holds no times: {error}"[:300], fix="measure this artifact's own bundle"
        ) from None
    model = next(file["sha256"] for file in manifest["files"] if file["role"] == "model")
    if result["artifacts"][manifest["selected"]] != model:
        raise IntegrityError(
            f"what was measured in {out} is another model than that of {manifest['version']}",
            fix="measure this artifact's own bundle",
        )
    now = when or datetime.now(UTC)
    home = folder.parent / HOME / folder.name
    home.mkdir(parents=True, exist_ok=True)
    record = {
        "schema_version": 1,
        "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "version": manifest["version"],
        "digest": manifest["digest"],
        "files": {name: file_digest(out / name) for name in (RESULT, RAW)},
        **{key: result[key] for key in ("host", "protocol", "candidates", "reference_drift", "speedup_reference")},
    }
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=home) as temporary:
        target = Path(temporary) / "new"
        target.mkdir()
        for name in (RESULT, RAW):
            shutil.copyfile(out / name, target / name)
        (target / OBSERVATION).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        final = home / f"{now:%Y%m%dT%H%M%SZ}"
        number = 1
        while final.exists():
            number += 1
            final = home / f"{now:%Y%m%dT%H%M%SZ}-{number}"
        target.rename(final)
    return final


def append_curves(folder: Path, curves: Mapping[str, Any]) -> Path:
    """Writes the curves of a sweep beside the observations of the version in `folder`; returns the file."""
    home = folder.parent / HOME / folder.name
    home.mkdir(parents=True, exist_ok=True)
    file = home / f"curves-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    write_atomically(file, (json.dumps(curves, indent=1, sort_keys=True) + "\n").encode())
    return file


def listing(folder: Path) -> list[dict[str, Any]]:
    """The observations of the version in `folder`, oldest first; what cannot be read is left out."""
    found = []
    for file in sorted((folder.parent / HOME / folder.name).glob(f"*/{OBSERVATION}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = read_json(file, LARGEST_RESULT)
            record["host"]["cpu_model"], record["candidates"], record["created"]
            found.append(record)
    return found


def _results(store: Store, manifest: Mapping[str, Any], names: Iterable[str]) -> dict[str, Result]:
    """Of the build's steps `names`, the results that the store still has intact: every file of them hashed anew."""
    keys = {step["name"]: step["key"] for step in manifest["steps"]}
    found = {name: store.lookup(keys[name]) for name in names if keys.get(name)}
    return {name: result for name, result in found.items() if result is not None and store.verify_fully(result)}


def _artifact(manifest: Mapping[str, Any], candidate: str) -> str:
    return str(manifest["config"]["candidate"][candidate]["artifact"])


def _untuned(options: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """The options without the number of threads, where it is the one of the protocol."""
    return {name: value for name, value in options.items() if name != "threads" or value != threads}


def _images(samples: Path | None, stored: Result | None) -> Any:
    import numpy as np

    if samples is None:
        if stored is None:
            raise ConfigError(
                "the samples that this artifact was measured with are not here",
                fix="give some with --samples FILE.npy (uint8 RGB, (n, height, width, 3))",
            )
        return images_of(stored.path)
    try:
        images = load_array(samples)
    except ValueError as error:
        raise ConfigError(f"cannot read {samples}: {error}", fix="give a .npy file of numbers") from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ConfigError(f"{samples} holds no images", fix="give uint8 RGB of shape (n, height, width, 3)")
    return images[: bundle.SAMPLE_COUNT]


def _read_result(file: Path, selected: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = read_json(file)
        for name, row in result["candidates"].items():
            check_id(name)
            _check_figures(row)
        host = result["host"]
        if not all(isinstance(host[name], str) for name in ("fingerprint", "cpu_model", "arch")):
            raise TypeError("the host")
        _check_numbers(host["cores"], result["reference_drift"])
        dict(result["protocol"])
        if not isinstance(result["artifacts"][selected], str) or selected not in result["candidates"]:
            raise TypeError("the artifact")
        check_id(result["speedup_reference"])
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise IntegrityError(
            f"{file} is no measurement of {selected} ({error!r})"[:300], fix="measure this artifact's own bundle"
        ) from None
    return result


def _check_figures(row: Mapping[str, Any]) -> None:
    """What tables and pages read of a candidate's figures."""
    latency = row["latency_ms"]
    low, high = latency["ci95"]
    quantiles = [latency[name] for name in ("p95_lower", "p95_upper") if name in latency]
    _check_numbers(latency["p50"], latency["p95"], *quantiles, low, high, row["speedup"], *(row["speedup_ci95"] or ()))
    if row["speedup_ci95"] is not None and len(row["speedup_ci95"]) != 2:
        raise ValueError("an interval has two ends")
    reasons = latency["unstable_reasons"]
    if type(latency["stable"]) is not bool or not isinstance(reasons, list):
        raise TypeError("whether it is stable")
    if not all(isinstance(reason, str) for reason in reasons):
        raise TypeError("a reason is no text")


def _check_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_FIGURE:
            raise TypeError(f"{value!r} is no figure"[:100])
