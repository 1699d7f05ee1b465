"""What of a finished version goes to a registry, under which names, and when not."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.disk import copy, explain_os_errors
from compiler.errors import ConfigError, GateError, IntegrityError
from compiler.html import render
from compiler.provenance import statement
from compiler.registries import Registry, connect
from compiler.registries.oci import MANIFEST_TYPE, TITLE, Descriptor, Image, parse
from compiler.registries.reference import LATEST, Reference
from compiler.registries.transfer import Layer, Progress, send, silent
from compiler.runtime.fetch import ANNOTATION, CREATED, FORCED, REPORT, VERSION, VERSION_TAG
from compiler.runtime.signatures import MAX_BUNDLE_BYTES, read_bundle
from compiler.runtime.trust import check
from compiler.runtime.verify import MANIFEST, PROVENANCE, SIGNATURE
from compiler.signing import sign
from compiler.terminal import printable

ABOUT = (PROVENANCE, SIGNATURE, REPORT)
"""Layers that are said about the artifact, and made when it is published."""
MANIFEST_LAYER = "application/vnd.target-model-compiler.manifest.v1+json"
PROVENANCE_LAYER = "application/vnd.in-toto+json"
SIGNATURE_LAYER = "application/vnd.dev.sigstore.bundle.v0.3+json"
DELIVERABLE = ("pass", "provisional")


@dataclass(frozen=True)
class Published:
    """Where an artifact is now. `tags` lead to it; `notes` is what the user should know."""

    reference: Reference
    tags: list[str]
    bytes_sent: int
    bytes_in_all: int
    notes: list[str]
    signed: bool


@dataclass(frozen=True)
class Signer:
    """A private key (PEM) and, where it has one, the chain of its certificate, the signing one first."""

    key: Path
    certificates: Sequence[Path] = ()


def publish(
    folder: Path, reference: Reference, force: bool = False, signer: Signer | None = None, tell: Progress = silent
) -> Published:
    """Sends the version at `folder`, after every byte of it is verified, and points tags to it.

    The tags: its version, its content (`content-` and 16 digits of its digest), the reference's own, and `latest`, that
    goes forward in time only.

    Raises:
        GateError: its budget is not met (or it is not finished), and `force` is not given.
        IntegrityError: it is not what its manifest says.
        ConfigError: the repository holds another model, or another content under this version.
        StepError: the registry cannot be reached.
    """
    if reference.digest is not None:
        raise ConfigError(
            f"{reference} names a digest", fix="publish to a tag, or to none: the content makes the digest"
        )
    trust = check(folder)
    manifest = trust.manifest
    forced = _gate(manifest, folder, force)
    registry = connect(reference, writing=True)
    notes: list[str] = []
    newest = _image(registry, reference, LATEST)
    _check_home(reference, newest, manifest)
    tags = _tags(reference, manifest, newest, notes)
    with tempfile.TemporaryDirectory(prefix="publish-") as temporary:
        layers = _layers(folder.resolve(), manifest, forced, Path(temporary), signer)
        known = _image(registry, reference, manifest["version"])
        if known is not None and _is_there(reference, known, layers, registry, Path(temporary)):
            data = registry.manifest(known.digest) or b""
            registry.write(Descriptor(MANIFEST_TYPE, known.digest, len(data)), data, tags, lambda _count: None)
            signed = known.layer(SIGNATURE) is not None
            return Published(reference.pinned(known.digest), tags, 0, known.bytes_in_all, notes, signed)
        sent = send(registry, layers, _annotations(manifest, forced), tags, tell)
    signed = any(layer.name == SIGNATURE for layer in layers)
    return Published(reference.pinned(sent.digest), tags, sent.bytes_sent, sent.bytes_in_all, notes, signed)


def _gate(manifest: dict[str, Any], folder: Path, force: bool) -> bool:
    """Whether the artifact goes out by force. Raises GateError where it does not go out at all."""
    if manifest.get("forced") or manifest["status"] in DELIVERABLE:
        return bool(manifest.get("forced"))
    if not force:
        raise GateError(
            f"the artifact is not published: its status is {manifest['status']}",
            fix=f"see its verdicts: python -m compiler show {folder}; or publish it all the same with force=true",
        )
    return True


def _image(registry: Registry, reference: Reference, name: str) -> Image | None:
    """What a tag holds, or None."""
    data = registry.manifest(name)
    return None if data is None else parse(data, f"{reference.home}:{name}")


def _check_home(reference: Reference, newest: Image | None, manifest: dict[str, Any]) -> None:
    """One repository holds one model for one target, or its `latest` would mean now this and now that."""
    for key in ("model", "target") if newest is not None else ():
        there = newest.annotations.get(ANNOTATION + key) if newest is not None else None
        if there != manifest[key]:
            raise ConfigError(
                f"{reference.home} holds the {key} {_plain(there)}, and this is {manifest[key]}",
                fix="publish each model and target to a repository of its own",
            )


def _tags(reference: Reference, manifest: dict[str, Any], newest: Image | None, notes: list[str]) -> list[str]:
    """The version, the content, the reference's own; `latest` last, and only forward unless it is asked for."""
    tags = [manifest["version"], f"content-{manifest['digest'][:16]}"]
    if reference.tag is not None and reference.tag not in (*tags, LATEST):
        if VERSION_TAG.fullmatch(reference.tag):
            raise ConfigError(
                f"the tag {reference.tag} is another version's name", fix=f"this is the version {manifest['version']}"
            )
        tags.append(reference.tag)
    there = newest.annotations.get(CREATED, "") if newest is not None else ""
    if there > manifest["created"] and reference.tag != LATEST:
        notes.append(f"latest stays where it is: what it leads to was created later ({_plain(there)})")
    else:
        tags.append(LATEST)
    return tags


def _layers(folder: Path, manifest: dict[str, Any], forced: bool, work: Path, signer: Signer | None) -> list[Layer]:
    """Every file as a layer of its own: the manifest first, then what it names, then what is said about them."""
    text: Path | bytes = folder / MANIFEST
    changed = forced and not manifest.get("forced")
    if changed:
        manifest = {**manifest, "forced": True}
        text = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    data = text if isinstance(text, bytes) else text.read_bytes()
    provenance: Path | bytes = folder / PROVENANCE
    if changed or not (folder / PROVENANCE).exists():
        provenance = _json(statement(manifest, hashlib.sha256(data).hexdigest()))
    files = sorted(manifest["files"], key=lambda file: str(file["path"]))
    layers = [
        Layer(MANIFEST, MANIFEST_LAYER, text),
        *(Layer(f["path"], f["media_type"], folder / f["path"]) for f in files),
        Layer(PROVENANCE, PROVENANCE_LAYER, provenance),
    ]
    if signer is not None:
        layers.append(Layer(SIGNATURE, SIGNATURE_LAYER, _signature(layers, work, signer)))
    elif (folder / SIGNATURE).exists() and not changed:
        layers.append(Layer(SIGNATURE, SIGNATURE_LAYER, folder / SIGNATURE))
    return [*layers, Layer(REPORT, "text/html", render(manifest).encode())]


def _plain(text: str | None) -> str:
    return str(printable(text or "nothing"))[:200]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _signature(layers: Sequence[Layer], work: Path, signer: Signer) -> bytes:
    """Signs the folder that a pull will make: what is published is copied together for it."""
    signed, out = work / "signed", work / SIGNATURE
    with explain_os_errors(work):
        for layer in layers:
            target = signed / layer.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(layer.source, bytes):
                target.write_bytes(layer.source)
            else:
                copy(layer.source, target)
    sign(signed, out, signer.key, signer.certificates)
    shutil.rmtree(signed)
    return out.read_bytes()


def _is_there(reference: Reference, known: Image, layers: Sequence[Layer], registry: Registry, work: Path) -> bool:
    """Whether the version is published already, as it is; and, where it is to be signed, signed by the same key.

    Raises:
        ConfigError: something else is published under its name.
    """
    ours = {layer.name: layer for layer in layers}
    digests = {name: layer.describe().digest for name, layer in ours.items() if name not in ABOUT}
    theirs = {layer.name: layer.digest for layer in known.layers if layer.name not in ABOUT}
    if digests != theirs:
        differing = sorted(name for name in digests.keys() | theirs.keys() if digests.get(name) != theirs.get(name))
        raise ConfigError(
            f"{reference.home} holds another {differing[0]} under the version {_plain(known.annotations.get(VERSION))}",
            fix="publish to another repository; a version that was published is never changed",
        )
    signature, there = ours.get(SIGNATURE), known.layer(SIGNATURE)
    if signature is None or there is None or there.size > MAX_BUNDLE_BYTES:
        return signature is None
    made = [work / "ours", work / "theirs"]
    made[0].write_bytes(signature.source if isinstance(signature.source, bytes) else signature.source.read_bytes())
    made[1].write_bytes(b"".join(registry.read(there, 0)))
    try:
        mine, other = (read_bundle(file) for file in made)
    except IntegrityError:
        return False
    return (mine.kind, mine.hint, mine.files) == (other.kind, other.hint, other.files)  # by the same over the same


def _annotations(manifest: dict[str, Any], forced: bool) -> dict[str, str]:
    """What a listing shows without fetching anything; `pull` compares it with the artifact's own manifest."""
    ours = {key: str(manifest[key]) for key in ("model", "target", "status", "digest", "selected")}
    return {
        CREATED: manifest["created"],
        VERSION: manifest["version"],
        TITLE: f"{manifest['model']} for {manifest['target']}",
        **{ANNOTATION + key: value for key, value in ours.items()},
        **({FORCED: "true"} if forced else {}),
    }
