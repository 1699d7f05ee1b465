"""Whether an artifact is to be trusted: its files, then its signature, then its provenance, before it is opened.

Until all three are done, nothing of it is read but JSON, within limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from compiler.canonical import file_digest
from compiler.errors import IntegrityError
from compiler.foreign_json import LARGEST_JSON, read_json
from compiler.runtime.attestation import check_statement
from compiler.runtime.policy import Policy, chosen
from compiler.runtime.signatures import FIX, Bundle, check_files, read_bundle, verify_bundle
from compiler.runtime.verify import MANIFEST, PROVENANCE, SIGNATURE, read_manifest, verify

__all__ = ["Policy", "Trust", "check"]


@dataclass(frozen=True)
class Trust:
    """What was found about an artifact that was not refused."""

    manifest: dict[str, Any]
    files: int
    """How many the manifest names; all match."""
    signature: str
    """`absent`, `unchecked` (no trusted key was given) or `verified`."""
    signer: str
    """File name of the key, or subject of the certificate; `unchecked`: the SHA-256 that the signature itself says."""
    provenance: str
    """`absent`, `unsigned` (it agrees with files and manifest, and anyone may have written it) or `verified`."""

    def lines(self) -> tuple[str, str, str]:
        """The findings in words, in the order in which they were checked."""
        by = f"made with the {self.signer}" if self.signer else ""
        return (
            f"files: {self.files} match the manifest, digest {self.manifest['digest']}",
            "signature: "
            + {
                "absent": "none",
                "unchecked": f"not checked: no trusted key was given ({by})",
                "verified": f"verified, {by}",
            }[self.signature],
            "provenance: "
            + {
                "absent": "none",
                "unsigned": "agrees with the files and the manifest, but no verified signature covers it",
                "verified": "agrees with the files and the manifest, and is signed with them",
            }[self.provenance],
        )


def check(folder: Path, policy: Policy | None = None, installed: Mapping[str, Any] | None = None) -> Trust:
    """Checks the artifact in `folder` against its manifest, its signature, its provenance and the user's policy.

    Without a `policy` that of the environment variable MODEL_COMPILER_POLICY holds. `installed` is the manifest of the
    artifact that this one is to replace.

    Raises:
        ConfigError: there is no artifact; the policy or one of its keys cannot be used.
        IntegrityError: something does not match, or the policy refuses it; the message says what.
        MissingToolError: a signature is to be verified, and `model-signing` is not installed.
    """
    policy = policy or chosen() or Policy()
    folder, _ = read_manifest(folder)
    manifest = verify(folder)
    bundle, signer = _signature(folder, manifest, policy)
    provenance = _provenance(folder, manifest, policy)
    state = "absent" if bundle is None else "verified" if signer else "unchecked"
    if bundle is not None:
        signer = f"{bundle.kind} {signer or bundle.hint[:16]}"
    if provenance == "unsigned" and state == "verified":
        provenance = "verified"
    demand(manifest, policy, installed)
    return Trust(manifest, len(manifest["files"]), state, signer, provenance)


def _signature(folder: Path, manifest: Mapping[str, Any], policy: Policy) -> tuple[Bundle | None, str]:
    """The signature, if there is one, and who of the trusted made it, if any are named."""
    if not (folder / SIGNATURE).exists():
        if policy.require_signature:
            raise IntegrityError(f"{SIGNATURE} is missing: a signature is required", fix=FIX)
        return None, ""
    bundle = read_bundle(folder / SIGNATURE)
    digests = {file["path"]: file["sha256"] for file in manifest["files"]}
    for name in (MANIFEST, PROVENANCE):
        if (folder / name).exists():
            if (folder / name).stat().st_size > LARGEST_JSON:
                raise IntegrityError(f"{name} has more than {LARGEST_JSON} bytes", fix=FIX)
            digests[name] = file_digest(folder / name)
    check_files(bundle, digests)
    if not policy.trusted_keys and not policy.trusted_certificates:
        return bundle, ""
    size = sum(file["size_bytes"] for file in manifest["files"])
    return bundle, verify_bundle(folder, bundle, list(policy.trusted_keys), list(policy.trusted_certificates), size)


def _provenance(folder: Path, manifest: Mapping[str, Any], policy: Policy) -> str:
    if not (folder / PROVENANCE).exists():
        if policy.require_provenance:
            raise IntegrityError(f"{PROVENANCE} is missing: the policy requires it", fix=FIX)
        return "absent"
    try:
        check_statement(read_json(folder / PROVENANCE), manifest, file_digest(folder / MANIFEST))
    except ValueError as error:
        raise IntegrityError(f"{PROVENANCE} is not this artifact's: {error}"[:300], fix=FIX) from None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{PROVENANCE} is no provenance ({error!r})"[:300], fix=FIX) from None
    return "unsigned"


def demand(manifest: Mapping[str, Any], policy: Policy | None, installed: Mapping[str, Any] | None) -> None:
    """Refuses an artifact that the policy (or, without one, that of the environment) does not allow.

    Raises:
        IntegrityError: its model, target or status is not allowed, or it is to replace what it may not.
    """
    policy = policy or chosen() or Policy()
    for what, value, allowed in (
        ("model", manifest["model"], policy.models),
        ("target", manifest["target"], policy.targets),
        ("status", manifest["status"], policy.statuses),
    ):
        if allowed and value not in allowed:
            raise IntegrityError(
                f"the policy does not allow the {what} {value[:100]!r}", fix=f"it allows {', '.join(allowed)}"
            )
    if installed is None or not policy.refuse_older:
        return
    for what in ("model", "target"):
        if manifest[what] != installed[what]:
            raise IntegrityError(
                f"the {what} is {manifest[what][:100]!r}, that of what is installed {installed[what]!r}", fix=FIX
            )
    if _created(manifest) < _created(installed):
        raise IntegrityError(
            f"created {manifest['created']}, before what is installed ({installed['created']})",
            fix="take a newer version; to go back on purpose, leave refuse_older out",
        )


def _created(manifest: Mapping[str, Any]) -> datetime:
    try:
        created = datetime.fromisoformat(manifest["created"])
        if created.tzinfo is None:
            raise ValueError("no time zone")
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"the manifest does not say when it was created ({error!r})"[:300], fix=FIX) from None
    return created
