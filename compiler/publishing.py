"""What of a finished version goes to a registry, under which names, and when not."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.disk import copy, explain_os_errors
from compiler.errors import CompilerError, ConfigError, GateError, IntegrityError
from compiler.html import render
from compiler.outputs import check_output_folder
from compiler.provenance import statement
from compiler.registries import GO_ON, Registry, connect
from compiler.registries.oci import TITLE, Descriptor, Image, parse
from compiler.registries.reference import LATEST, Reference
from compiler.registries.transfer import Layer, Progress, read_small, send, silent
from compiler.runtime.fetch import ANNOTATION, CREATED, FORCED, REPORT, VERSION, content_tag
from compiler.runtime.signatures import MAX_BUNDLE_BYTES, check_files, read_bundle, verify_bundle
from compiler.runtime.trust import Policy, check
from compiler.runtime.verify import DEFERRED, MANIFEST, PROVENANCE, SIGNATURE, read_manifest
from compiler.runtime.verify import VERSION as VERSION_NAME
from compiler.signing import sign
from compiler.words import printable

ABOUT = (PROVENANCE, SIGNATURE, REPORT)
"""Layers that are said about the artifact, and made when it is published."""
MANIFEST_LAYER = "application/vnd.target-model-compiler.manifest.v1+json"
PROVENANCE_LAYER = "application/vnd.in-toto+json"
SIGNATURE_LAYER = "application/vnd.dev.sigstore.bundle.v0.3+json"
DELIVERABLE = ("pass", "provisional")
FIX = "do not publish this artifact; build or fetch it again"


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
    goes forward in time only and never to a deferred version, which is published for another host to finish.

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
    if reference.kind == "file":
        check_output_folder(Path(reference.place))
    place, _ = read_manifest(folder)  # `latest` may lead elsewhere a moment later
    manifest = check(place, Policy()).manifest  # what the user demands of others' artifacts is not meant
    forced = _gate(manifest, place, force)
    registry = connect(reference, writing=True)
    notes: list[str] = []
    newest = _image(registry, reference, LATEST)
    _check_home(reference, newest, manifest)
    tags = _tags(reference, manifest)
    with tempfile.TemporaryDirectory(prefix="publish-") as temporary:
        layers = _layers(place, manifest, forced)
        known = _image(registry, reference, manifest["version"])
        if known is not None:
            _check_known(reference, known, layers)
        signature = _signature(place, layers, registry, known, signer, Path(temporary), notes)
        layers += [Layer(SIGNATURE, SIGNATURE_LAYER, signature)] if signature else []
        layers.append(Layer(REPORT, "text/html", _report(manifest, forced)))
        stayed: list[str] = []

        def stays(tag: str, held: bytes) -> bool:
            """`latest` goes forward only, unless it is asked for: looked at directly before it would move."""
            if tag == LATEST != reference.tag and _created(held) > manifest["created"]:
                stayed.append(tag)
            return tag in stayed

        sent = send(registry, layers, _annotations(manifest, forced), tags, tell, unless=stays)
    if stayed:
        notes.append(f"latest stays where it is: what it leads to was created after {manifest['created']}")
    tags = [tag for tag in tags if tag not in stayed]
    return Published(reference.pinned(sent.digest), tags, sent.bytes_sent, sent.bytes_in_all, notes, bool(signature))


def _gate(manifest: dict[str, Any], folder: Path, force: bool) -> bool:
    """Whether the artifact goes out by force. Raises GateError where it does not go out at all."""
    if manifest["status"] in (*DELIVERABLE, DEFERRED):
        return False
    if not force:
        raise GateError(
            f"the artifact is not published: its status is {printable(manifest['status'])}",
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


def _tags(reference: Reference, manifest: dict[str, Any]) -> list[str]:
    """The version, the content, the reference's own; `latest` last."""
    tags = [manifest["version"], content_tag(manifest)]
    if reference.tag is not None and reference.tag not in (*tags, LATEST):
        if VERSION_NAME.fullmatch(reference.tag):
            raise ConfigError(
                f"the tag {reference.tag} is another version's name", fix=f"this is the version {manifest['version']}"
            )
        tags.append(reference.tag)
    return tags if manifest["status"] == DEFERRED else [*tags, LATEST]


def _created(held: bytes) -> str:
    """When the artifact of a manifest was made; empty where it is none of ours."""
    try:
        return parse(held, LATEST).annotations.get(CREATED, "")
    except CompilerError:
        return ""


def _layers(folder: Path, manifest: dict[str, Any], forced: bool) -> list[Layer]:
    """Every file as a layer of its own: the manifest first, then what it names, then the provenance."""
    text: Path | bytes = folder / MANIFEST
    changed = forced and not manifest.get("forced")
    if changed:
        manifest = {**manifest, "forced": True}
        text = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    data = text if isinstance(text, bytes) else text.read_bytes()
    provenance: Path | bytes = folder / PROVENANCE
    if changed or not (folder / PROVENANCE).exists():
        try:
            provenance = _json(statement(manifest, hashlib.sha256(data).hexdigest()))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"the manifest is not one that builds write ({error!r})"[:300], fix=FIX) from None
    files = sorted(manifest["files"], key=lambda file: str(file["path"]))
    return [
        Layer(MANIFEST, MANIFEST_LAYER, data),
        *(Layer(f["path"], f["media_type"], folder / f["path"], f"sha256:{f['sha256']}") for f in files),
        Layer(PROVENANCE, PROVENANCE_LAYER, provenance),
    ]


def _report(manifest: dict[str, Any], forced: bool) -> bytes:
    return render({**manifest, "forced": True} if forced else manifest).encode()


def _plain(text: str | None) -> str:
    return str(printable(text or "nothing"))[:200]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _check_known(reference: Reference, known: Image, layers: Sequence[Layer]) -> None:
    """Raises ConfigError where the version is published already, with other files."""
    ours = {layer.name: layer.descriptor.digest for layer in layers if layer.name not in ABOUT}
    theirs = {layer.name: layer.digest for layer in known.layers if layer.name not in ABOUT}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{reference.home} holds another {name} under the version {_plain(known.annotations.get(VERSION))}",
                fix="publish to another repository; a version that was published is never changed",
            )


def _signature(
    folder: Path,
    layers: Sequence[Layer],
    registry: Registry,
    known: Image | None,
    signer: Signer | None,
    work: Path,
    notes: list[str],
) -> bytes | None:
    """The signature over `layers`: the signer's; else the folder's own; else the one that is published already.

    One that the same key made before over the same files is taken in place of a new one, so that the artifact's digest
    stays as it is: signatures are random.
    """
    there = known.layer(SIGNATURE) if known is not None else None
    if signer is not None:
        return _signed(layers, registry, there, signer, work)
    digests = {layer.name: layer.descriptor.digest.removeprefix("sha256:") for layer in layers}
    if (folder / SIGNATURE).exists():
        data = (folder / SIGNATURE).read_bytes()
        return data if _is_about(data, digests, work) else None
    if there is not None and _is_about(data := read_small(registry, there, MAX_BUNDLE_BYTES), digests, work):
        notes.append("the signature that was published with this version before was kept")
        return data
    return None


def _is_about(signature: bytes, digests: dict[str, str], work: Path) -> bool:
    """Whether a signature says that it is over exactly these files, whoever made it."""
    try:
        (work / SIGNATURE).write_bytes(signature)
        check_files(read_bundle(work / SIGNATURE), digests)
    except IntegrityError:
        return False
    return True


def _signed(layers: Sequence[Layer], registry: Registry, there: Descriptor | None, signer: Signer, work: Path) -> bytes:
    """Signs the folder that a pull will make: what is published is copied together for it."""
    staged, out, public = work / "staged", work / "ours", work / "public.pem"
    with explain_os_errors(work, GO_ON):
        for layer in layers:
            target = staged / layer.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(layer.source, bytes):
                target.write_bytes(layer.source)
            else:
                copy(layer.source, target)
    public.write_text(sign(staged, out, signer.key, signer.certificates))
    if there is None or signer.certificates:
        return out.read_bytes()
    data = read_small(registry, there, MAX_BUNDLE_BYTES)
    (work / "theirs").write_bytes(data)
    size = sum(layer.descriptor.size for layer in layers)
    try:
        mine, other = read_bundle(out), read_bundle(work / "theirs")
        if (mine.kind, mine.hint, mine.files) != (other.kind, other.hint, other.files):
            return out.read_bytes()
        verify_bundle(staged, other, [public], [], size)
    except IntegrityError:
        return out.read_bytes()
    return data


def _annotations(manifest: dict[str, Any], forced: bool) -> dict[str, str]:
    """What a listing shows without fetching anything; `pull` compares it with the artifact's own manifest."""
    ours = {key: str(manifest[key]) for key in ("model", "target", "status", "digest")} | {
        "selected": str(manifest["selected"] or "")
    }
    return {
        CREATED: manifest["created"],
        VERSION: manifest["version"],
        TITLE: f"{manifest['model']} for {manifest['target']}",
        **{ANNOTATION + key: value for key, value in ours.items()},
        **({FORCED: "true"} if forced else {}),
    }
