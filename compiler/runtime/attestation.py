"""Provenance: an in-toto Statement v1 with the SLSA provenance v1 predicate, and whether it is that of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.canonical import encode
from compiler.runtime.verify import MANIFEST

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:target-model-compiler:build:1"
RECORDED = ("model", "target", "config")
"""Fields of the manifest that are a build's external parameters."""


def check_statement(statement: Any, manifest: Mapping[str, Any], manifest_sha256: str) -> None:
    """Checks that a statement is about exactly this artifact, and says of its build what the manifest says.

    `manifest_sha256` is the digest of the manifest's file.

    Raises:
        ValueError: in words, what does not agree.
        KeyError, TypeError, AttributeError: it is no statement at all.
    """
    for name, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement[name] != wanted:
            raise ValueError(f"its {name} is not {wanted}")
    subjects = {subject["name"]: subject["digest"] for subject in statement["subject"]}
    files = {file["path"]: file["sha256"] for file in manifest["files"]} | {MANIFEST: manifest_sha256}
    if len(subjects) != len(statement["subject"]):
        raise ValueError("it names a file twice")
    for name in sorted(files.keys() | subjects.keys(), key=lambda name: (name == MANIFEST, name)):
        if name not in files:
            raise ValueError(f"it is about {name!r}, which the artifact has not")
        if name not in subjects:
            raise ValueError(f"it says nothing about {name}")
        if subjects[name] != {"sha256": files[name]}:
            raise ValueError(f"it is about another {name}")
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    if definition["buildType"] != BUILD_TYPE:
        raise ValueError(f"its buildType is not {BUILD_TYPE}")
    parameters = definition["externalParameters"]
    for name in RECORDED:
        if encode(parameters[name]) != encode(manifest[name]):
            raise ValueError(f"its {name} is not the manifest's")
    if details["metadata"]["invocationId"] != manifest["version"]:
        raise ValueError("it is of another version")
