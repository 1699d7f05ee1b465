"""publish: sends a finished version to a registry: file:PATH (a folder) or oci://HOST/REPOSITORY, with :TAG behind it.

Every file is verified before it is sent; what the registry holds already is not sent again. The version, its content
and `latest` become tags. Nothing is published whose budget is not met, unless force=true, which its manifest then says.

The password of a key is read from the environment variable MODEL_COMPILER_KEY_PASSWORD; the registry's credentials are
those of Docker's configuration, or MODEL_COMPILER_REGISTRY_USERNAME and MODEL_COMPILER_REGISTRY_PASSWORD.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.commands.arguments import parser
from compiler.commands.transfers import megabytes, shown
from compiler.errors import ConfigError
from compiler.registries.reference import Reference, parse

if TYPE_CHECKING:
    from compiler.publishing import Published, Signer


def run(arguments: list[str]) -> int:
    """Prints what was published and, last, the reference by which it can always be pulled."""
    options = parser("publish", __doc__ or "")
    options.add_argument("path", type=Path, help="a version's folder, or .../latest")
    options.add_argument("reference", metavar="REF", help="file:PATH[:TAG] or oci://HOST/REPOSITORY[:TAG]")
    options.add_argument("--force", action="store_true", help="publish although its budget is not met; or force=true")
    options.add_argument("--key", type=Path, help="private key (PEM) to sign with")
    options.add_argument(
        "--certificate", type=Path, action="append", default=[], help="the key's certificate, then those above it (PEM)"
    )
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    settings = [word for word in arguments if word.startswith("force=")]
    given = options.parse_args([word for word in arguments if word not in settings])
    if given.certificate and given.key is None:
        raise ConfigError("--certificate is given without --key", fix="name the private key that it belongs to")
    reference = parse(given.reference)

    from compiler.publishing import Signer

    signer = Signer(given.key, tuple(given.certificate)) if given.key else None
    published = send(given.path, reference, given.force or _forced(settings), signer)
    if given.json:
        record = {
            "reference": str(published.reference), "digest": published.reference.digest, "tags": published.tags,
            "bytes_sent": published.bytes_sent, "bytes": published.bytes_in_all, "signed": published.signed,
        }  # fmt: skip
        print(json.dumps(record, indent=1))
    else:
        print(published.reference)
    return 0


def send(path: Path, reference: Reference, force: bool, signer: Signer | None) -> Published:
    """Publishes, and says what was done on standard error."""
    from compiler.publishing import publish

    with shown("publishing") as tell:
        published = publish(path, reference, force, signer, tell)
    for note in published.notes:
        print(f"note: {note}", file=sys.stderr)
    size = megabytes(published.bytes_in_all)
    sent = f"{megabytes(published.bytes_sent)} sent" if published.bytes_sent else "all of it was there"
    print(f"published {size} ({sent}), {'signed' if published.signed else 'not signed'}", file=sys.stderr)
    print(f"tags: {', '.join(published.tags)}", file=sys.stderr)
    return published


def _forced(settings: list[str]) -> bool:
    for setting in settings:
        value = setting.partition("=")[2]
        if value not in ("true", "false"):
            raise ConfigError(f"force is {value!r}", fix="say force=true or force=false")
    return "force=true" in settings
