"""An artifact as the OCI image specification 1.1 has it: a manifest whose layers are plain files, named by their title.

Nothing is packed: a layer is the file's own bytes, so nothing is ever unpacked either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.errors import ConfigError, IntegrityError
from compiler.foreign_json import parse_json
from compiler.names import check_names
from compiler.registries.reference import DIGEST

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.target-model-compiler.artifact.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
"""The configuration of an artifact that has none, as the specification asks for."""
TITLE = "org.opencontainers.image.title"
MAX_MANIFEST_BYTES = 4 << 20  # what registries take at most
MAX_LAYERS = 1000
MAX_ANNOTATION = 4096


@dataclass(frozen=True)
class Descriptor:
    """Bytes by their size and SHA-256; `name` is the file's, where they are one."""

    media_type: str
    digest: str
    size: int
    name: str = ""


@dataclass(frozen=True)
class Image:
    """What a manifest says: its layers, by name, and its annotations."""

    digest: str
    size: int
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    def layer(self, name: str) -> Descriptor | None:
        """The layer of that name."""
        return next((layer for layer in self.layers if layer.name == name), None)

    @property
    def bytes_in_all(self) -> int:
        """Of all layers."""
        return sum(layer.size for layer in self.layers)


def digest_of(data: bytes) -> str:
    """`sha256:` and the hex digest."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(data: bytes, media_type: str, name: str = "") -> Descriptor:
    """The descriptor of bytes in memory."""
    return Descriptor(media_type, digest_of(data), len(data), name)


def encode(layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """The manifest of an artifact: the same layers and annotations give the same bytes."""
    empty = describe(EMPTY, EMPTY_TYPE)
    record = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {**_entry(empty), "data": "e30="},
        "layers": [{**_entry(layer), "annotations": {TITLE: layer.name}} for layer in layers],
        "annotations": dict(sorted(annotations.items())),
    }
    data = json.dumps(record, indent=1, ensure_ascii=False).encode()
    if len(data) > MAX_MANIFEST_BYTES or len(layers) > MAX_LAYERS:
        raise ConfigError(
            f"the artifact has {len(layers)} files, more than a registry's manifest takes",
            fix=f"at most {MAX_LAYERS} files and {MAX_MANIFEST_BYTES >> 20} MiB of their names",
        )
    return data


def _entry(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def parse(data: bytes, where: object) -> Image:
    """Reads a manifest that came from elsewhere.

    Raises:
        ConfigError: it is some other thing than an artifact of ours.
        IntegrityError: it is malformed, names files outside a folder, or is larger than one may be.
    """
    fix = "do not use this artifact; publish it again"
    if len(data) > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"the manifest of {where} is larger than one may be", fix=fix)
    try:
        record = parse_json(data)
        kind = record.get("artifactType") or record.get("mediaType")
        if record.get("artifactType") != ARTIFACT_TYPE:
            raise ConfigError(
                f"{where} is no artifact of this compiler but {str(kind)[:100]!r}", fix="name one that `publish` wrote"
            )
        if record["schemaVersion"] != 2 or record.get("mediaType", MANIFEST_TYPE) != MANIFEST_TYPE:
            raise ValueError("it is no OCI image manifest")
        if len(record["layers"]) > MAX_LAYERS:
            raise ValueError(f"it has more than {MAX_LAYERS} layers")
        layers = tuple(_layer(entry) for entry in record["layers"])
        check_names(layer.name for layer in layers)
        annotations = _texts(record.get("annotations", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the manifest of {where} is none: {error!r}"[:300], fix=fix) from None
    return Image(digest_of(data), len(data), layers, annotations)


def _layer(entry: dict[str, Any]) -> Descriptor:
    digest, size, media_type = entry["digest"], entry["size"], entry["mediaType"]
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"{str(digest)[:100]!r} is no SHA-256 digest")
    if type(size) is not int or size < 0:
        raise ValueError("a layer's size is none")
    return Descriptor(str(media_type)[:255], digest, size, _texts(entry["annotations"])[TITLE])


def _texts(node: Any) -> dict[str, str]:
    if not isinstance(node, dict) or not all(isinstance(value, str) for value in node.values()):
        raise TypeError("annotations are no texts")
    return {str(key)[:MAX_ANNOTATION]: value[:MAX_ANNOTATION] for key, value in node.items()}
