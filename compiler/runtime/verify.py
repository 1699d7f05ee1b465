"""Checks a built artifact against its manifest: every file, by size and SHA-256, and no file that it does not name.

Who made it is `compiler.runtime.trust`'s to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.canonical import digest, file_digest, list_files
from compiler.errors import ConfigError, IntegrityError
from compiler.foreign_json import read_json
from compiler.names import check_names
from compiler.words import printable

MANIFEST = "manifest.json"
DEFERRED = "deferred"
PROVENANCE = "provenance.json"
SIGNATURE = "model.sig"
SIDECARS = (PROVENANCE, SIGNATURE)
"""What may lie beside the files of a version without being named: it is made when the version is published."""
SCHEMA_VERSION = 1
VERSION = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
MAX_MANIFEST_BYTES = 4 << 20
"""As a value in memory it may take fifty times that."""


def read_manifest(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the parsed manifest of an artifact, given its folder or its `manifest.json`.

    Raises:
        ConfigError: there is no manifest at `path`.
        IntegrityError: the manifest is not one.
    """
    folder = path.parent if path.name == MANIFEST else path
    file = folder / MANIFEST
    if not file.is_file():
        if os.path.lexists(file):
            raise IntegrityError(f"{file} is not a regular file", fix="fetch or build the artifact again")
        raise ConfigError(f"there is no {MANIFEST} at {path}", fix="give the folder of a built version, or .../latest")
    try:
        manifest = read_json(file, MAX_MANIFEST_BYTES)
        _check_shape(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(
            f"{file} is not a manifest ({error!r})"[:300], fix="fetch or build the artifact again"
        ) from None
    return folder.resolve(), manifest


def check_selected(manifest: Mapping[str, Any], path: object) -> None:
    """That the version at `path` has an artifact to open.

    Raises:
        ConfigError: it selects no candidate; a deferred one is finished first.
    """
    if manifest["selected"]:
        return
    deferred = manifest["status"] == DEFERRED
    raise ConfigError(
        f"{path} {'is deferred: it' if deferred else ''} has no selected candidate".replace("  ", " "),
        fix=f"finish it where its hardware is: python -m compiler finish {path}"
        if deferred
        else "see its verdicts: python -m compiler show PATH",
    )


def files_digest(files: list[dict[str, Any]]) -> str:
    """An artifact's identity: SHA-256 of the canonical JSON of `files[]`."""
    return digest(sorted(files, key=lambda f: str(f["path"])))


def verify(path: Path) -> dict[str, Any]:
    """Verifies the artifact at `path` and returns its manifest. An empty folder is no file, and nobody's harm.

    Raises:
        IntegrityError: a file is missing, altered or not named by the manifest; the message names it.
    """
    folder, manifest = read_manifest(path)
    fix = "do not use this artifact; build or fetch it again"
    if files_digest(manifest["files"]) != manifest["digest"]:
        raise IntegrityError("the manifest's list of files does not match its digest", fix=fix)
    named = {f["path"]: f for f in manifest["files"]}
    try:
        present = {p.relative_to(folder).as_posix(): p for p in list_files(folder)}
    except ValueError as error:
        raise IntegrityError(str(printable(str(error))), fix=fix) from None
    for name in sorted(set(present) - set(named) - {MANIFEST, *SIDECARS}):
        raise IntegrityError(f"{printable(name)} is not named by the manifest", fix=fix)
    for name, entry in sorted(named.items()):
        if name not in present:
            raise IntegrityError(f"{name} is missing", fix=fix)
        size = present[name].stat().st_size
        if size != entry["size_bytes"]:
            raise IntegrityError(f"{name} has {size} bytes, the manifest says {entry['size_bytes']}", fix=fix)
        if file_digest(present[name]) != entry["sha256"]:
            raise IntegrityError(f"{name} does not match its SHA-256", fix=fix)
    return manifest


def _check_shape(manifest: Any) -> None:
    """Checks what this package reads of a manifest; the whole is described by `schemas/manifest.schema.json`.

    Raises:
        ValueError, KeyError, TypeError: something is missing or of another type.
    """
    if not isinstance(manifest, dict) or manifest["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {SCHEMA_VERSION} is what this version reads")
    if not VERSION.fullmatch(manifest["version"]) or not CREATED.fullmatch(manifest["created"]):
        raise ValueError("version or created is not as builds write it")
    text = {"model", "target", "version", "digest", "status", "selected_because", "baseline"}
    lists = {"files", "candidates", "verdicts", "measured_on", "steps"}
    tables = {"signature", "preprocessing", "weights", "budget", "environment", "config", "data"}
    for names, kind in ((text, str), (lists, list), (tables, dict)):
        for name in names:
            if not isinstance(manifest[name], kind):
                raise TypeError(f"{name} is not a {kind.__name__}")
    for entry in manifest["files"]:
        _check_file(entry)
    check_names([*(entry["path"] for entry in manifest["files"]), MANIFEST, *SIDECARS])
    for entry in manifest["candidates"]:
        if not isinstance(entry["options"], dict) or not isinstance(entry["runtime"], str):
            raise TypeError("a candidate's options or runtime")
        int(entry["options"]["threads"])
    if manifest["selected"] is not None:
        if manifest["selected"] not in [entry["id"] for entry in manifest["candidates"]]:
            raise ValueError("selected is not among the candidates")
        if [f["role"] for f in manifest["files"]].count("model") != 1:
            raise ValueError("there must be one file with the role model")
    for entry in (*manifest["signature"]["inputs"], *manifest["signature"]["outputs"]):
        entry["name"], entry["dtype"], entry["layout"], [int(n) for n in entry["shape"]]


def _check_file(entry: Any) -> None:
    if not all(isinstance(entry[name], str) for name in ("path", "sha256", "role")):
        raise TypeError("a file's path, sha256 or role is no text")
    if type(entry["size_bytes"]) is not int or entry["size_bytes"] < 0:
        raise TypeError("a file's size_bytes is no size")
