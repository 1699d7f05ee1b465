"""A measurement bundle: a self-contained folder that any host with numpy and the candidates' libraries can run.

bundle.json       protocol, candidates (`id`, `runtime`, `file`, `options`, `signature`), the digest of every file
samples.npy       real samples, uint8 (n, height, width, 3)
<candidate>/...   the candidates' files
compiler/...      this runtime, so that a host needs nothing of ours installed:
                  cd BUNDLE && python -m compiler.runtime.measure . OUT
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.canonical import digest, file_digest
from compiler.errors import ConfigError, IntegrityError
from compiler.foreign_json import read_json
from compiler.runtime.names import SHIPPED, check_id

SPEC = "bundle.json"
SAMPLES = "samples.npy"
REFERENCE = "reference"
BUNDLE_VERSION = 1
REFERENCE_ENTRY: dict[str, Any] = {
    "id": REFERENCE, "runtime": REFERENCE, "file": SPEC, "options": {}, "signature": {"inputs": []},
}  # fmt: skip


def read(bundle: Path) -> dict[str, Any]:
    """What `bundle.json` says, with the reference among the candidates, after every file was checked.

    Raises:
        ConfigError: there is no bundle.
        IntegrityError: a file is missing or altered, or lies outside the bundle.
    """
    file = bundle / SPEC
    if not file.is_file():
        raise ConfigError(f"there is no {SPEC} in {bundle}", fix="give the folder of a measurement bundle")
    fix = "write the bundle again"
    try:
        spec: dict[str, Any] = read_json(file)
        if spec["schema_version"] != BUNDLE_VERSION:
            raise ValueError(f"schema_version {BUNDLE_VERSION} is what this version reads")
        files = {str(name): str(value) for name, value in spec["files"].items()}
        names = [str(entry["id"]) for entry in spec["candidates"]]
        for name in names:
            check_id(name)
        opened = [str(entry["file"]) for entry in spec["candidates"] if entry["id"] != REFERENCE]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"{file} is not a bundle's description ({error!r})"[:300], fix=fix) from None
    if len(set(names)) != len(names):
        raise IntegrityError(f"{file} names a candidate twice", fix=fix)
    for name in (*files, *opened):
        pure = Path(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise IntegrityError(f"{file} names the file {name!r}", fix="do not run this bundle")
    for name, wanted in sorted(files.items()):
        path = bundle / name
        if not path.is_file() or path.resolve() != bundle.resolve() / name:
            raise IntegrityError(f"{name} is missing from the bundle", fix=fix)
        if file_digest(path) != wanted:
            raise IntegrityError(f"{name} in the bundle does not match its SHA-256", fix=fix)
    for name in opened:
        if name not in files:
            raise IntegrityError(f"{name} is opened but has no digest", fix="do not run this bundle")
    return spec


def check_code(spec: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """A bundle from elsewhere may choose among our runtimes and networks, and never name other code to be imported.

    `allowed`: modules of one's own.

    Raises:
        IntegrityError: it names another.
    """
    for entry in spec["candidates"]:
        runtime = str(entry["runtime"])
        module, own, _ = str(entry["options"].get("architecture", "")).partition(":")
        code = (module if own else "") if runtime in (*SHIPPED, "pytorch", REFERENCE) else runtime
        if code and code not in allowed:
            raise IntegrityError(
                f"{entry['id']} needs code that is not ours, {code}", fix=f"if you trust it: --runtime {code}"
            )


def identity(spec: dict[str, Any]) -> str:
    """What is measured and how: the digest of the description, files by their digests."""
    return digest(spec)
