"""Where an artifact comes from, in the form that other tools read: in-toto Statement v1, SLSA provenance v1.

Everything in it is in the manifest too. It is made from the manifest alone, so that the same version has the same
provenance whenever and wherever it is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from compiler.canonical import plain
from compiler.runtime.attestation import BUILD_TYPE, PREDICATE_TYPE, RECORDED, STATEMENT_TYPE
from compiler.runtime.verify import MANIFEST

BUILDER = "urn:target-model-compiler:local-builder"
"""Whoever ran this software on a machine of their own: nothing more is claimed of the builder."""
DISTRIBUTION = "target-model-compiler"


def statement(manifest: Mapping[str, Any], manifest_sha256: str) -> dict[str, Any]:
    """The statement about the version that `manifest` describes; `manifest_sha256` is the digest of its file.

    The configuration is as the manifest records it, which has no secrets: none can be read into it.
    """
    environment = manifest["environment"]
    internal = {name: environment.get(name) for name in ("interpreter", "build_isa")}
    files = {file["path"]: file["sha256"] for file in manifest["files"]} | {MANIFEST: manifest_sha256}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {name: plain(manifest[name]) for name in RECORDED},
                "internalParameters": {**internal, "seed": manifest["config"].get("seed")},
                "resolvedDependencies": _dependencies(manifest),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {DISTRIBUTION: str(environment["compiler"])}},
                "metadata": {"invocationId": manifest["version"], "finishedOn": manifest["created"]},
                "byproducts": _byproducts(manifest),
            },
        },
    }


def _dependencies(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The compiler, the packages behind its steps, and the files from outside that the steps read."""
    environment = manifest["environment"]
    compiler: dict[str, Any] = {"name": DISTRIBUTION, "uri": _purl(DISTRIBUTION, str(environment["compiler"]))}
    if environment.get("git_commit"):
        compiler |= {
            "digest": {"gitCommit": environment["git_commit"]}, "annotations": {"dirty": environment.get("dirty")},
        }  # fmt: skip
    packages = [
        {"name": name, "uri": _purl(name, str(version))} for name, version in sorted(environment["packages"].items())
    ]
    inputs = [
        {"name": name, "digest": {"sha256": entry["sha256"]}, "annotations": {"path": entry["path"]}}
        for name, entry in sorted(manifest.get("inputs", {}).items())
    ]
    return [compiler, *packages, *inputs]


def _byproducts(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each step made, in the order of the build; delivered or not."""
    return [
        {
            "name": f"{step['name']}/{number}",
            "digest": {"sha256": sha256},
            "annotations": {"stage": step["stage"], "key": step["key"]},
        }
        for step in manifest["steps"]
        for number, sha256 in enumerate(step["outputs"])
    ]


def _purl(name: str, version: str) -> str:
    """The package URL of a distribution of the Python package index."""
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}"
